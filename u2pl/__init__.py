"""U2PL and U2PL+: unlabelled images, and what unreliable pixels tell."""
