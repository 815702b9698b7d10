"""Evaluation protocols of unsupervised segmentation."""
