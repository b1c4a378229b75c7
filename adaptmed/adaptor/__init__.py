"""The saved object: two frozen encoders, their records, and the fusion between their Tokens."""
