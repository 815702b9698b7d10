"""Fixtures of the tests of pretraining."""

import jax
import pytest


@pytest.fixture
def float64():
  """Computes in float64, to compare with transcriptions in numpy."""
  with jax.enable_x64():
    yield
