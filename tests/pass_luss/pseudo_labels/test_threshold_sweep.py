"""The choice of a threshold against labeling at each of them."""

import numpy as np

from pass_luss.pseudo_labels import threshold_sweep
from tests.pass_luss import support
from tests.transcriptions import pass_benchmark


def test_sweep_equals_labeling_at_each_threshold():
  rng = np.random.default_rng(0)
  thresholds = threshold_sweep.THRESHOLDS
  sweep = threshold_sweep.ThresholdSweep.empty(support.CLASSES, support.CLASSES)
  images = []
  for i in range(2 * support.CLASSES):
    # One class an image, so that categories are matched to other numbers.
    label = rng.integers(-1, 2, (5, 6)) * (1 + i % support.CLASSES)
    label[label < 0] = -1
    agrees = rng.random(label.shape) < 0.95
    categories = np.where(
      agrees & (label > 0),
      label % support.CLASSES + 1,
      rng.integers(1, 5, (5, 6)),
    )
    attention = np.where(label > 0, 0.35, 0.0) + 0.6 * rng.random((5, 6))
    sweep.update(categories, attention, label)
    images.append((categories, attention, label))
  expected, by_name = [], []
  for threshold in thresholds:
    predictions = [
      np.where(attention < threshold, 0, categories)
      for categories, attention, _ in images
    ]
    truths = [np.where(d[2] < 0, 1000, d[2]) for d in images]
    matrix = pass_benchmark.matching_matrix(
      predictions, truths, support.CLASSES
    )
    match = pass_benchmark.hungarian(matrix)
    matched = [pass_benchmark.apply_matching(x, match) for x in predictions]
    for each, values in ((matched, expected), (predictions, by_name)):
      values.append(pass_benchmark.miou(each, truths, support.CLASSES) / 100)
  threshold, miou = sweep.best(by_name=True)
  assert threshold == thresholds[int(np.argmax(by_name))]
  np.testing.assert_allclose(miou, max(by_name), rtol=1e-9)
  # Categories are the classes in another order: by name they are worse.
  assert miou < max(expected)
  threshold, miou = sweep.best()
  assert threshold == thresholds[int(np.argmax(expected))]
  np.testing.assert_allclose(miou, max(expected), rtol=1e-9)
  assert max(expected) - min(expected) > 0.02


def test_objects_are_compared_with_the_background_pixel_by_pixel():
  rng = np.random.default_rng(0)
  sweep = threshold_sweep.ThresholdSweep.empty(3, 3)
  assert sweep.foreground_auc() is None
  attended = {True: [], False: []}
  for _ in range(4):
    label = rng.integers(-1, 4, (5, 6))
    attention = np.where(label > 0, 0.3, 0.5) + 0.4 * rng.random(label.shape)
    sweep.update(rng.integers(1, 4, label.shape), attention, label)
    for is_object in (True, False):
      pixels = attention[label > 0 if is_object else label == 0]
      # In hundredths; 0.8 and more are one.
      attended[is_object].extend(np.minimum(np.floor(pixels * 100), 80))
  higher = [
    (a > b) + (a == b) / 2 for a in attended[True] for b in attended[False]
  ]
  assert 0.1 < np.mean(higher) < 0.4
  np.testing.assert_allclose(sweep.foreground_auc(), np.mean(higher), rtol=1e-9)
  every = attended[True] + attended[False]
  for threshold in (0.0, 0.45, 0.8):
    assert sweep.count_foreground(threshold) == sum(
      x >= round(100 * threshold) for x in every
    )


def test_objects_alone_cannot_be_compared_with_a_background():
  sweep = threshold_sweep.ThresholdSweep.empty(3, 3)
  sweep.update(np.ones((2, 2), int), np.ones((2, 2)), np.ones((2, 2), int))
  assert sweep.foreground_auc() is None


def test_counts_of_hosts_are_merged(monkeypatch):
  rng = np.random.default_rng(0)
  images = [
    (
      rng.integers(1, 8, (4, 5)),
      rng.random((4, 5)),
      rng.integers(-1, 10, (4, 5)),
    )
    for _ in range(6)
  ]

  def count(part):
    sweep = threshold_sweep.ThresholdSweep.empty(7, 9)
    for image in part:
      sweep.update(*image)
    return sweep

  whole, hosts = count(images), (count(images[:5]), count(images[5:]))
  most = max(np.count_nonzero(each.pairs >= 0) for each in hosts)
  monkeypatch.setattr(threshold_sweep.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    threshold_sweep.multihost_utils, 'process_allgather', lambda _: [3, most]
  )
  received = []
  monkeypatch.setattr(
    threshold_sweep.metrics,
    'merge_metrics_across_hosts',
    lambda sweep: received.append(sweep) or sweep,
  )
  for each in hosts:
    each.merge_across_hosts()
  assert [each.pixels.shape for each in received] == [(most, 82)] * 2
  merged = received[0].merge(received[1])

  def rows_of(sweep, name):
    order = np.argsort(sweep.pairs)
    return getattr(sweep, name)[order[sweep.pairs[order] >= 0]]

  for name in ('pairs', 'pixels', 'images'):
    np.testing.assert_array_equal(rows_of(merged, name), rows_of(whole, name))
  assert merged.best() == whole.best()
  labeled = sum(np.count_nonzero(label >= 0) for _, _, label in images)
  assert whole.pixels.sum() == labeled
