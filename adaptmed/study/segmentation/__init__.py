"""Studies of segmentation: decoders on frozen and on fused features at every fraction of the masks."""
