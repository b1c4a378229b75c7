"""Pure functions from tensors to a scalar loss."""
