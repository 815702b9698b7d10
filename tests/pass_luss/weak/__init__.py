"""Tests of weak supervision."""
