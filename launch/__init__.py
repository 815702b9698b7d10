"""Starting a run elsewhere, watching it, and deleting what it cost money on."""
