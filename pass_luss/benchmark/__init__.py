"""The ImageNet-S benchmark: file format, metrics, matching."""
