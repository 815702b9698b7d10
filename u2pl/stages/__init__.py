"""The stages of semi-supervised training and of domain adaptation."""
