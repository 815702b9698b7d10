"""TFDS builders: one module a data set; all write the records of `records`."""
