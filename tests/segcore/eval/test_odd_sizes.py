"""Windows, flips and scales against a slow loop, at sides of 1, 7 and 33."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from segcore.eval import protocols
from tests.segcore.eval import test_inference as inference_tests

SIDES = (1, 7, 33)
MULTIPLE = 4


def network(image):
  """Computes scores from three pixels of a row, at half the resolution."""
  left = np.concatenate([image[:, :1], image[:, :-1]], axis=1)
  right = np.concatenate([image[:, 1:], image[:, -1:]], axis=1)
  scores = np.concatenate([3 * image - left, 2 * right[..., :1]], axis=-1)
  return scores[::2, ::2]


def network_on_device(images):
  """Computes the same for a batch, in jax."""
  left = jnp.concatenate([images[:, :, :1], images[:, :, :-1]], axis=2)
  right = jnp.concatenate([images[:, :, 1:], images[:, :, -1:]], axis=2)
  scores = jnp.concatenate([3 * images - left, 2 * right[..., :1]], axis=-1)
  return scores[:, ::2, ::2]


def padded(image, size):
  """Pads at the bottom and right by reflection, edges repeated."""
  output = np.zeros((*size, 3))
  for i, j in np.ndindex(*size):
    source = []
    for k, n in zip((i, j), image.shape[:2], strict=True):
      k %= 2 * n
      source.append(k if k < n else 2 * n - 1 - k)
    output[i, j] = image[tuple(source)]
  return output


def scores_of(image):
  """Applies the network to an image padded to multiples, at its pixels."""
  size = tuple(-(-n // MULTIPLE) * MULTIPLE for n in image.shape[:2])
  scores = inference_tests.resized(network(padded(image, size)), size)
  return scores[: image.shape[0], : image.shape[1]]


def starts(length, window, stride):
  """Returns where windows start; the last one ends with the image."""
  positions = [0]
  while positions[-1] + window < length:
    positions.append(min(positions[-1] + stride, length - window))
  return positions


def parts_of(size, options):
  """Returns (top, left, height, width) of each part of an image."""
  height, width = size
  if options.tiling == 'halves' and width > 1:
    middle = width // 2
    return [(0, 0, height, middle), (0, middle, height, width - middle)]
  if options.tiling != 'sliding_window':
    return [(0, 0, height, width)]
  window, stride = options.window, options.stride
  return [
    (top, left, *window)
    for top in starts(height, window[0], stride[0])
    for left in starts(width, window[1], stride[1])
  ]


def placed(image, options):
  """Pads an image to the window; returns it and where the image is in it."""
  size = image.shape[:2]
  canvas_size = np.maximum(size, options.window)
  if options.padding_mode == 'reflection':
    return padded(image, canvas_size), (0, 0)
  canvas = np.zeros((*canvas_size, 3))
  top, left = (int(n - m) // 2 for n, m in zip(canvas_size, size, strict=True))
  canvas[top : top + size[0], left : left + size[1]] = image
  return canvas, (top, left)


def predict(image, options):
  """Returns probabilities [H, W, C] by a loop over scales, flips, parts."""
  total = np.zeros((*image.shape[:2], 4))
  for scale, flip in itertools.product(
    options.scales, (False, True) if options.flip else (False,)
  ):
    size = tuple(max(1, int(n * scale + 0.5)) for n in image.shape[:2])
    # The mirrored image is scaled, not the scaled image mirrored.
    scaled = inference_tests.resized(image[:, ::-1] if flip else image, size)
    canvas, (top, left) = placed(scaled, options)
    sums, counts = np.zeros((*canvas.shape[:2], 4)), np.zeros(canvas.shape[:2])
    for y, x, height, width in parts_of(size, options):
      part = np.s_[y : y + height, x : x + width]
      sums[part] += scores_of(canvas[part])
      counts[part] += 1
    assert counts.min() >= 1
    means = sums / counts[..., None]
    means = means[top : top + size[0], left : left + size[1]]
    votes = inference_tests.resized(means, image.shape[:2])
    total += votes[:, ::-1] if flip else votes
  return inference_tests.softmax(
    total / len(options.scales) / (1 + options.flip)
  )


WINDOWS = {
  'tiling': 'sliding_window',
  'window': (8, 12),
  'stride': (5, 7),
}


OPTIONS = {
  'flip': {'flip': True},
  'halves': {'tiling': 'halves', 'flip': True},
  'windows': WINDOWS,
  # Columns are padded on both sides (zeros here, as the network's input has no
  # color of padding); rows have windows where they are long enough.
  'canvas': {
    'tiling': 'sliding_window',
    'window': (12, 40),
    'stride': (7, 40),
    'padding_mode': 'mean',
    'flip': True,
  },
  'scales': {'scales': (0.5, 1.0, 1.75), 'flip': True},
  'all': {**WINDOWS, 'scales': (0.7, 1.3), 'flip': True},
}


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('size', itertools.product(SIDES, SIDES), ids=str)
def test_maps_of_protocols_equal_a_loop(name, size):
  image = inference_tests.symmetric(inference_tests.photograph(*size))
  options = protocols.ProtocolOptions(**OPTIONS[name])
  votes = np.zeros((*size, 4))
  for view in options.build(MULTIPLE)(size):
    inputs = np.einsum(
      'ih,jw,hwc->ijc',
      view.read_rows.toarray(),
      view.read_columns.toarray(),
      image,
      optimize=True,
    )
    votes += np.einsum(
      'hi,wj,ijc->hwc',
      view.write_rows.toarray(),
      view.write_columns.toarray(),
      inference_tests.resized(network(inputs), view.input_size),
      optimize=True,
    )
  probs = inference_tests.softmax(votes)
  np.testing.assert_allclose(probs, predict(image, options), atol=1e-6)


@pytest.mark.parametrize('size', [(1, 7), (33, 1), (7, 33)], ids=str)
def test_inference_equals_a_loop(size):
  image = inference_tests.photograph(*size)
  expected = predict(
    inference_tests.symmetric(image),
    protocols.ProtocolOptions(**OPTIONS['all']),
  )
  predictor = inference_tests.predictor(
    network_on_device, MULTIPLE, 'probs', **OPTIONS['all']
  )
  probs = inference_tests.predict(predictor, [image])[0]
  np.testing.assert_allclose(probs, expected, atol=2e-5)
