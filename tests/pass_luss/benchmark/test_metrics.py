import doctest
import fractions
import functools
import math

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import multihost_utils

from pass_luss.benchmark import metrics
from segcore.eval import metrics as metrics_lib

SIZES = {'S': (0, 5), 'MS': (5, 25), 'ML': (25, 50), 'L': (50, 100)}


def slow_erosion(mask, times):
  """Erodes a mask with zero padding by a 3x3 square, `times` times."""
  height, width = mask.shape
  mask = np.pad(mask, 1)
  for _ in range(times):
    # Pixels outside the padding do not erode (spec §6.2).
    around = np.pad(mask, 1, constant_values=True)
    shifted = [
      around[i : i + height + 2, k : k + width + 2]
      for i in range(3)
      for k in range(3)
    ]
    mask = np.logical_and.reduce(shifted)
  return mask[1:-1, 1:-1]


def slow_boundaries(ids):
  """Returns id + 1 on boundaries and 0 inside, computed mask by mask."""
  height, width = ids.shape
  distance = max(1, round(0.03 * math.sqrt(height**2 + width**2)))
  boundaries = np.zeros(ids.shape, int)
  for c in np.unique(ids):
    mask = ids == c
    boundaries[mask & ~slow_erosion(mask, distance)] = c + 1
  return boundaries


def slow_iou(images, c):
  """Computes the IoU of class c, and its number of labeled pixels."""
  both = predicted = labeled = 0
  for prediction, label in images:
    both += int(((prediction == c) & (label == c)).sum())
    predicted += int((prediction == c).sum())
    labeled += int((label == c).sum())
  return both / (predicted + labeled - both + 1e-10), labeled


def slow_values(images, num_classes):
  """Computes every metric by its definition in spec §6, class by class."""
  pixels, edges, right, f_betas = [], [], [], []
  by_size = {size: [] for size in SIZES}
  edges_by_size = {size: [] for size in SIZES}
  for prediction, label in images:
    label = np.where(label < 0, 1000, label)
    edge_p = slow_boundaries(prediction)[label != 1000]
    edge_t = slow_boundaries(label)[label != 1000]
    p, t = prediction[label != 1000], label[label != 1000]
    pixels.append((p, t))
    # Class ids of boundary pixels; -1 and -2 inside, which never agree.
    edge_p, edge_t = edge_p - 1, np.where(edge_t > 0, edge_t - 1, -2)
    edges.append((edge_p, edge_t))
    areas = [(p == c).sum() for c in range(1, num_classes + 1)]
    best = 1 + int(np.argmax(areas))
    right.append(areas[best - 1] > 0 and (t == best).any())
    both = ((p > 0) & (t > 0)).sum()
    f = fractions.Fraction(0)
    if both:
      precision = fractions.Fraction(int(both), int((p > 0).sum()))
      recall = fractions.Fraction(int(both), int((t > 0).sum()))
      beta = fractions.Fraction(3, 10)
      f = (1 + beta) * precision * recall / (beta * precision + recall)
    f_betas.append(f)
    for size, (above, most) in SIZES.items():
      members = [
        c
        for c in range(1, num_classes + 1)
        if above < math.ceil(100 * (t == c).sum() / max(len(t), 1)) <= most
      ]
      if members:
        kept = np.isin(t, [0, *members])
        by_size[size].append((p[kept], t[kept]))
        edges_by_size[size].append((edge_p[kept], edge_t[kept]))

  def ious(counted):
    return [slow_iou(counted, c)[0] for c in range(num_classes + 1)]

  def split(counted, regions):
    known = [
      slow_iou(counted, c)[0]
      for c in range(num_classes + 1)
      if slow_iou(regions, c)[1]
    ]
    return np.mean(known) if known else np.nan

  return {
    'iou': ious(pixels),
    'boundary_iou': ious(edges),
    'miou': np.mean(ious(pixels)),
    'miou_without_other': np.mean(ious(pixels)[1:]),
    'boundary_miou': np.mean(ious(edges)),
    'image_accuracy': np.mean(right),
    'f_beta': float(sum(f_betas) / len(f_betas)),
    **{f'miou_{s}': split(by_size[s], by_size[s]) for s in SIZES},
    **{
      f'boundary_miou_{s}': split(edges_by_size[s], by_size[s]) for s in SIZES
    },
  }


def drawn(rng, height, width, num_classes):
  """Draws rectangles of many sizes, some of them ignored."""
  label = np.zeros((height, width), np.int16)
  for _ in range(rng.integers(0, 6)):
    top, left = rng.integers(0, height), rng.integers(0, width)
    bottom = rng.integers(top, height) + 1
    right = rng.integers(left, width) + 1
    ignored = rng.random() < 0.2
    label[top:bottom, left:right] = (
      -rng.integers(1, 9) if ignored else rng.integers(0, num_classes + 1)
    )
  return label


@pytest.fixture(scope='module')
def images():
  """Returns maps of many sizes; class 7 is neither labeled nor predicted."""
  rng = np.random.default_rng(0)
  shapes = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 60), (40, 50), (70, 90)]
  shapes += [tuple(rng.integers(1, 80, 2)) for _ in range(25)]
  made = []
  for height, width in shapes:
    label = drawn(rng, height, width, 6)
    prediction = np.where(
      rng.random((height, width)) < 0.05,
      rng.integers(0, 7, (height, width)),
      np.maximum(drawn(rng, height, width, 6), 0),
    )
    if rng.random() < 0.5:
      prediction = np.where(label < 0, 3, label)
      prediction = np.roll(prediction, 1, axis=1)
    made.append((prediction.astype(np.int32), label))
  return made


def counted(images, num_classes=7):
  metric = metrics.ImageNetS.empty(num_classes)
  for prediction, label in images:
    metric = metric.update(prediction, label, b'image')
  return metric


def assert_values(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name], value, rtol=0, atol=1e-12, err_msg=name
    )


def assert_same(a, b):
  np.testing.assert_array_equal(a.regions, b.regions)
  np.testing.assert_array_equal(a.boundaries, b.boundaries)
  assert (a.images, a.num_correct, a.f_beta) == (
    b.images,
    b.num_correct,
    b.f_beta,
  )
  assert a.regions.dtype == b.boundaries.dtype == np.int64


def test_by_hand():
  # 20 x 20 pixels, boundaries of one pixel. Ten rows of class 1, then 'other'.
  label = np.zeros((20, 20), np.int16)
  label[:10] = 1
  prediction = np.zeros((20, 20), np.int32)
  prediction[:5] = 1
  label[19] = -1
  actual = counted([(prediction, label)], 2).compute()
  # Class 1: 100 of 200 pixels; 'other': 180 valid, all actual, 280 predicted.
  np.testing.assert_allclose(
    actual['iou'], [180 / 280, 100 / 200, 0], atol=1e-9
  )
  np.testing.assert_allclose(actual['miou'], (9 / 14 + 1 / 2) / 3)
  np.testing.assert_allclose(actual['miou_without_other'], (1 / 2) / 2)
  # Rings of the rectangles. Label: class 1 has 56, 'other' (rows 10 to 18) 54,
  # as its last row stands beside ignored ones. Prediction: class 1 (rows 0 to
  # 4) has 46, 'other' (rows 5 to 19) 20 + 13 * 2 where the label is valid. Both
  # in class 1: 20 + 4 * 2, in 'other': 9 * 2.
  np.testing.assert_allclose(
    actual['boundary_iou'],
    [18 / (54 + 46 - 18), 28 / (56 + 46 - 28), 0],
    atol=1e-9,
  )
  assert actual['image_accuracy'] == 1
  # P = 1, R = 1/2.
  np.testing.assert_allclose(actual['f_beta'], 1.3 * 0.5 / (0.3 + 0.5))
  # 200 of 380 pixels are 53 %.
  np.testing.assert_allclose(actual['miou_L'], (9 / 14 + 1 / 2) / 2)
  for size in ('S', 'MS', 'ML'):
    assert np.isnan(actual[f'miou_{size}'])
    assert np.isnan(actual[f'boundary_miou_{size}'])


def test_equals_loops(images):
  expected = slow_values(images, 7)
  assert expected['iou'][7] == 0
  assert all(expected[f'miou_{size}'] > 0 for size in SIZES)
  assert_values(counted(images).compute(), expected)


def test_each_image_alone_equals_loops(images):
  for pair in images:
    assert_values(counted([pair]).compute(), slow_values([pair], 7))


def test_noise_of_919_classes():
  rng = np.random.default_rng(1)
  pairs = [
    (
      rng.integers(0, 920, (37, 53)),
      rng.integers(-1, 920, (37, 53)).astype(np.int16),
    )
    for _ in range(2)
  ]
  assert_values(counted(pairs, 919).compute(), slow_values(pairs, 919))


def test_result_does_not_depend_on_the_block_size(images, monkeypatch):
  whole = counted(images)
  monkeypatch.setattr(metrics, '_BLOCK', 7)
  assert_same(counted(images), whole)


@pytest.mark.parametrize('width', [1, 2, 3, 7])
def test_boundaries_equal_masks_minus_their_erosion(images, width):
  for _, ids in images:
    expected = np.zeros(ids.shape, bool)
    for c in np.unique(ids):
      expected |= (ids == c) & ~slow_erosion(ids == c, width)
    np.testing.assert_array_equal(
      metrics.imagenet_s_boundary_mask(ids, width), expected
    )


def test_boundary_width():
  # 0.03 * 50 = 1.5 and 0.03 * 150 = 4.5: to the even number, as in Python.
  assert metrics.imagenet_s_boundary_width(30, 40) == 2
  assert metrics.imagenet_s_boundary_width(90, 120) == 4
  assert metrics.imagenet_s_boundary_width(375, 500) == 19
  assert metrics.imagenet_s_boundary_width(1, 1) == 1


def test_limits_of_object_sizes():
  """20 of 400 pixels, 5 %, are small; 21 are not."""
  for pixels, size in (
    *((1, 'S'), (20, 'S'), (21, 'MS'), (100, 'MS'), (101, 'ML')),
    *((200, 'ML'), (201, 'L'), (400, 'L')),
  ):
    label = np.zeros(400, np.int16)
    label[:pixels] = 1
    label = label.reshape(20, 20)
    actual = counted([(label.astype(np.int32), label)], 1).compute()
    filled = [s for s in SIZES if not np.isnan(actual[f'miou_{s}'])]
    assert filled == [size], pixels


def test_object_size_excludes_ignored_pixels():
  label = np.full((10, 10), -1, np.int16)
  label[0, 0] = 1
  actual = counted([(np.ones((10, 10), np.int32), label)], 1).compute()
  np.testing.assert_allclose(actual['miou_L'], 1)
  assert np.isnan(actual['miou_S'])


def test_images_without_foreground():
  other = np.zeros((4, 4), np.int32)
  one = np.ones((4, 4), np.int32)
  for prediction, label, accuracy, f in (
    *((other, one, 0, 0), (one, other, 0, 0), (other, other, 0, 0)),
    *((one, one, 1, 1), (one, -one, 0, 0)),
  ):
    actual = counted([(prediction, label)], 2).compute()
    assert (actual['image_accuracy'], actual['f_beta']) == (accuracy, f)


def test_first_of_two_largest_classes_decides_image_accuracy():
  prediction = np.array([[2, 2, 1, 1]])
  for label, accuracy in ((1, 1), (2, 0)):
    actual = counted([(prediction, np.full((1, 4), label))], 2).compute()
    assert actual['image_accuracy'] == accuracy


def test_predictions_on_ignored_pixels_do_not_count():
  label = np.array([[0, 1, -1, -7]])
  for filled in (0, 1, 2):
    prediction = np.array([[0, 1, filled, filled]])
    actual = counted([(prediction, label)], 2).compute()
    np.testing.assert_allclose(actual['iou'], [1, 1, 0])
    assert actual['f_beta'] == 1 and actual['image_accuracy'] == 1


def test_perfect_prediction():
  rng = np.random.default_rng(2)
  labels = [np.maximum(drawn(rng, 40, 50, 3), 0) for _ in range(30)]
  actual = counted([(label, label) for label in labels], 3).compute()
  for name in ('miou', 'miou_without_other', 'boundary_miou', 'miou_S'):
    np.testing.assert_allclose(actual[name], 1, err_msg=name)


def test_merged_equals_all_at_once(images):
  whole = counted(images)
  for cut in (0, 1, 5, len(images)):
    parts = counted(images[:cut]), counted(images[cut:])
    assert_same(parts[0].merge(parts[1]), whole)
    assert_same(parts[1].merge(parts[0]), whole)


def test_result_does_not_depend_on_the_order(images):
  assert_same(counted(images[::-1]), counted(images))


def test_merging_over_simulated_hosts(images, monkeypatch):
  """Stacks the arrays of all hosts as process_allgather does."""
  parts = [counted(images[i::3]) for i in range(3)]

  def gather(tree):
    words = [
      {n: metrics_lib.encode_metric_counts(getattr(part, n)) for n in tree}
      for part in parts
    ]
    return {n: np.asarray(jnp.stack([w[n] for w in words])) for n in tree}

  monkeypatch.setattr(metrics_lib.jax, 'process_count', lambda: 3)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  merged = metrics_lib.merge_metrics_across_hosts(parts[1])
  assert_same(merged, functools.reduce(lambda a, b: a.merge(b), parts))
  assert_same(merged, counted(images))


def test_f_is_exact_to_1e_9():
  """Thirds, which have no finite binary fraction."""
  label = np.array([[1, 0, 0]])
  prediction = np.array([[1, 1, 0]])
  metric = counted([(prediction, label)] * 1000, 1)
  # 13 * 1 / (3 * 1 + 10 * 2).
  assert abs(metric.compute()['f_beta'] - 13 / 23) < 1e-12
  exact = fractions.Fraction(13, 23)
  assert abs(fractions.Fraction(metric.f_beta, 2**40) / 1000 - exact) < 5e-13


def test_sums_over_imagenet_do_not_overflow():
  """The sum of F over 1.3 million perfect images fits into int64."""
  metric = counted([(np.ones((1, 1), int), np.ones((1, 1), int))], 1)
  assert 1_300_000 * metric.f_beta < 2**63


@pytest.mark.filterwarnings('error')
def test_no_image_gives_nan_without_a_warning():
  actual = metrics.ImageNetS.empty(3).compute()
  for name, value in actual.items():
    assert np.ndim(value) or np.isnan(value), name
  ignored = -np.ones((2, 2), int)
  actual = counted([(np.zeros((2, 2), int), ignored)], 3).compute()
  assert actual['miou'] == 0 and np.isnan(actual['miou_S'])


def test_implements_the_metric_protocol():
  metric = metrics.ImageNetS.empty(3)
  assert isinstance(metric, metrics_lib.Metric)
  counted([(np.zeros((2, 2), int), np.zeros((2, 2), int))], 3)
  assert metric.images == 0 and metric.regions.sum() == 0


@pytest.fixture
def unchecked():
  """Errors of the metric itself, without the type checks of jaxtyping."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


def test_messages(unchecked):
  def refused(prediction, label):
    with pytest.raises(ValueError) as error:
      counted([(np.array(prediction), np.array(label))], 2)
    return str(error.value)

  assert refused([[0, 3]], [[0, -1]]) == (
    'image image: expected predictions 0…2, got 0…3'
  )
  assert refused([[-1, 1]], [[0, -1]]) == (
    'image image: expected predictions 0…2, got -1…1'
  )
  assert refused([[0, 1]], [[0, 1000]]) == (
    'image image: expected labels 0…2, or negative to ignore, got 1000'
  )
  assert refused([[0, 1]], [[0, 1, 1]]) == (
    'image image: expected a prediction of the size of the label, 1x3, got '
    '1x2: predict at the original size'
  )
  assert refused(np.zeros((0, 2), int), np.zeros((0, 2), int)) == (
    'image image: expected a label of at least one pixel, got 0x2'
  )
  with pytest.raises(
    ValueError, match='num_classes: expected 1 or more, got 0'
  ):
    metrics.ImageNetS.empty(0)
  with pytest.raises(ValueError, match='counts of 2 and 3 classes'):
    metrics.ImageNetS.empty(2).merge(metrics.ImageNetS.empty(3))


def test_doctests():
  assert doctest.testmod(metrics).failed == 0
