"""From a command line to the stages of an experiment."""
