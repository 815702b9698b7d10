"""Networks: encoders, decoders and heads, and the `Segmenter` of all three."""
