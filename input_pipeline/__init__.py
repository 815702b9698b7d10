"""From files on disk to batches on the devices: TFDS builders and Grain."""
