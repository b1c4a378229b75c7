"""Studies of labels and classes: probes, heads and tuned encoders at every fraction."""
