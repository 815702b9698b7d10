"""One file is one experiment: <method>_<dataset>.py."""
