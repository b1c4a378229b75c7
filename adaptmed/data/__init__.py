"""Datasets as the user has them: manifests, images, splits, the check before a run, and the phantom."""
