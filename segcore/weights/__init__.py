"""Reading of pretrained weights: own checkpoints and public files."""
