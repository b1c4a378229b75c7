"""Arms, label fractions and seeds, measured and reported."""
