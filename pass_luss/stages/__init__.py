"""The stages of PASS, one module each."""
