"""Pixel-adaptive refinement against the transcription, in float64."""

import jax
import numpy as np
import pytest

from segcore.ops import pixel_adaptive_refinement as par
from tests.transcriptions import afa as reference

OPTIONS = par.PixelAdaptiveOptions(dilations=(1, 2, 5), num_iterations=3)


def _refine(images, masks, sizes=None):
  with jax.enable_x64():
    refine = jax.jit(par.refine_by_pixels, static_argnums=2)
    return np.asarray(refine(images, masks, OPTIONS, sizes))


def _inputs(shape=(9, 11)):
  rng = np.random.default_rng(1)
  images, masks = rng.random((2, *shape, 3)), rng.random((2, *shape, 2))
  images[0, :4, :5] = 0.5  # Without any deviation among neighbors.
  return images, masks


def test_masks_of_whole_images():
  images, masks = _inputs()
  refined = _refine(images, masks)
  for b in range(2):
    expected = reference.par(images[b], masks[b], OPTIONS.dilations, 3)
    np.testing.assert_allclose(refined[b], expected, atol=1e-12)


def test_padding_changes_nothing():
  """The result in the image is that of the image alone."""
  images, masks = _inputs()
  sizes = np.array([[9, 4], [5, 11]])
  refined = _refine(images, masks, sizes)
  for b, (height, width) in enumerate(sizes):
    inside = np.s_[b, :height, :width]
    expected = reference.par(
      images[inside], masks[inside], OPTIONS.dilations, 3
    )
    np.testing.assert_allclose(refined[inside], expected, atol=1e-12)
  assert np.all(np.isfinite(refined))


def test_weights_of_the_paper_sum_to_a_little_more_than_one():
  images, _ = _inputs((30, 26))
  options = par.PixelAdaptiveOptions()
  assert len(options.offsets) == 48
  with jax.enable_x64():
    weights = jax.jit(par.neighbor_weights, static_argnums=1)(images, options)
  total = np.asarray(weights).sum(axis=0)
  np.testing.assert_allclose(total, 1.01, rtol=1e-12)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'dilations': ()}, 'dilations: expected distances >= 1'),
    ({'num_iterations': -1}, 'num_iterations: expected >= 0'),
    ({'bandwidth': 0.0}, 'bandwidth: expected above 0'),
  ],
)
def test_options_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    par.PixelAdaptiveOptions(**fields)
