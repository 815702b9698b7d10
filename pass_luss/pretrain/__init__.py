"""Step 1 of PASS: self-supervised pretraining of the encoder."""
