"""Studies: one experiment over options and seeds."""
