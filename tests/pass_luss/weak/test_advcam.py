"""AdvCAM against slow numpy transcriptions (spec comparators §4.3)."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.weak import (
  advcam,
  classifier_options,
  image_classifier,
  multi_scale,
)
from segcore.distributed import sharding
from segcore.models.layers import standardize
from segcore.train import train_state
from tests.pass_luss.weak import tiny
from tests.transcriptions import wsss

SIDE, FEATURES, CLASSES, STEPS = 4, 5, 3, 3
OPTIONS = classifier_options.AdvCamOptions(
  num_steps=STEPS, weight=2.0, step_size=0.3
)


class CellNetwork(image_classifier.ImageClassifier):
  """A classifier of the cells tanh(x · mix), of standardized pixels x."""

  def __init__(self):  # None of the fields is read.
    pass

  def feature_maps(self, variables, images):
    x = standardize.standardize_by_imagenet(images)
    array = jnp.tanh(x @ variables['params']['mix'])
    return types.SimpleNamespace(deepest=types.SimpleNamespace(array=array))


def features_of(x, mix):
  """Computes tanh(x · mix) of pairs [2, H, W, 3], as [2, D, H, W]."""
  return np.moveaxis(np.tanh(x @ mix), -1, 1)


def climbed(x, params, c):
  """Transcribes the steps of a pair; gradients are differences."""
  mix, kernel = params['mix'], params['heads']['classes']['kernel'].T
  first, total = None, 0.0
  for _ in range(STEPS):
    f = features_of(x, mix)
    w = wsss.weights(f, kernel, c)
    region = wsss.region(f, w)
    first = region if first is None else first
    mask = region / region.max() > 0.5
    total = total + region
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
      values = []
      for sign in (1, -1):
        moved = x.copy()
        moved[index] += sign * 1e-6
        values.append(
          wsss.objective(
            features_of(moved, mix), kernel, c, w, first, mask, OPTIONS.weight
          )
        )
      gradient[index] = (values[0] - values[1]) / 2e-6
    x = wsss.advance(x, gradient, OPTIONS.step_size)
  return total


def test_regions_of_climbing_images():
  rng = np.random.default_rng(3)
  params = {
    'mix': rng.normal(size=(3, FEATURES)),
    'heads': {'classes': {'kernel': rng.normal(size=(FEATURES, CLASSES))}},
  }
  images = rng.uniform(-1, 1, (2, SIDE, SIDE, 3))
  pairs = np.stack([images, images[:, :, ::-1]], 1).reshape(4, SIDE, SIDE, 3)
  classes = np.array([1, 2])

  @jax.jit
  def compute(params, pairs, classes):
    state = train_state.TrainState(0, params, {}, (), None)
    x = standardize.standardize_by_imagenet(pairs)
    return x, advcam.climb(CellNetwork(), OPTIONS, state, pairs, classes, STEPS)

  with jax.enable_x64():
    x, regions = jax.device_get(compute(params, pairs, classes))
  for i, c in enumerate(classes):
    expected = climbed(x[2 * i : 2 * i + 2], params, c)
    assert expected.max() > 0
    np.testing.assert_allclose(regions[i, ..., 0], expected, rtol=1e-4)


@pytest.mark.parametrize(
  ('num_steps', 'expected'),
  [
    # The factor stays after scale 0.5.
    (27, ((13, 2.0), (27, 2.0), (27, 2.0))),
    (8, ((5, 1.0), (8, 1.0), (8, 1.0))),
    (3, ((3, 1.0), (3, 1.0), (3, 1.0))),
  ],
)
def test_steps_of_each_scale(num_steps, expected):
  assert advcam.plan_steps(num_steps, (0.5, 1.0, 1.5)) == expected


@pytest.mark.slow
def test_eight_devices_are_one_in_float64():
  """Compares category and activation of images that climb at two scales."""
  with jax.enable_x64():
    trained = tiny.make_method(
      classifier_options.ClassifierOptions(), dtype=jnp.float64
    )
    batch = tiny.draw_batch()
    state = tiny.init_state(trained, batch, jnp.float64)
    # Large weights, so that a class has positive scores.
    kernel = state.params['heads']['classes']['kernel']
    kernel = np.random.default_rng(0).normal(size=kernel.shape)
    heads = {'classes': {'kernel': kernel}}
    state = state.replace(params={**state.params, 'heads': heads})
    cams = multi_scale.MultiScaleCams(trained, (0.5, 1.0), OPTIONS)
    images = np.asarray(batch['image'], np.float64) / 127.5 - 1
    results = []
    for num_devices in (1, 8):
      mesh = sharding.make_mesh(1, jax.devices()[:num_devices])
      put = sharding.make_batch_sharder(mesh)
      results.append(
        jax.device_get(jax.jit(cams.predicted)(state, put(images)))
      )
  one, eight = results
  activation = one[..., 1].reshape(tiny.BATCH, -1)
  assert np.all(np.ptp(activation, axis=1) > 0.3)
  np.testing.assert_allclose(one, eight, atol=1e-8)
