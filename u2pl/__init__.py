"""U2PL and U2PL+: semi-supervised learning from unreliable pseudo-labels."""
