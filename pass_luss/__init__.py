"""PASS (Gao et al.): segmentation learned from images alone."""
