"""Measurements against the tools that people use today; `make bench`."""
