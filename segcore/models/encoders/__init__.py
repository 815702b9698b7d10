"""Encoders: from images to maps at several strides."""
