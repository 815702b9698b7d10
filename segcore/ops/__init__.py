"""Pure functions on arrays: losses, order statistics, color augmentation."""
