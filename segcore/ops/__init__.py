"""Pure functions of arrays: losses, order statistics, color augmentation."""
