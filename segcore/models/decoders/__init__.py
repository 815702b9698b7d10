"""Decoders, which compute finer feature maps from those of an encoder."""
