"""The machine itself: EBS device names, mounts, the Python environment."""
