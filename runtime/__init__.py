"""Shared by all packages: errors, exit status, progress, files, options."""
