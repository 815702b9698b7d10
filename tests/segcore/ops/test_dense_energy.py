"""The energy and its gradient against all pairs in numpy, in float64."""

import jax
import numpy as np
import pytest

from segcore.ops import dense_energy
from tests.transcriptions import afa as reference

OPTIONS = dense_energy.DenseEnergyOptions(distance=3.0, color=40.0)


@pytest.mark.parametrize('block', [7, 10**6])
def test_energy_and_gradient(monkeypatch, block):
  monkeypatch.setattr(dense_energy, '_BLOCK_SIZE', 30 * block)
  rng = np.random.default_rng(0)
  shape = (2, 5, 6)
  probs = reference.softmax(rng.normal(size=(*shape, 4)))
  images = rng.integers(0, 256, (*shape, 3)).astype(float)
  inside = np.zeros(shape, bool)
  inside[0, 1:, :4] = inside[1] = True
  labels = rng.integers(-1, 3, shape)
  compute = jax.jit(
    jax.value_and_grad(dense_energy.dense_energy), static_argnums=4
  )
  with jax.enable_x64():
    energy, gradient = compute(probs, images, inside, labels, OPTIONS)
  expected = [
    reference.energy(*each, deviation_xy=3.0, deviation_rgb=40.0)
    for each in zip(probs, images, inside, labels, strict=True)
  ]
  np.testing.assert_allclose(energy, np.mean([e for e, _ in expected]))
  np.testing.assert_allclose(
    gradient, np.stack([g for _, g in expected]) / 2, atol=1e-12
  )


def test_options_out_of_range_are_refused():
  with pytest.raises(ValueError, match='color: expected above 0, got 0.0'):
    dense_energy.DenseEnergyOptions(color=0.0)
