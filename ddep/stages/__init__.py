"""The stages of decoder denoising pretraining."""
