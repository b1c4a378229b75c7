"""What a decoder reads beside the slices of a window: the other planes, and random changes of all of it."""
