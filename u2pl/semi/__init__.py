"""Semi-supervised methods, one per file, and the parts that they share."""
