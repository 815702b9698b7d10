"""TFDS builders, one module per data set, which all write the same records."""
