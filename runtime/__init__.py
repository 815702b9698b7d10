"""Ground floor: errors, exit status, progress, files and settings."""
