"""U2PL and U2PL+: unlabeled images, and what unreliable pixels tell."""
