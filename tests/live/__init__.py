"""The smoke test of a real AWS account, for those who have one: `make live`."""
