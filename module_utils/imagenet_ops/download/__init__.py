"""Brings one file here, from any source, resumable, proved."""
