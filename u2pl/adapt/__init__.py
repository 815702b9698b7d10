"""Domain adaptation by DAFormer, with the contrastive branch of U2PL+."""
