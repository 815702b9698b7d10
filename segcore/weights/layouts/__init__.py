"""Names of parameters in public weight files, a module for each source."""
