"""From a table through the frozen encoders to a bank."""
