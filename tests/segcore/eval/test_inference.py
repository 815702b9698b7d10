"""Protocols applied to networks whose answers are known."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from input_pipeline import loader, transforms
from runtime import errors, progress
from segcore.distributed import sharding
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics, protocols
from segcore.train import train_state
from tests.segcore.eval import test_protocols
from tests.support import fake_methods as fakes
from u2pl import pseudo_labels

PROTOCOLS = test_protocols.PROTOCOLS
NUM_CLASSES = 4
STATE = train_state.TrainState(0, {}, {}, (), 0)


@dataclasses.dataclass(frozen=True)
class Fake:
  """A method that predicts by a given function of images in [-1, 1]."""

  scores: object

  def init(self, rng, batch_spec, loaded):
    raise NotImplementedError

  def train_step(self, state, batch):
    raise NotImplementedError

  def predict(self, state, images):
    return self.scores(images)


def pointwise(images):
  """Scores of a pixel by its own color."""
  return jnp.concatenate([3 * images, jnp.sum(images, -1, keepdims=True)], -1)


def looks_right(images):
  """Scores that depend on the pixel to the right, at half the resolution."""
  right = jnp.concatenate([images[:, :, 1:], images[:, :, -1:]], axis=2)
  scores = pointwise(images) + 2 * pointwise(right)[..., ::-1]
  return scores[:, ::2, ::2]


def predictor(scores, multiple=1, output='labels', **fields):
  return inference.LabelMaps(
    Fake(scores),
    NUM_CLASSES,
    protocols.ProtocolOptions(**fields),
    multiple,
    output,
  )


def predict(found, images):
  """Predictions of images that share a group."""
  group = found.group(images[0].shape[:2])
  maps = found(STATE, jax.device_put(found.prepare(images, group)))
  return [
    np.asarray(row)[: image.shape[0], : image.shape[1]]
    for row, image in zip(maps, images, strict=True)
  ]


def photograph(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def fields_of(name):
  protocol = PROTOCOLS[name]
  return {
    f.name: getattr(protocol, f.name) for f in dataclasses.fields(protocol)
  }


@pytest.mark.parametrize('average', ['logits', 'probs'])
@pytest.mark.parametrize('name', ['flip', 'halves', 'windows', 'bordered'])
def test_for_a_pointwise_network_every_tiling_is_the_whole_image(name, average):
  image = photograph(45, 70)
  whole = predict(predictor(pointwise, output='probs'), [image])[0]
  fields = {**fields_of(name), 'average': average}
  found = predictor(pointwise, multiple=16, output='probs', **fields)
  np.testing.assert_allclose(predict(found, [image])[0], whole, atol=1e-5)


@pytest.mark.parametrize('average', ['logits', 'probs'])
@pytest.mark.parametrize('name', PROTOCOLS)
@pytest.mark.parametrize('size', [(30, 41), (33, 5), (96, 64)])
def test_a_constant_image_stays_of_one_class(name, average, size):
  image = np.full((*size, 3), (20, 200, 90), np.uint8)
  fields = {**fields_of(name), 'average': average}
  for scores in (pointwise, looks_right):
    found = predict(predictor(scores, 16, **fields), [image])[0]
    assert found.shape == size
    assert np.unique(found).tolist() == [1 if scores is pointwise else 2]


# A slow transcription: each image, view, pixel and class by itself.


def resized(array, size):
  """Bilinear at half-pixel centers, without antialiasing."""
  height, width = array.shape[:2]
  found = np.zeros((*size, array.shape[2]))
  for i in range(size[0]):
    for j in range(size[1]):
      y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
      x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
      y0, x0 = int(y), int(x)
      y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
      dy, dx = y - y0, x - x0
      found[i, j] = (
        (1 - dy) * (1 - dx) * array[y0, x0]
        + (1 - dy) * dx * array[y0, x1]
        + dy * (1 - dx) * array[y1, x0]
        + dy * dx * array[y1, x1]
      )
  return found


def network(image):
  """Scores of an image in [-1, 1], on its own grid of half the resolution."""
  return np.asarray(looks_right(jnp.asarray(image[None], jnp.float32)))[0]


def softmax(scores):
  scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return scores / scores.sum(axis=-1, keepdims=True)


def symmetric(image):
  return np.asarray(batch_lib.to_symmetric(jnp.asarray(image)), np.float64)


def test_scales_with_mirror_images_are_a_slow_loop():
  image = photograph(12, 16)
  total = np.zeros((12, 16, NUM_CLASSES))
  for scale in (0.5, 1.0, 1.5):
    scaled = resized(symmetric(image), (int(12 * scale), int(16 * scale)))
    for mirror in (False, True):
      seen = scaled[:, ::-1] if mirror else scaled
      scores = resized(network(seen), seen.shape[:2])
      scores = resized(scores, (12, 16))
      total += softmax(scores[:, ::-1] if mirror else scores) / 6
  fields = {'scales': (0.5, 1.0, 1.5), 'flip': True, 'average': 'probs'}
  found = predictor(looks_right, 2, 'probs', **fields)
  np.testing.assert_allclose(predict(found, [image])[0], total, atol=1e-5)
  labels = predict(dataclasses.replace(found, output='labels'), [image])[0]
  assert labels.dtype == np.int16
  np.testing.assert_array_equal(labels, total.argmax(axis=-1))


@pytest.mark.parametrize('average', ['logits', 'probs'])
def test_windows_are_a_slow_loop(average):
  image = photograph(11, 18)
  total, count = np.zeros((11, 18, NUM_CLASSES)), np.zeros((11, 18, 1))
  for top in (0, 3):
    for left in (0, 6, 10):
      part = symmetric(image)[top : top + 8, left : left + 8]
      scores = resized(network(part), (8, 8))
      votes = softmax(scores) if average == 'probs' else scores
      total[top : top + 8, left : left + 8] += votes
      count[top : top + 8, left : left + 8] += 1
  total /= count
  expected = total if average == 'probs' else softmax(total)
  found = predictor(
    *(looks_right, 2, 'probs'),
    tiling='sliding_window',
    window=(8, 8),
    stride=(6, 6),
    average=average,
  )
  np.testing.assert_allclose(predict(found, [image])[0], expected, atol=1e-5)


def test_halves_with_mirror_images_are_a_slow_loop():
  """The protocol of Cityscapes (DDeP 6.1)."""
  image = photograph(8, 16)
  parts = []
  for part in (symmetric(image)[:, :8], symmetric(image)[:, 8:]):
    plain = softmax(resized(network(part), (8, 8)))
    mirror = softmax(resized(network(part[:, ::-1]), (8, 8)))[:, ::-1]
    parts.append((plain + mirror) / 2)
  fields = {'tiling': 'halves', 'flip': True, 'average': 'probs'}
  found = predictor(looks_right, 2, 'probs', **fields)
  np.testing.assert_allclose(
    predict(found, [image])[0], np.concatenate(parts, axis=1), atol=1e-5
  )


@pytest.mark.parametrize('name', ['whole', 'flip', 'windows', 'all'])
@pytest.mark.parametrize('average', ['logits', 'probs'])
def test_blocks_of_rows_change_nothing(name, average, monkeypatch):
  image = photograph(50, 40)
  fields = {**fields_of(name), 'average': average}
  whole = predict(predictor(looks_right, 16, **fields), [image])[0]
  # 7 rows at once: the last block is not full.
  monkeypatch.setattr(inference, '_BLOCK_SIZE', 7 * 48 * NUM_CLASSES)
  blocks = predict(predictor(looks_right, 16, **fields), [image])[0]
  np.testing.assert_array_equal(blocks, whole)


@pytest.mark.parametrize('name', ['flip', 'windows', 'all'])
def test_images_that_share_a_canvas_do_not_see_each_other(name):
  fields = {**fields_of(name), 'size_multiple': 64}
  found = predictor(looks_right, 32, **fields)
  images = [photograph(60, 50, 1), photograph(57, 64, 2)]
  assert len({found.group(image.shape[:2]) for image in images}) == 1
  together = predict(found, images)
  for image, prediction in zip(images, together, strict=True):
    alone = predict(predictor(looks_right, 32, **fields_of(name)), [image])[0]
    np.testing.assert_array_equal(prediction, alone)


RAGGED = [(30, 600), (600, 33), (31, 47), (257, 300), (45, 45), (46, 46)]


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'tiling': 'halves', 'flip': True},
    {'tiling': 'sliding_window', 'window': (256, 256), 'stride': (171, 171)},
    {'scales': (0.5, 1.25), 'average': 'probs', 'antialias': True},
  ],
)
def test_ragged_sizes_in_one_evaluation(fields):
  split = fakes.labeled_split(RAGGED)
  options = protocols.ProtocolOptions(size_multiple=64, **fields)
  found = inference.LabelMaps(
    Fake(lambda images: pointwise(images)[..., :3]), 3, options, 16
  )
  mesh = sharding.make_mesh()
  predictions = evaluator_lib.Predictions(
    split, found, 8, mesh, keep=('label',)
  )
  evaluator = evaluator_lib.Evaluator(
    predictions, (metrics.ConfusionMatrix.empty(fakes.NUM_CLASSES),), 'label', 3
  )
  seen, shared, either = [], np.zeros(5), np.zeros(5)
  state = jax.device_put(STATE, sharding.replicated(mesh))
  for prediction, example in predictions(state):
    seen.append(example['id'])
    assert prediction.shape == example['label'].shape
    for c in range(fakes.NUM_CLASSES):
      truth = example['label'] == c
      guess = (prediction == c) & (example['label'] >= 0)
      shared[c] += np.sum(truth & guess)
      either[c] += np.sum(truth | guess)
  assert sorted(seen) == sorted(i.encode() for i in split.ids())
  values, panel = evaluator(state)
  assert dataclasses.replace(evaluator, num_pictures=0)(state).panel is None
  iou = shared[: fakes.NUM_CLASSES] / either[: fakes.NUM_CLASSES]
  assert values['miou'] == pytest.approx(np.nanmean(iou), abs=1e-12)
  assert panel.dtype == np.uint8


def test_scores_are_enlarged_as_in_the_training_of_u2pl():
  """By corners on corners, for one image and for the export of it."""
  image = photograph(33, 49)
  images = jnp.asarray(image[None])
  found = predictor(lambda x: pointwise(x)[:, ::4, ::4], align_corners=True)
  scores = found.method.predict(STATE, batch_lib.to_symmetric(images))
  expected = jnp.argmax(pseudo_labels.upsample(scores, (33, 49)), axis=-1)
  np.testing.assert_array_equal(predict(found, [image])[0], expected[0])
  label = jax.jit(functools.partial(found.label, STATE))
  np.testing.assert_array_equal(label(images), expected)
  other = predictor(lambda x: pointwise(x)[:, ::4, ::4])
  assert (predict(other, [image])[0] != expected[0]).any()


BORDERED = {
  'tiling': 'sliding_window',
  'window': (32, 32),
  'stride': (32, 32),
  'padding_mode': 'mean',
}


def test_what_is_around_a_small_image_is_the_mean_color():
  seen = []

  def watched(images):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
    return pointwise(images)

  image = photograph(21, 32)
  predict(predictor(watched, **BORDERED), [image])
  framed = transforms.CenterCrop((32, 32), 'paper')({'image': image})
  jax.effects_barrier()
  np.testing.assert_allclose(seen[0][0], symmetric(framed['image']), atol=1e-6)


def test_a_frame_is_scored_as_class_0():
  split = fakes.labeled_split([(20, 32), (32, 9), (32, 32)])
  found = inference.LabelMaps(
    Fake(lambda images: pointwise(images)[..., :3]),
    *(3, protocols.ProtocolOptions(size_multiple=32, **BORDERED), 1),
  )
  mesh = sharding.make_mesh()
  frame = transforms.CenterCrop((32, 32), 'paper')
  state = jax.device_put(STATE, sharding.replicated(mesh))
  whole, framed = (
    evaluator_lib.Predictions(split, found, 8, mesh, ('label',), padding=each)
    for each in (None, frame)
  )
  own = {example['id']: guess for guess, example in whole(state)}
  for guess, example in framed(state):
    top, left = ((32 - n) // 2 for n in own[example['id']].shape)
    height, width = own[example['id']].shape
    inside = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(guess[inside], own[example['id']])
    assert example['label'].shape == guess.shape == (32, 32)
    border = np.ones((32, 32), bool)
    border[inside] = False
    assert (example['label'][border] == 0).all()


def test_images_larger_than_the_frame_are_refused():
  found = predictor(pointwise, **BORDERED)
  predictions = evaluator_lib.Predictions(
    *(fakes.labeled_split([(20, 33)]), found, 8, sharding.make_mesh()),
    padding=transforms.CenterCrop((32, 32), 'paper'),
  )
  with pytest.raises(errors.UserError, match='20 x 33, expected at most'):
    predictions.local_count()


def test_worker_processes_are_for_training_only():
  split = fakes.labeled_split([(30, 30)] * 3)
  mesh = sharding.make_mesh()
  found = inference.LabelMaps(
    Fake(lambda images: images), 3, protocols.ProtocolOptions(flip=True), 16
  )
  state = jax.device_put(STATE, sharding.replicated(mesh))
  reading = loader.ReadOptions(workers=1)
  predictions = evaluator_lib.Predictions(
    split, found, 8, mesh, reading=reading
  )
  assert len(list(predictions(state))) == 3
  # Each batch is a sign of life.
  assert progress.last_activity().what == f'batch 1 of {split.name}'


def test_two_metrics_may_not_share_a_name():
  split = fakes.labeled_split([(30, 30)])
  mesh = sharding.make_mesh()
  found = inference.LabelMaps(
    Fake(lambda images: images), 3, protocols.ProtocolOptions(), 16
  )
  predictions = evaluator_lib.Predictions(
    split, found, 8, mesh, keep=('label',)
  )
  matrix = metrics.ConfusionMatrix.empty(fakes.NUM_CLASSES)
  evaluator = evaluator_lib.Evaluator(predictions, (matrix, matrix), 'label')
  with pytest.raises(ValueError, match="two metrics give a value named 'miou'"):
    evaluator(jax.device_put(STATE, sharding.replicated(mesh)))


def test_919_classes_at_1000_by_1333_stay_under_2_gb():
  """All scores at once would be 4.9 GB."""
  found = subprocess.run(
    [sys.executable, '-c', _LARGE],
    capture_output=True,
    text=True,
    check=True,
    # The flags of the tests make large programs slow.
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  shape, peak = found.stdout.split('|')
  assert shape == '(1, 1024, 1344)'
  assert int(peak) * 1024 < 2e9


# The peak of getrusage may be that of the process which started it.
_LARGE = """
import pathlib, re, jax, numpy as np
from segcore.eval import inference, protocols
from tests.segcore.eval import test_inference as here

def coarse(images):
  return jax.random.normal(jax.random.PRNGKey(0), (1, 32, 42, 919))

protocol = protocols.ProtocolOptions(flip=True, average='probs')
found = inference.LabelMaps(here.Fake(coarse), 919, protocol, 32)
image = np.zeros((1000, 1333, 3), np.uint8)
maps = found(here.STATE, found.prepare([image], found.group((1000, 1333))))
shape = jax.block_until_ready(maps).shape
status = pathlib.Path('/proc/self/status').read_text()
print(shape, re.search(r'VmHWM:\\s+(\\d+) kB', status)[1], sep='|')
"""
