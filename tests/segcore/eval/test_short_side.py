"""Inference at a given short side, against the transcription of PASS."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from segcore.distributed import sharding
from segcore.eval import short_side
from segcore.train import train_state
from tests.transcriptions import pass_labels

NUM_CLASSES = 4


def random_image(size):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize(
  'size', [(375, 500), (500, 333), (256, 256), (300, 301), (1, 7)]
)
def test_resized_size(size):
  assert short_side.short_side_size(size, 256) == pass_labels.inference_size(
    *size
  )


@pytest.mark.parametrize(
  'size, multiple, expected',
  [
    ((375, 500), 14, (448, 602)),  # 597.3 is nearest to 43 patches.
    ((500, 375), 16, (592, 448)),  # 597.3 is nearest to 37 patches.
    ((360, 480), 32, (448, 608)),
    ((10, 10), 14, (448, 448)),
    ((448, 455), 14, (448, 462)),  # Halves are rounded up.
  ],
)
def test_sides_are_multiples(size, multiple, expected):
  assert short_side.short_side_size(size, 448, multiple) == expected
  maps = short_side.FeatureMaps(lambda *_: None, 448, input_multiple=multiple)
  assert maps.group(size).input_sizes == (expected,)
  prepared = maps.prepare([random_image(size), None], maps.group(size))
  assert prepared['images'].shape == (2, *expected, 3)


def test_resize_and_crop():
  image = random_image((60, 90))
  assert short_side.resize_and_center_crop(image, 40).shape == (40, 60, 3)
  middle = short_side.resize_and_center_crop(image, 40, 32)
  np.testing.assert_array_equal(
    middle, short_side.resize_and_center_crop(image, 40)[4:36, 14:46]
  )
  # Antialiased: a bright pixel contributes to all that it covers.
  dot = np.zeros((64, 64, 3), np.uint8)
  dot[32, 32] = 255
  assert 0 < short_side.resize_and_center_crop(dot, 16).max() < 255


@pytest.mark.parametrize('largest', [1000, 20])
def test_label_maps(largest):
  """Images of two sizes that share a padded size; at most 1000 or 20 rows."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(2, 4, 5, NUM_CLASSES)).astype(np.float32)

  class FixedScores:
    def predict(self, state, images):
      return jnp.asarray(scores)

  maps = short_side.LabelMaps(
    FixedScores(), 24, size_multiple=32, max_side=largest
  )
  images = [random_image((48, 60)), random_image((40, 50))]
  groups = [maps.group(x.shape[:2]) for x in images]
  assert groups[0] == groups[1] == ((64, 64), ((24, 30),))
  state = train_state.inference_train_state(
    {'params': {}}, sharding.make_mesh()
  )
  labels = np.asarray(maps(state, maps.prepare(images, groups[0])))
  for row, image, score in zip(labels, images, scores, strict=True):
    height, width = image.shape[:2]
    expected = pass_labels.label_map(
      score.astype(np.float64), (height, width), largest
    )
    assert np.mean(row[:height, :width] != expected) < 0.002
  probs = dataclasses.replace(maps, output='probs')
  predicted_probs = probs(state, probs.prepare(images, groups[0]))
  np.testing.assert_allclose(predicted_probs.sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(np.argmax(predicted_probs, -1), labels)
