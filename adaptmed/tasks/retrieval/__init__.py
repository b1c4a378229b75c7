"""Retrieval between images and texts: by embedding, and by re-ranking pairs."""
