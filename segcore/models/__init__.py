"""Networks: encoders, decoders and heads that a `Segmenter` puts together."""
