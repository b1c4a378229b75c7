"""A run on disk and among processes."""
