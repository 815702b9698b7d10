"""The stages of semi-supervised training."""
