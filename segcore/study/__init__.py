"""Studies: an experiment over options and seeds, as tables and plots."""
