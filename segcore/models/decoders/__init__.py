"""Decoders: from the maps of an encoder to finer ones."""
