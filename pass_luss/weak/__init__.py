"""Segmentation from image-level labels: SEAM, SC-CAM, AdvCAM."""
