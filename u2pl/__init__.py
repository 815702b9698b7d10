"""Place of U2PL and U2PL+ (Wang et al.); the method is not built yet."""
