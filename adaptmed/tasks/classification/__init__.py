"""Labels and classes of images: a head on features of the adaptor."""
