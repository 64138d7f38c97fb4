"""Volumes and snapshots of a fleet."""
