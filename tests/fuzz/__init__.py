"""Looks for inputs that our readers cannot bear: `make fuzz`, and a short round of it in the unit tests."""
