"""Benchmarks against common tools; `make bench`."""
