"""Place of PASS (Gao et al.); the method is not built yet."""
