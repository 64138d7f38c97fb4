"""One file a container format, writer and reader together."""
