import doctest
import functools
import os
import socket
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import multihost_utils

from segcore.eval import metrics


def reference_values(images, num_classes):
  """Computes the four values from sets of pixels, class by class."""
  label = np.concatenate([label.ravel() for _, label in images])
  prediction = np.concatenate([pixels.ravel() for pixels, _ in images])
  pixels = [(p, t) for p, t in zip(prediction, label, strict=True) if t >= 0]
  ious, accuracies = [], []
  for c in range(num_classes):
    both = sum(p == c and t == c for p, t in pixels)
    either = sum(p == c or t == c for p, t in pixels)
    labeled = sum(t == c for _, t in pixels)
    ious.append(both / either if either else float('nan'))
    if labeled:
      accuracies.append(both / labeled)
  known = [iou for iou in ious if iou == iou]
  return {
    'miou': sum(known) / len(known),
    'pixel_accuracy': sum(p == t for p, t in pixels) / len(pixels),
    'mean_class_accuracy': sum(accuracies) / len(accuracies),
    'iou': ious,
  }


@pytest.fixture
def unchecked():
  """Turns jaxtyping's checks off, so that the metric's own checks run."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


@pytest.fixture
def images():
  """Five images of many sizes: class 5 is absent, 4 is only predicted."""
  rng = np.random.default_rng(0)
  made = []
  for height, width in ((3, 4), (5, 2), (1, 1), (6, 6), (2, 7)):
    label = rng.integers(-3, 4, (height, width)).astype(np.int16)
    prediction = rng.integers(0, 5, (height, width)).astype(np.int32)
    made.append((prediction, label))
  return made


def updated(metric, images):
  for prediction, label in images:
    metric = metric.update(prediction, label, b'image')
  return metric


def test_confusion_matrix_equals_values_by_hand():
  label = np.array([[0, 0, 0, 1], [1, -1, -9, 2]])
  prediction = np.array([[0, 0, 1, 1], [0, 2, 0, 0]])
  metric = metrics.ConfusionMatrix.empty(4).update(prediction, label, 'a')
  np.testing.assert_array_equal(
    metric.counts, [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
  )
  values = metric.compute()
  # Unions 5, 3, 1, 0.
  np.testing.assert_allclose(values['iou'], [2 / 5, 1 / 3, 0.0, np.nan])
  np.testing.assert_allclose(values['miou'], (2 / 5 + 1 / 3 + 0) / 3)
  np.testing.assert_allclose(values['pixel_accuracy'], 3 / 6)
  np.testing.assert_allclose(
    values['mean_class_accuracy'], (2 / 3 + 1 / 2 + 0) / 3
  )


def test_confusion_matrix_equals_loop_over_pixels(images):
  values = updated(metrics.ConfusionMatrix.empty(6), images).compute()
  expected = reference_values(images, 6)
  assert np.isnan(expected['iou'][5]) and expected['iou'][4] == 0.0
  assert values.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, err_msg=name)


def test_merging_equals_counting_all_images(images):
  empty = metrics.ConfusionMatrix.empty(6)
  whole = updated(empty, images)
  for cut in range(len(images) + 1):
    merged = updated(empty, images[:cut]).merge(updated(empty, images[cut:]))
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.counts.dtype == np.int64


def test_update_does_not_change_the_metric(images):
  metric = metrics.ConfusionMatrix.empty(6)
  updated(metric, images)
  assert metric.counts.sum() == 0


@pytest.mark.filterwarnings('error')
def test_no_labeled_pixel_is_nan_without_warning():
  metric = metrics.ConfusionMatrix.empty(3)
  metric = metric.update(np.zeros((2, 2), int), -np.ones((2, 2), int), 'a')
  metric = metric.update(np.zeros((0, 2), int), np.zeros((0, 2), int), 'b')
  values = metric.compute()
  for name in ('miou', 'pixel_accuracy', 'mean_class_accuracy'):
    assert np.isnan(values[name]), name
  assert np.isnan(values['iou']).all()


def test_class_ids_whose_product_overflows_int16():
  label = np.full((1, 2), 918, np.int16)
  prediction = np.array([[918, 917]], np.int16)
  metric = metrics.ConfusionMatrix.empty(919).update(prediction, label, 'a')
  assert metric.counts[918, 918] == 1 and metric.counts[918, 917] == 1
  assert metric.compute()['iou'][918] == 0.5


def test_counts_above_int32_are_exact():
  big = metrics.ConfusionMatrix(np.array([[3_000_000_000, 1], [0, 2]]))
  merged = big.merge(big).merge(big)
  assert merged.counts[0, 0] == 9_000_000_000
  assert merged.compute()['iou'][0] == 9_000_000_000 / 9_000_000_003


def error_message(prediction, label, num_classes=3):
  with pytest.raises(ValueError) as error:
    metrics.ConfusionMatrix.empty(num_classes).update(
      np.array(prediction), np.array(label), b'n01/x.JPEG'
    )
  return str(error.value)


def test_invalid_values_are_refused():
  assert error_message([[0, 3]], [[0, -1]]) == (
    'image n01/x.JPEG: expected predictions 0…2, got 0…3'
  )
  assert error_message([[-1, 2]], [[0, 0]]) == (
    'image n01/x.JPEG: expected predictions 0…2, got -1…2'
  )
  assert error_message([[0, 2]], [[0, 255]]) == (
    'image n01/x.JPEG: expected labels 0…2, or negative ones to ignore, got 255'
  )
  with pytest.raises(ValueError, match='num_classes: expected >= 1, got 0'):
    metrics.ConfusionMatrix.empty(0)
  with pytest.raises(ValueError, match='matrix of 2 classes, got 3'):
    metrics.ConfusionMatrix.empty(2).merge(metrics.ConfusionMatrix.empty(3))


def test_different_sizes_are_refused(unchecked):
  message = error_message([[0, 2]], [[0, 1, 2]])
  assert message == (
    'image n01/x.JPEG: expected a prediction of the size of the label, 1x3, '
    'got 1x2: predict at the original size'
  )
  with pytest.raises(ValueError, match='image x: .* each of 3 tags, got 2'):
    metrics.Accuracy.empty().update(np.zeros(2), np.ones(3, bool), 'x')


def test_accuracy_equals_values_by_hand():
  one = metrics.Accuracy.empty()
  one = one.update(np.array([0.1, 0.9]), np.array([False, True]), 'right')
  one = one.update(np.array([0.1, 0.9]), np.array([True, False]), 'wrong')
  two = metrics.Accuracy.empty()
  two = two.update(np.array([-5.0, -7.0]), np.array([True, True]), 'right')
  two = two.update(np.array([0.1, 0.9]), np.array([False, False]), 'untagged')
  assert one.compute() == {'accuracy': 0.5}
  assert one.merge(two) == metrics.Accuracy(correct=2, total=3)
  assert np.isnan(metrics.Accuracy.empty().compute()['accuracy'])


def test_nan_scores_are_refused():
  with pytest.raises(
    ValueError, match='image x: expected numbers as scores, got NaN'
  ):
    metrics.Accuracy.empty().update(
      np.array([0.0, np.nan]), np.array([True, False]), 'x'
    )


def test_int64_survives_encoding_through_jax():
  counts = np.array([[3_000_000_000, -1], [2**63 - 1, 2**32]])
  words = np.asarray(jnp.asarray(metrics.encode_metric_counts(counts)))
  assert words.dtype == np.uint32
  np.testing.assert_array_equal(
    metrics.decode_metric_counts(words, (2, 2)), counts
  )
  assert (
    metrics.decode_metric_counts(metrics.encode_metric_counts(2**40), ())
    == 2**40
  )


def test_merging_in_one_process_returns_the_metric():
  metric = metrics.ConfusionMatrix.empty(2)
  assert metrics.merge_metrics_across_hosts(metric) is metric


def test_merging_over_simulated_hosts(monkeypatch):
  """Stacks the words of all hosts through jax, as process_allgather does."""
  parts = [
    metrics.ConfusionMatrix(np.array([[3_000_000_000 + i, i], [7, 2**33]]))
    for i in range(3)
  ]

  def gather(tree):
    assert tree.keys() == {'counts'}
    words = [metrics.encode_metric_counts(part.counts) for part in parts]
    return {'counts': np.asarray(jnp.stack(words))}

  monkeypatch.setattr(metrics.jax, 'process_count', lambda: 3)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  merged = metrics.merge_metrics_across_hosts(parts[1])
  expected = functools.reduce(lambda a, b: a.merge(b), parts)
  np.testing.assert_array_equal(merged.counts, expected.counts)
  np.testing.assert_array_equal(
    merged.counts, [[9_000_000_003, 3], [21, 3 * 2**33]]
  )


def test_merging_over_two_real_processes():
  program = """
    import sys
    import jax
    import numpy as np
    from segcore.eval import metrics
    port, process = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(f'127.0.0.1:{port}', 2, process)
    counts = np.array([[3_000_000_000, process], [0, 5]])
    matrix = metrics.merge_metrics_across_hosts(metrics.ConfusionMatrix(counts))
    accuracy = metrics.merge_metrics_across_hosts(
        metrics.Accuracy(process, 2**31)
    )
    print(matrix.counts.tolist(), accuracy)
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  environment = {**os.environ, 'XLA_FLAGS': ''}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(program), port, str(process)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for process in range(2)
  ]
  try:
    for process in processes:
      out, err = process.communicate(timeout=120)
      assert process.returncode == 0, err
      assert (
        '[[6000000000, 1], [0, 10]] Accuracy(correct=1, total=4294967296)'
      ) in out.splitlines()
  finally:
    for process in processes:
      process.kill()


def test_docstring_examples_are_true():
  assert doctest.testmod(metrics).failed == 0
