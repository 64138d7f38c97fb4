"""Stand-ins for services, with the failures that the real ones have."""
