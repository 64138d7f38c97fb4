"""Reads what archives hold, strictly."""
