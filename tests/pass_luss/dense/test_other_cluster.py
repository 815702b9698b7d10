"""The cluster that is 'other', by borders of images or by matching."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.stages import segment_pixels
from runtime import errors
from segcore.train import train_state


def test_pixels_of_the_border():
  labels = np.full((2, 4, 5), 2)
  labels[0, 1:3, 1:4] = 0
  labels[1, 0] = 1
  count = functools.partial(
    segment_pixels.count_border_pixels, border=1, num_clusters=3
  )
  np.testing.assert_array_equal(jax.jit(count)(labels), [[0, 0, 14], [0, 5, 9]])


def test_the_other_cluster_comes_first():
  def predict(state, images):
    del state
    return images[:, :1, :1, :1] + jnp.arange(4.0)

  method = types.SimpleNamespace(predict=predict)
  model = segment_pixels.OtherFirst(method, 2, 4)
  state = train_state.TrainState(0, {}, {}, (), 0)
  actual = jax.jit(model.predict)(state, np.zeros((1, 8, 8, 3), np.float32))
  assert actual.ravel().tolist() == [2, 0, 1, 3]


def test_the_cluster_that_matching_leaves():
  """By all assignments of four clusters to 'other' and three classes."""
  rng = np.random.default_rng(0)
  maps = []
  for _ in range(12):
    first = rng.integers(1, 4)
    mask = np.where(rng.random((6, 6)) < 0.5, first, 0)
    # Cluster 2 is at most background pixels; a cluster stands for a class.
    clusters = np.where(mask > 0, np.array([2, 0, 1, 3])[mask], 2)
    clusters[0, 0] = rng.integers(0, 4)
    mask[1, 1] = -1
    maps.append((clusters, mask))
  counts = np.zeros((4, 4))
  for clusters, mask in maps:
    for k, c in itertools.product(range(4), range(4)):
      both = (clusters == k).any() and (c == 0 or (mask == c).any())
      counts[k, c] += both
  best = max(
    itertools.permutations(range(4)),
    key=lambda order: sum(counts[k, c] for c, k in enumerate(order)),
  )
  other = segment_pixels.match_other_cluster(maps, 4, 3, 12)
  assert other.index == best[0] == 2
  assert other.summary() == {
    'other_cluster': 2,
    'other_share_of_images': counts[2, 0] / 12,
  }
  with pytest.raises(errors.UserError, match='expected border with 3 clusters'):
    segment_pixels.match_other_cluster(maps, 3, 3, 12)
