"""Weakly supervised segmentation, from labels of whole images."""
