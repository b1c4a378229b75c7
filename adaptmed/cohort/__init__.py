"""Which rows of a bank are used for what, and whose they are."""
