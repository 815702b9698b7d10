"""Inference by protocols, with networks whose scores are known."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from input_pipeline import batch as batch_lib
from input_pipeline import loader, transforms
from runtime import errors, progress
from segcore.distributed import sharding
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics, protocols, view_maps
from segcore.train import train_state
from tests.segcore.eval import test_protocols
from tests.support import fake_data
from u2pl import pseudo_labels

PROTOCOLS = test_protocols.PROTOCOLS
NUM_CLASSES = 4
STATE = train_state.TrainState(0, {}, {}, (), 0)


@dataclasses.dataclass(frozen=True)
class FakeMethod:
  """A method that predicts by a given function of images in [-1, 1]."""

  scores: object

  def init(self, rng, batch_spec, loaded):
    raise NotImplementedError

  def train_step(self, state, batch):
    raise NotImplementedError

  def predict(self, state, images):
    return self.scores(images)


def pointwise(images):
  """Computes scores of a pixel from its own color."""
  return jnp.concatenate([3 * images, jnp.sum(images, -1, keepdims=True)], -1)


def neighbor(images):
  """Computes scores from a pixel and its right neighbor, at half resolution."""
  right = jnp.concatenate([images[:, :, 1:], images[:, :, -1:]], axis=2)
  scores = pointwise(images) + 2 * pointwise(right)[..., ::-1]
  return scores[:, ::2, ::2]


NEIGHBOR = jax.jit(neighbor)
POINTWISE = jax.jit(pointwise)
TO_SYMMETRIC = jax.jit(batch_lib.batch_images_to_symmetric)


def predictor(scores, multiple=1, output='labels', **fields):
  return inference.LabelMaps(
    FakeMethod(scores),
    NUM_CLASSES,
    protocols.ProtocolOptions(**fields),
    multiple,
    output,
  )


def predict(label_maps, images):
  """Predicts images that share a group."""
  group = label_maps.group(images[0].shape[:2])
  maps = label_maps(STATE, jax.device_put(label_maps.prepare(images, group)))
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
@pytest.mark.parametrize('name', ['flip', 'halves', 'windows', 'padded'])
def test_every_tiling_of_a_pointwise_network_equals_the_whole_image(
  name, average
):
  image = photograph(45, 70)
  whole = predict(predictor(pointwise, output='probs'), [image])[0]
  fields = {**fields_of(name), 'average': average}
  tiled = predictor(pointwise, multiple=16, output='probs', **fields)
  np.testing.assert_allclose(predict(tiled, [image])[0], whole, atol=1e-5)


@pytest.mark.parametrize(
  ('scores', 'average', 'expected', 'size'),
  [
    (pointwise, 'logits', 1, (33, 5)),
    (neighbor, 'probs', 2, (30, 41)),
    (neighbor, 'probs', 2, (33, 5)),
    pytest.param(neighbor, 'probs', 2, (64, 48), marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('name', PROTOCOLS)
def test_a_constant_image_has_one_class(name, scores, average, expected, size):
  image = np.full((*size, 3), (20, 200, 90), np.uint8)
  fields = {**fields_of(name), 'average': average}
  labels = predict(predictor(scores, 16, **fields), [image])[0]
  assert labels.shape == size
  assert np.unique(labels).tolist() == [expected]


# A reference in numpy: a loop over images, views, pixels and classes.


def resized(array, size):
  """Resizes bilinearly at half-pixel centers, without antialiasing."""
  height, width = array.shape[:2]
  output = np.zeros((*size, array.shape[2]))
  for i in range(size[0]):
    for j in range(size[1]):
      y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
      x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
      y0, x0 = int(y), int(x)
      y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
      dy, dx = y - y0, x - x0
      output[i, j] = (
        (1 - dy) * (1 - dx) * array[y0, x0]
        + (1 - dy) * dx * array[y0, x1]
        + dy * (1 - dx) * array[y1, x0]
        + dy * dx * array[y1, x1]
      )
  return output


def network(image):
  """Computes scores of an image in [-1, 1], at half its resolution."""
  return np.asarray(NEIGHBOR(image[None].astype(np.float32)))[0]


def softmax(scores):
  scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return scores / scores.sum(axis=-1, keepdims=True)


def symmetric(image):
  return np.asarray(TO_SYMMETRIC(image), np.float64)


def test_scales_and_flips_equal_a_loop():
  image = photograph(12, 16)
  total = np.zeros((12, 16, NUM_CLASSES))
  for scale in (0.5, 1.0, 1.5):
    scaled = resized(symmetric(image), (int(12 * scale), int(16 * scale)))
    for flip in (False, True):
      inputs = scaled[:, ::-1] if flip else scaled
      scores = resized(network(inputs), inputs.shape[:2])
      scores = resized(scores, (12, 16))
      total += softmax(scores[:, ::-1] if flip else scores) / 6
  fields = {'scales': (0.5, 1.0, 1.5), 'flip': True, 'average': 'probs'}
  label_maps = predictor(neighbor, 2, 'probs', **fields)
  probs = predict(label_maps, [image])[0]
  np.testing.assert_allclose(probs, total, atol=1e-5)
  label_maps = dataclasses.replace(label_maps, output='labels')
  labels = predict(label_maps, [image])[0]
  assert labels.dtype == np.int16
  np.testing.assert_array_equal(labels, total.argmax(axis=-1))


@pytest.mark.parametrize('flip', [False, True])
def test_the_maximum_over_scales_equals_a_loop(flip):
  """At the cells of the first scale, after the long side was resized."""
  image, size = photograph(11, 18), (9, 16)  # 9.78 is rounded down.
  small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
  maxima = []
  for scaled in ((8, 16), (4, 8), (12, 24)):  # Divisors of a size of 2.
    inputs = resized(symmetric(small), scaled)
    scores = network(inputs)
    if flip:
      scores = (scores + network(inputs[:, ::-1])[:, ::-1]) / 2
    maxima.append(resized(scores, (4, 8)))
  # Straight to the image, as in the released code of AFA.
  expected = softmax(resized(np.max(maxima, axis=0), image.shape[:2]))
  fields = {'scales': (1.0, 0.5, 1.5), 'flip': flip, 'scale_merge': 'max'}
  label_maps = predictor(neighbor, 2, 'probs', long_side=16, **fields)
  probs = predict(label_maps, [image])[0]
  np.testing.assert_allclose(probs, expected, atol=2e-5)


@pytest.mark.parametrize('size', [(24, 37), (37, 24), (5, 9)])
def test_a_short_side_equals_a_loop(size):
  """The image is resized, padded by reflection, and its scores enlarged."""
  image = photograph(*size)
  small = tuple(n * 8 // min(size) for n in size)
  shrunk = np.asarray(
    PIL.Image.fromarray(image).resize(
      small[::-1], PIL.Image.Resampling.BILINEAR
    )
  )
  total = np.zeros((*size, NUM_CLASSES))
  for flip in (False, True):
    inputs = symmetric(shrunk)[:, ::-1] if flip else symmetric(shrunk)
    odd = small[1] % 2
    padded = np.pad(inputs, [(0, small[0] % 2), (0, odd), (0, 0)], 'symmetric')
    scores = resized(network(padded), padded.shape[:2])
    scores = resized(scores[: small[0], : small[1]], size)
    total += (scores[:, ::-1] if flip else scores) / 2
  label_maps = predictor(neighbor, 2, 'probs', short_side=8, flip=True)
  probs = predict(label_maps, [image])[0]
  np.testing.assert_allclose(probs, softmax(total), atol=2e-5)
  single = predictor(pointwise, 2, short_side=8, size_multiple=64)
  labels = predict(single, [image, image])
  np.testing.assert_array_equal(
    labels[1], resized(network_of_points(shrunk), size).argmax(axis=-1)
  )


@pytest.mark.parametrize(
  ('size', 'sides', 'small'),
  [
    ((16, 32), (16, 8), (8, 16)),  # As 1024x2048 is resized to 512x1024.
    ((21, 38), (16, 9), (9, 16)),
    ((38, 21), (16, 8), (14, 8)),
    ((6, 9), (20, 20), (13, 20)),  # Enlarged, and padded by reflection.
  ],
)
def test_sides_to_fit_equal_a_loop(size, sides, small):
  """Scores are enlarged twice: to the resized image, then to the image."""
  image = photograph(*size)
  # An image of 8 bits again, as by OpenCV, whose weights have 11 bits.
  shrunk = cv2.resize(image, small[::-1], interpolation=cv2.INTER_LINEAR)
  by_hand = resized(image.astype(float), small)
  assert np.abs(shrunk - by_hand).max() < 1
  padding = [(0, n % 2) for n in small]
  padded = np.pad(symmetric(shrunk), [*padding, (0, 0)], 'symmetric')
  scores = resized(network(padded), padded.shape[:2])
  scores = resized(scores[: small[0], : small[1]], size)
  label_maps = predictor(neighbor, 2, 'probs', fit_sides=sides)
  probs = predict(label_maps, [image])[0]
  np.testing.assert_allclose(probs, softmax(scores), atol=2e-5)
  labels = predict(dataclasses.replace(label_maps, output='labels'), [image])[0]
  np.testing.assert_array_equal(labels, scores.argmax(axis=-1))


def network_of_points(image):
  return np.asarray(POINTWISE(symmetric(image)[None]))[0]


@pytest.mark.parametrize('average', ['logits', 'probs'])
def test_windows_equal_a_loop(average):
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
  label_maps = predictor(
    neighbor,
    2,
    'probs',
    tiling='sliding_window',
    window=(8, 8),
    stride=(6, 6),
    average=average,
  )
  probs = predict(label_maps, [image])[0]
  np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_halves_and_flips_equal_a_loop():
  """Checks the protocol of Cityscapes (DDeP, Sec. 6.1)."""
  image = photograph(8, 16)
  parts = []
  for part in (symmetric(image)[:, :8], symmetric(image)[:, 8:]):
    plain = softmax(resized(network(part), (8, 8)))
    flipped = softmax(resized(network(part[:, ::-1]), (8, 8)))[:, ::-1]
    parts.append((plain + flipped) / 2)
  fields = {'tiling': 'halves', 'flip': True, 'average': 'probs'}
  label_maps = predictor(neighbor, 2, 'probs', **fields)
  np.testing.assert_allclose(
    predict(label_maps, [image])[0], np.concatenate(parts, axis=1), atol=1e-5
  )


@pytest.mark.parametrize(
  ('name', 'average'),
  [
    ('whole', 'logits'),
    ('flip', 'probs'),
    ('windows', 'logits'),
    ('all', 'probs'),
  ],
)
def test_blocks_of_rows_change_nothing(name, average, monkeypatch):
  image = photograph(50, 40)
  fields = {**fields_of(name), 'average': average}
  whole = predict(predictor(neighbor, 16, **fields), [image])[0]
  # 7 rows at once: the last block is not full.
  monkeypatch.setattr(view_maps, '_BLOCK_SIZE', 7 * 48 * NUM_CLASSES)
  blocks = predict(predictor(neighbor, 16, **fields), [image])[0]
  np.testing.assert_array_equal(blocks, whole)


@pytest.mark.parametrize(
  'name', ['flip', 'windows', pytest.param('all', marks=pytest.mark.slow)]
)
def test_predictions_do_not_depend_on_the_rest_of_the_batch(name):
  fields = {**fields_of(name), 'size_multiple': 64}
  label_maps = predictor(neighbor, 32, **fields)
  images = [photograph(60, 50, 1), photograph(57, 64, 2)]
  assert len({label_maps.group(image.shape[:2]) for image in images}) == 1
  predictions = predict(label_maps, images)
  for image, prediction in zip(images, predictions, strict=True):
    alone = predict(predictor(neighbor, 32, **fields_of(name)), [image])[0]
    np.testing.assert_array_equal(prediction, alone)


SIZES = [(30, 150), (150, 33), (31, 47), (97, 110), (45, 45), (46, 46)]


@pytest.mark.parametrize(
  'fields',
  [
    {},
    pytest.param({'tiling': 'halves', 'flip': True}, marks=pytest.mark.slow),
    {'tiling': 'sliding_window', 'window': (96, 96), 'stride': (64, 64)},
    {'scales': (0.5, 1.25), 'average': 'probs', 'antialias': True},
  ],
)
def test_one_evaluation_of_images_of_many_sizes(fields):
  split = fake_data.labeled_split(SIZES)
  options = protocols.ProtocolOptions(size_multiple=64, **fields)
  predictor = inference.LabelMaps(
    FakeMethod(lambda images: pointwise(images)[..., :3]), 3, options, 16
  )
  mesh = sharding.make_mesh()
  predictions = evaluator_lib.Predictions(
    split, predictor, 8, mesh, keep=('label',)
  )
  evaluator = evaluator_lib.Evaluator(
    predictions,
    (metrics.ConfusionMatrix.empty(fake_data.NUM_CLASSES),),
    'label',
    3,
  )
  ids, intersection, union = [], np.zeros(5), np.zeros(5)
  state = jax.device_put(STATE, sharding.replicated_sharding(mesh))
  for prediction, example in predictions(state):
    ids.append(example['id'])
    assert prediction.shape == example['label'].shape
    for c in range(fake_data.NUM_CLASSES):
      truth = example['label'] == c
      predicted = (prediction == c) & (example['label'] >= 0)
      intersection[c] += np.sum(truth & predicted)
      union[c] += np.sum(truth | predicted)
  assert sorted(ids) == sorted(i.encode() for i in split.ids())
  values, panel = evaluator(state)
  assert dataclasses.replace(evaluator, num_pictures=0)(state).panel is None
  iou = intersection[: fake_data.NUM_CLASSES] / union[: fake_data.NUM_CLASSES]
  assert values['miou'] == pytest.approx(np.nanmean(iou), abs=1e-12)
  assert panel.dtype == np.uint8


def test_scores_are_upsampled_as_in_training_of_u2pl():
  """Checks align_corners, in inference and in export."""
  image = photograph(33, 49)
  images = jnp.asarray(image[None])
  label_maps = predictor(
    lambda x: pointwise(x)[:, ::4, ::4], align_corners=True
  )
  scores = label_maps.method.predict(
    STATE, batch_lib.batch_images_to_symmetric(images)
  )
  expected = jnp.argmax(
    pseudo_labels.upsample_teacher_scores(scores, (33, 49)), axis=-1
  )
  labels = predict(label_maps, [image])[0]
  np.testing.assert_array_equal(labels, expected[0])
  label = jax.jit(functools.partial(label_maps.label, STATE))
  np.testing.assert_array_equal(label(images), expected)
  other = predictor(lambda x: pointwise(x)[:, ::4, ::4])
  assert (predict(other, [image])[0] != expected[0]).any()


MEAN_PADDED = {
  'tiling': 'sliding_window',
  'window': (32, 32),
  'stride': (32, 32),
  'padding_mode': 'mean',
}


def test_small_images_are_padded_with_the_mean_color():
  inputs = []

  def recording(images):
    jax.debug.callback(lambda x: inputs.append(np.asarray(x)), images)
    return pointwise(images)

  image = photograph(21, 32)
  predict(predictor(recording, **MEAN_PADDED), [image])
  padded = transforms.CenterCrop((32, 32), 'paper')({'image': image})
  jax.effects_barrier()
  expected = symmetric(padded['image'])
  np.testing.assert_allclose(inputs[0][0], expected, atol=1e-6)


def test_padding_of_an_evaluation_has_class_0():
  split = fake_data.labeled_split([(20, 32), (32, 9), (32, 32)])
  predictor = inference.LabelMaps(
    FakeMethod(lambda images: pointwise(images)[..., :3]),
    3,
    protocols.ProtocolOptions(size_multiple=32, **MEAN_PADDED),
    1,
  )
  mesh = sharding.make_mesh()
  padding = transforms.CenterCrop((32, 32), 'paper')
  state = jax.device_put(STATE, sharding.replicated_sharding(mesh))
  unpadded, padded = (
    evaluator_lib.Predictions(
      split, predictor, 8, mesh, ('label',), padding=each
    )
    for each in (None, padding)
  )
  labels = {example['id']: label for label, example in unpadded(state)}
  for prediction, example in padded(state):
    expected = labels[example['id']]
    top, left = ((32 - n) // 2 for n in expected.shape)
    height, width = expected.shape
    inside = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(prediction[inside], expected)
    assert example['label'].shape == prediction.shape == (32, 32)
    outside = np.ones((32, 32), bool)
    outside[inside] = False
    assert (example['label'][outside] == 0).all()


def test_images_larger_than_the_padded_size_are_refused():
  predictions = evaluator_lib.Predictions(
    fake_data.labeled_split([(20, 33)]),
    predictor(pointwise, **MEAN_PADDED),
    8,
    sharding.make_mesh(),
    padding=transforms.CenterCrop((32, 32), 'paper'),
  )
  with pytest.raises(
    errors.UserError, match='at most 32 x 32 pixels, .* got one of 20 x 33'
  ):
    predictions.local_count()


def test_evaluation_uses_no_worker_processes():
  split = fake_data.labeled_split([(30, 30)] * 3)
  mesh = sharding.make_mesh()
  predictor = inference.LabelMaps(
    FakeMethod(lambda images: images),
    3,
    protocols.ProtocolOptions(flip=True),
    16,
  )
  state = jax.device_put(STATE, sharding.replicated_sharding(mesh))
  reading = loader.ReadOptions(workers=1)
  predictions = evaluator_lib.Predictions(
    split, predictor, 8, mesh, reading=reading
  )
  assert len(list(predictions(state))) == 3
  # Each batch is recorded as activity.
  assert progress.last_activity().what == f'batch 1 of {split.name}'


def test_metrics_with_equal_names_are_refused():
  split = fake_data.labeled_split([(30, 30)])
  mesh = sharding.make_mesh()
  predictor = inference.LabelMaps(
    FakeMethod(lambda images: images), 3, protocols.ProtocolOptions(), 16
  )
  predictions = evaluator_lib.Predictions(
    split, predictor, 8, mesh, keep=('label',)
  )
  matrix = metrics.ConfusionMatrix.empty(fake_data.NUM_CLASSES)
  evaluator = evaluator_lib.Evaluator(predictions, (matrix, matrix), 'label')
  with pytest.raises(ValueError, match="different names, got 'miou' twice"):
    evaluator(jax.device_put(STATE, sharding.replicated_sharding(mesh)))
