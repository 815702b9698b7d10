"""Predictions lie where the image shows the object, to 0.05 pixels.

A network that scores each pixel by its own brightness predicts a disc exactly,
so whatever the prediction of a disc is off by comes from the protocol.
"""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from segcore.distributed import sharding
from segcore.eval import protocols, short_side
from segcore.train import train_state
from tests.support import discs

SIDES = {64: 40, 224: 12, 512: 4}


def protocol_options(side):
  window = (side // 2, side // 2 + 5)
  stride = (side // 3, side // 3)
  sliding = {'tiling': 'sliding_window', 'window': window, 'stride': stride}
  canvas = (side + 41, side + 60)
  fields = {
    'whole': {},
    'flip': {'flip': True},
    'halves': {'tiling': 'halves', 'flip': True},
    'windows': sliding,
    'canvas': {
      'tiling': 'sliding_window',
      'window': canvas,
      'stride': canvas,
      'padding_mode': 'mean',
    },
    'scales': {'scales': (0.5, 0.75, 1.25, 1.75), 'flip': True},
    'antialiased': {'scales': (0.5, 0.75), 'antialias': True},
    'all': {**sliding, 'scales': (0.75, 1.25), 'flip': True},
  }
  return {
    name: protocols.ProtocolOptions(**each) for name, each in fields.items()
  }


def drawn(side, count):
  rng = np.random.default_rng(side)
  for _ in range(count):
    size = tuple((rng.uniform(0.9, 1.1, 2) * side).astype(int).tolist())
    center = (n / 2 + rng.uniform(-0.1, 0.1) * side for n in size)
    disc = discs.Outline(*center, rng.uniform(0.18, 0.25) * side)
    yield discs.example(size, disc)


def assert_aligned(pairs):
  """Checks the outlines of (prediction, label) against each other."""
  differences = [
    np.subtract(discs.outline(prediction), discs.outline(label))
    for prediction, label in pairs
  ]
  np.testing.assert_allclose(np.mean(differences, axis=0), 0, atol=0.05)
  assert np.abs(differences).max() < 0.2


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('name', protocol_options(64))
def test_every_protocol_is_aligned(side, name):
  views_of = protocol_options(side)[name].build(16)
  pairs = []
  for example in drawn(side, SIDES[side]):
    white = example['image'][..., 0] / 255
    votes = np.zeros(white.shape)
    for view in views_of(white.shape):
      inputs = view.read_rows @ (view.read_columns @ white.T).T
      votes += view.write_rows @ (view.write_columns @ inputs.T).T
    pairs.append((votes > 0.5, example['label']))
  assert_aligned(pairs)


@pytest.mark.parametrize('side', SIDES)
def test_inference_at_a_short_side_is_aligned(side):
  """The protocol of PASS, by the predictor itself."""

  def predict(state, images):
    del state
    return jnp.concatenate([-images[..., :1], images[..., :1]], axis=-1)

  maps = short_side.LabelMaps(
    types.SimpleNamespace(predict=predict), short_side=int(0.8 * side)
  )
  state = train_state.inference_train_state(
    {'params': {}}, sharding.make_mesh()
  )
  pairs = []
  for example in drawn(side, 4):
    height, width = size = example['image'].shape[:2]
    inputs = maps.prepare([example['image']], maps.group(size))
    labels = np.asarray(maps(state, inputs))[0, :height, :width]
    pairs.append((labels, example['label']))
  assert_aligned(pairs)
