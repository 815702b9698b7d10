"""CAMs of several scales and flips against the transcription, in float64."""

import jax
import numpy as np

from segcore.models import cam
from tests.transcriptions import afa as reference

SIZE, SCALES = (12, 16), (1.0, 0.5, 1.6)


def _maps_in_jax(images, features, kernel):
  inputs = [cam.resize_and_flip(images, scale) for scale in SCALES]
  maps = [cam.class_activation_maps(each, kernel) for each in features]
  return inputs, cam.fuse_scaled_cams(maps, SIZE)


def test_maps_of_scales_and_flips_equal_the_transcription():
  rng = np.random.default_rng(0)
  images = rng.random((2, *SIZE, 3))
  kernel = rng.normal(size=(5, 3))
  grids = [(3, 4), (2, 2), (5, 6)]
  features = [rng.normal(size=(4, *grid, 5)) for grid in grids]
  with jax.enable_x64():
    inputs, cams = jax.device_get(
      jax.jit(_maps_in_jax)(images, features, kernel)
    )
  sizes = [x.shape[1:3] for x in inputs]
  assert sizes == [(12, 16), (6, 8), (19, 25)]
  for b in range(2):
    for x in inputs:
      expected = reference.resize(images[b], x.shape[1:3])
      np.testing.assert_allclose(x[2 * b], expected, atol=1e-12)
      np.testing.assert_array_equal(x[2 * b + 1], x[2 * b][:, ::-1])
    expected = reference.multi_scale_cam(
      [(x[2 * b] @ kernel, x[2 * b + 1] @ kernel) for x in features], SIZE
    )
    np.testing.assert_allclose(cams[b], expected, atol=1e-12)
  # Every class spans the whole range.
  np.testing.assert_array_equal(cams.min((1, 2)), 0)
  assert np.all(cams.max((1, 2)) > 0.9999)
