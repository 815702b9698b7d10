"""The training loop and its parts: method, optimizer, checkpoints, logs."""
