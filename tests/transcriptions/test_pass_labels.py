"""Pseudo-labels, fine-tuning and label maps of PASS by hand."""

import math

import numpy as np
import pytest

from tests.transcriptions import pass_labels

LN = math.log
R2 = math.sqrt(2)


def random(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def test_png_ids():
  ids = np.array([[0, 1, 255], [256, 919, 1000]])
  picture = pass_labels.encode_ids(ids)
  assert picture.dtype == np.uint8
  assert picture[1].tolist() == [[0, 1, 0], [151, 3, 0], [232, 3, 0]]
  np.testing.assert_array_equal(pass_labels.decode_ids(picture), ids)


ONES, ZEROS = np.ones(2), np.zeros(2)


# §3


def test_bilinear():
  maps = np.array([[0.0, 4.0]])[..., None]
  actual = pass_labels.bilinear(maps, (2, 8))[..., 0]
  expected = [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]
  np.testing.assert_allclose(actual, [expected, expected])
  # Odd sizes, both ways: 3 of 2 are at -1/6, 1/2, 7/6; 1 of 2 in the middle.
  actual = pass_labels.bilinear(maps, (1, 3))[0, :, 0]
  np.testing.assert_allclose(actual, [0, 2, 4])
  assert pass_labels.bilinear(maps, (1, 1)).item() == 2
  # No antialiasing: 2 of 6 values are read, at 1 and at 4.
  long = np.arange(6.0)[None, None, :, None] ** 2
  np.testing.assert_allclose(
    pass_labels.bilinear(long, (1, 2)).ravel(), [1, 16]
  )
  both = np.array([[0.0, 4], [8, 12]])[..., None]
  assert pass_labels.bilinear(both, (4, 4))[1, 2, 0] == pytest.approx(2 + 3)


def attention_weights(theta=0.0, shared=False):
  """Returns weights that double positive features in evaluation mode."""
  outputs = 1 if shared else 2
  second = np.ones((2, 1)) if shared else np.eye(2)
  root = math.sqrt(0.25 - 1e-5)
  return {
    'w1': np.eye(2),
    'b1': np.array([1.0, 1.0]),
    'gamma1': np.ones(2),
    'beta1': np.zeros(2),
    'mean1': np.ones(2),
    'variance1': np.ones(2) - 1e-5,
    'w2': second,
    'b2': np.full(outputs, 3.0),
    'gamma2': np.ones(outputs),
    'beta2': np.zeros(outputs),
    'mean2': np.full(outputs, 3.0),
    'variance2': np.full(outputs, root**2),
    'theta': np.full(outputs, theta),
  }


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def test_attention():
  maps = np.array([[[1.0, -3.0]]])
  actual = pass_labels.attention(maps, attention_weights(0.5), training=False)
  np.testing.assert_allclose(actual, [[[sigmoid(2.5), sigmoid(0.5)]]])
  shared = attention_weights(0.5, shared=True)
  actual = pass_labels.attention(
    np.array([[[1.0, 3.0]]]), shared, training=False
  )
  np.testing.assert_allclose(actual, [[[sigmoid(8.5)]]])


def test_attention_in_training_uses_the_batch():
  # As the projection's: after ReLU (0, t), (0, 0), (t, 0), normed again.
  rows = np.array([[99.0, -99], [100, -100], [101, -101]]).reshape(3, 1, 1, 2)
  weights = attention_weights() | {'theta': np.array([0.0, 1.0])}
  actual = pass_labels.attention(rows, weights).reshape(3, 2)
  low, high = -1 / R2, R2
  expected = [
    [sigmoid(low), sigmoid(high + 1)],
    [sigmoid(low), sigmoid(low + 1)],
    [sigmoid(high), sigmoid(low + 1)],
  ]
  np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_pixel_attention_embeddings():
  # An attention of 1/2 and 3/4 everywhere (gamma 0) on unit vectors at three
  # angles. The projection adds and subtracts the channels.
  c4 = np.array([[6.0, 8], [0, 5], [3, 0]]).reshape(3, 1, 1, 2)
  fixed = attention_weights() | {
    'gamma2': np.zeros(2),
    'theta': np.array([0, LN(3)]),
  }
  projection = {
    'w1': np.array([[1.0, 1], [1, -1]]),
    'b1': np.zeros(2),
    'gamma': ONES,
    'beta': 9 * ONES,  # ReLU passes all
    'w2': np.eye(2),
    'b2': ZEROS,
  }
  actual = pass_labels.pixel_attention_embeddings(c4, fixed, projection)
  # Attended: (0.3, 0.6), (0, 0.75), (0.5, 0). Sums 0.9 0.75 0.5, differences
  # -0.3 -0.75 0.5; in sixtieths without their means 11 2 -13 and -7 -34 41.
  a = np.array([11, 2, -13]) / math.sqrt(294)
  b = np.array([-7, -34, 41]) / math.sqrt(2886)
  expected = np.stack([a, b], axis=1) / np.sqrt(a**2 + b**2)[:, None]
  np.testing.assert_allclose(actual, expected, atol=5e-4)
  # The attention sees n(X): lengths do not matter.
  np.testing.assert_allclose(
    pass_labels.pixel_attention_embeddings(
      9 * c4, attention_weights(), projection
    ),
    pass_labels.pixel_attention_embeddings(c4, attention_weights(), projection),
  )


def test_cluster_features():
  c4 = np.array([[6.0, 8.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
  actual = pass_labels.cluster_features(c4, attention_weights())
  # The raw map times the attention of the normalized one.
  f = np.array([6 * sigmoid(1.2), 8 * sigmoid(1.6)])
  np.testing.assert_allclose(actual[0], f / np.linalg.norm(f))
  np.testing.assert_array_equal(actual[1], [0, 0])
  short = np.array([1e-8, 0]).reshape(1, 1, 1, 2)  # 1e-8 is added to a norm
  actual = pass_labels.cluster_features(short, attention_weights())
  share = sigmoid(2)
  np.testing.assert_allclose(actual, [[share / (share + 1), 0]])
  # Not the mean of normalized positions: the longer one counts more.
  closed = attention_weights() | {'gamma2': np.zeros(2)}
  pair = np.array([[3.0, 0], [0, 1.0]]).reshape(1, 1, 2, 2)
  actual = pass_labels.cluster_features(pair, closed, factor=1)
  np.testing.assert_allclose(actual, [[3 / 10**0.5, 1 / 10**0.5]])


def test_kmeans():
  x = np.array([[0.0], [2], [6], [20]])
  centroids = np.array([[0.0], [8.0], [-50]])
  assert pass_labels.nearest_centroids(x, centroids).tolist() == [0, 0, 1, 1]
  assert pass_labels.kmeans_objective(x, centroids) == 0 + 4 + 4 + 144
  moved = pass_labels.lloyd_iteration(x, centroids)
  assert moved.tolist() == [[1], [13], [-50]]
  assert pass_labels.kmeans_objective(x, moved) == 1 + 1 + 25 + 49
  points, start = random((40, 3)), random((5, 3), 1)
  values = []
  for _ in range(8):
    values.append(pass_labels.kmeans_objective(points, start))
    start = pass_labels.lloyd_iteration(points, start)
  assert values == sorted(values, reverse=True) and values[-1] < values[0]


def test_floor_nearest():
  labels = np.arange(6)[None]
  assert pass_labels.floor_nearest(labels, (2, 3)).tolist() == [
    [0, 2, 4],
    [0, 2, 4],
  ]
  assert pass_labels.floor_nearest(labels, (1, 4)).tolist() == [[0, 1, 3, 4]]
  assert pass_labels.floor_nearest(np.arange(2)[None], (1, 5)).tolist() == [
    [0, 0, 0, 1, 1]
  ]
  assert pass_labels.floor_nearest(np.arange(224)[:, None], (112, 1))[-1] == 222


def test_pseudo_labels():
  # Three positions: along e, along f, and in between but nearer to f.
  c4 = np.array([[[2.0, 0], [0, 9], [3, 4]]])
  centroids = np.array([[100.0, 0], [0, 0.01]])
  actual = pass_labels.category_map(c4, centroids, (1, 6), factor=1)
  assert actual.tolist() == [[1, 1, 2, 2, 2, 2]]
  # Attention: sigmoids of 2 n(X), channels averaged.
  one = (sigmoid(2) + 0.5) / 2
  mixed = (sigmoid(1.2) + sigmoid(1.6)) / 2
  weights = attention_weights()
  actual = pass_labels.attention_map(c4, weights, (2, 3), factor=1)
  np.testing.assert_allclose(actual, [[one, one, mixed]] * 2)
  tau = (one + mixed) / 2
  assert one < mixed
  actual = pass_labels.pseudo_labels(
    c4, weights, centroids, tau, (1, 3), factor=1
  )
  assert actual.tolist() == [[0, 0, 2]]
  actual = pass_labels.pseudo_labels(
    c4, weights, centroids, 0.5, (1, 3), factor=1
  )
  assert actual.tolist() == [[1, 2, 2]]
  # The attention is enlarged smoothly: half-way to `mixed` is above tau.
  actual = pass_labels.pseudo_labels(
    c4, weights, centroids, tau, (1, 12), factor=1
  )
  assert actual[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2]
  assert pass_labels.pseudo_labels(c4, weights, centroids, 0, (4, 8)).shape == (
    4,
    8,
  )


def test_category_map_upsamples_features_before_the_argmax():
  c4 = np.array([[[9.0, 0], [0, 3.0]]])
  centroids = np.eye(2)
  # At x4 the weights of the second are 0 0 1/8 3/8 5/8 7/8 1 1: 9 (1 - t) and
  # 3 t cross at t = 3/4.
  actual = pass_labels.category_map(c4, centroids, (1, 8))
  assert actual.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]


def test_threshold_labels():
  categories = np.array([[1, 2, 3]])
  actual = pass_labels.threshold_labels(categories, [[0.39, 0.4, 0.41]], 0.4)
  assert actual.tolist() == [[0, 2, 3]]


# §4 and §5.1


def test_finetune_loss():
  logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
  logits = logits.reshape(1, 1, 2, 3)
  labels = np.array([[[0, 1, 2, 1], [1, 1, 1, 1]]])  # reduced: 0, 2
  actual = pass_labels.finetune_loss(logits, labels, (1, 2))
  assert actual == pytest.approx(-(LN(0.5) + LN(0.6)) / 2)
  labels[0, 0, 2] = 1000
  actual = pass_labels.finetune_loss(logits, labels, (1, 2), ignore=1000)
  assert actual == pytest.approx(LN(2))
  assert (
    pass_labels.finetune_loss(logits, labels * 0 + 9, (1, 2), ignore=9) == 0
  )
  # Logits, not probabilities, are interpolated: the middle of three is the
  # geometric mean, sqrt(0.1) : sqrt(0.05) : sqrt(0.15).
  actual = pass_labels.finetune_loss(logits, np.array([[[1, 1, 1]]]), (1, 3))
  roots = [math.sqrt(0.1), math.sqrt(0.05), math.sqrt(0.15)]
  middle = roots[1] / sum(roots)
  assert actual == pytest.approx(-(LN(0.25) + LN(middle) + LN(0.2)) / 3)


def test_inference_size():
  assert pass_labels.inference_size(333, 500) == (256, 384)  # 384.38
  assert pass_labels.inference_size(500, 375) == (341, 256)  # 341.33
  assert pass_labels.inference_size(100, 100) == (256, 256)
  assert pass_labels.inference_size(1, 2, short=3) == (3, 6)


# The lead of class 1 falls from 3 at the first position to -1 at the second:
# it is 3 - 4 t with the weight t of the second.
LEAD = np.array([[[0.0, 3], [1, 0]]])


def test_label_map():
  # t of 8 columns: 0 0 1/8 3/8 5/8 7/8 1 1.
  fine = [1, 1, 1, 1, 1, 0, 0, 0]
  assert pass_labels.label_map(LEAD, (1, 8)).tolist() == [fine]
  # 16 pixels are not above 4^2; (4, 1) would have t = 1/2 alone.
  assert pass_labels.label_map(LEAD, (8, 2), limit=4).tolist() == [[1, 0]] * 8
  # 32 are above 2^2: at (2, 4) t is 0 1/4 3/4 1; a tie goes to class 0.
  actual = pass_labels.label_map(LEAD, (4, 8), limit=2)
  assert actual.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4


def test_label_map_of_large_images_is_limited_on_either_side():
  # (3, 6): t is 0 0 1/3 2/3 1 1; the fifth begins at column ceil(4 * 10 / 6).
  actual = pass_labels.label_map(LEAD, (5, 10), limit=3)
  assert actual.tolist() == [[1] * 7 + [0] * 3] * 5
  # (2, 4) with the longer side at 4, but (4, 8) with the height at it.
  actual = pass_labels.label_map(LEAD, (5, 10), limit=4, longer=True)
  assert actual.tolist() == [[1] * 5 + [0] * 5] * 5
  actual = pass_labels.label_map(LEAD, (5, 10), limit=4)
  assert actual.tolist() == [[1] * 7 + [0] * 3] * 5
  # The rows are reduced likewise: (2, 4) has rows of t = 0, 1.
  actual = pass_labels.label_map(
    LEAD.transpose(1, 0, 2), (5, 10), limit=4, longer=True
  )
  assert actual.tolist() == [[1] * 10] * 3 + [[0] * 10] * 2
  # A tall image has its height at the limit in both.
  tall = LEAD.transpose(1, 0, 2)
  actual = pass_labels.label_map(tall, (10, 5), limit=4, longer=True)
  assert actual.tolist() == [[1] * 5] * 5 + [[0] * 5] * 5
