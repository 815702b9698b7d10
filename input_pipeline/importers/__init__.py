"""Annotations of labeling tools, which become masks and a class list."""
