"""Modules with parameters that only pre-training needs."""
