"""The packed data set on disk and what checks and moves it."""
