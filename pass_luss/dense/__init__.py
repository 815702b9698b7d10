"""Segmentation by clusters of pixels or of masks: MDC, PiCIE, MaskContrast."""
