"""The cluster that is 'other', by the border of the training images."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.stages import segment_pixels
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
