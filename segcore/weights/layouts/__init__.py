"""Parameter names of public weight files, one module a source."""
