"""Archives to ``<class>/<image>``."""
