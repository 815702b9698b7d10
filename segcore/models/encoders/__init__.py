"""Encoders, which compute feature maps of images at several strides."""
