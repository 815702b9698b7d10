"""Weight files of torch, read without torch and without executing anything."""
