"""Tests of segmentation by clusters of pixels or masks."""
