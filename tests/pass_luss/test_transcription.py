"""The numpy transcription of PASS against numbers computed by hand."""

import inspect
import math

import numpy as np
import pytest

from tests.transcriptions import (
  pass_benchmark,
  pass_labels,
  pass_pixpro,
  pass_pretraining,
  pass_updates,
)

MODULES = (
  pass_benchmark,
  pass_labels,
  pass_pixpro,
  pass_pretraining,
  pass_updates,
)

LN = math.log
R2 = math.sqrt(2)
R5 = math.sqrt(5)


def logits_of(probs, temperature):
  """Returns logits whose softmax at the temperature is `probs`."""
  return temperature * np.log(np.array(probs, np.float64))


def random(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
  ('names', 'defaults'),
  [
    ('swav_learning_rate', {'base': 0.6, 'final': 6e-4}),
    ('sinkhorn swav_targets', {'epsilon': 0.05, 'num_iterations': 3}),
    (
      'swav_loss clustering_p2p_loss',
      {'temperature': 0.1, 'epsilon': 0.05, 'num_iterations': 3},
    ),
    ('d2s_loss', {'temperature': 0.1, 'same_view': False}),
    ('overlap_grids sample_pairs p2p_loss', {'size': 7}),
    ('p2p_loss', {'statistics': 'joint'}),
    ('larc larc_sgd_steps', {'weight_decay': 1e-6, 'trust': 1e-3}),
    ('sgd_momentum larc_sgd_steps', {'momentum': 0.9}),
    ('lars', {'weight_decay': 1e-5, 'trust': 1e-3}),
    ('pixpro_learning_rate', {'base': 1.0, 'final': 1e-6}),
    ('momentum', {'base': 0.99}),
    ('ppm', {'power': 2, 'clamp': 0}),
    ('pixpro_masks', {'threshold': 0.7}),
    ('pixel_attention_embeddings cluster_features', {'factor': 4}),
    ('attention_map category_map pseudo_labels', {'factor': 4}),
    ('finetune_loss', {'size': (112, 112), 'ignore': None}),
    ('inference_size', {'short': 256}),
    ('label_map', {'limit': 1000, 'longer': False}),
    ('boundary_map boundary_miou boundary_miou_by_size', {'ratio': 0.03}),
  ],
)
def test_defaults_are_those_of_the_specification(names, defaults):
  for name in names.split():
    (function,) = (getattr(m, name) for m in MODULES if hasattr(m, name))
    parameters = inspect.signature(function).parameters
    actual = {key: parameters[key].default for key in defaults}
    assert actual == defaults, name


# §1.4 and §2.1


def test_png_ids():
  ids = np.array([[0, 1, 255], [256, 919, 1000]])
  picture = pass_labels.encode_ids(ids)
  assert picture.dtype == np.uint8
  assert picture[1].tolist() == [[0, 1, 0], [151, 3, 0], [232, 3, 0]]
  np.testing.assert_array_equal(pass_labels.decode_ids(picture), ids)


def test_swav_learning_rate():
  assert pass_updates.swav_learning_rate(0, 100) == pytest.approx(0.6)
  assert pass_updates.swav_learning_rate(50, 100) == pytest.approx(0.3003)
  assert pass_updates.swav_learning_rate(100, 100) == pytest.approx(0.0006)
  # A third of the way: cos(60 degrees) = 1/2.
  assert pass_updates.swav_learning_rate(1, 3, 1.0, 0.2) == pytest.approx(0.8)


# §2.4


def test_normalize():
  actual = pass_pretraining.normalize([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-13]])
  np.testing.assert_allclose(actual, [[0.6, 0.8], [0, 0], [0, 0.1]])


def test_batch_norm():
  # Mean 2, variance (9 + 0 + 0 + 9) / 4 = 4.5.
  x = np.array([-1.0, 2, 2, 5]).reshape(2, 2, 1, 1)
  actual = pass_pretraining.batch_norm(x, eps=0.5)
  expected = np.array([-3, 0, 0, 3]) / math.sqrt(5)
  np.testing.assert_allclose(actual.ravel(), expected)
  actual = pass_pretraining.batch_norm(
    x, np.array([2.0]), np.array([7.0]), eps=0.5
  )
  np.testing.assert_allclose(actual.ravel(), 7 + 2 * expected)
  actual = pass_pretraining.batch_norm_eval(
    x, np.array([2.0]), np.array([7.0]), 1, 8.5, 0.5
  )
  np.testing.assert_allclose(
    actual.ravel(), 7 + 2 / 3 * np.array([-2, 1, 1, 4])
  )


def test_batch_norm_adds_epsilon_to_the_variance():
  x = math.sqrt(1e-5) * np.array([[-1.0], [1.0]])
  np.testing.assert_allclose(
    pass_pretraining.batch_norm(x).ravel(), [-1 / R2, 1 / R2]
  )


def test_gap():
  maps = np.arange(8.0).reshape(1, 2, 2, 2)
  np.testing.assert_array_equal(pass_pretraining.gap(maps), [[3, 4]])


# The first layer makes (x, -x) of x, normed; after ReLU the rows of x = 99,
# 100, 101 are (0, t), (0, 0), (t, 0) with t = sqrt(3/2).
MIRROR = {'w1': np.array([[1.0, -1.0]]), 'b1': np.array([5.0, -5.0])}
ONES, ZEROS = np.ones(2), np.zeros(2)


def test_image_projection():
  weights = MIRROR | {
    'gamma': ONES,
    'beta': ZEROS,
    'w2': np.eye(2),
    'b2': np.array([3.0, 4.0]),
  }
  actual = pass_pretraining.image_projection(
    np.array([[99.0], [100], [101]]), weights
  )
  # The columns (0, 0, t) and (t, 0, 0), normed: -1/sqrt2, -1/sqrt2, sqrt2.
  expected = [[-1 / R5, 2 / R5], [-1 / R2, -1 / R2], [2 / R5, -1 / R5]]
  np.testing.assert_allclose(actual, expected, atol=2e-5)


PIXEL_MLP = {
  'w1': MIRROR['w1'],
  'gamma1': ONES,
  'beta1': ZEROS,
  'w2': np.eye(2),
  'gamma2': ONES,
  'beta2': ZEROS,
  'w3': np.array([[1.0], [3.0]]),
}


def test_pixel_mlp():
  maps = np.array([99.0, 100, 101]).reshape(3, 1, 1, 1)
  # ReLU of the second norm: (0, sqrt2), (0, 0), (sqrt2, 0). The third conv
  # gives sqrt2 (3, 0, 1): mean 4/3, variance 14/9 but for the factor.
  expected = np.array([5, -4, -1]) / math.sqrt(14)
  actual = pass_pretraining.pixel_mlp(maps, PIXEL_MLP)
  np.testing.assert_allclose(actual.ravel(), expected, atol=2e-5)
  # The norms' affine part: a large beta keeps all above ReLU. Then the first
  # conv, gamma 2, the second are linear: 100 - x and x - 100 times 1 and 3.
  shifted = PIXEL_MLP | {'beta1': 9 * ONES, 'beta2': 9 * ONES}
  actual = pass_pretraining.pixel_mlp(maps, shifted).ravel()
  np.testing.assert_allclose(actual, [1.5**0.5, 0, -(1.5**0.5)], atol=2e-5)


def test_d2s_embedding_pools_the_pixel_mlp():
  weights = MIRROR | {
    'gamma': ONES,
    'beta': ZEROS,
    'w2': np.eye(2),
    'b2': ZEROS,
  }
  one = np.array([99.0, 100, 101]).reshape(3, 1, 1, 1)
  actual = pass_pretraining.d2s_embedding(
    np.tile(one, (1, 2, 2, 1)), PIXEL_MLP, weights
  )
  # (5, -4, -1) and its negative after ReLU: (5, 0, 0) and (0, 4, 1). Normed
  # they are in proportion to (2, -1, -1) / sqrt2 and (-5, 7, -2) / sqrt26.
  a, b = np.array([2, -1, -1]) / R2, np.array([-5, 7, -2]) / math.sqrt(26)
  expected = np.stack([a, b], axis=1) / np.sqrt(a**2 + b**2)[:, None]
  np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(
  ('head', 'biases'),
  [
    (pass_pretraining.predictor, {}),
    # The first bias is subtracted with the mean.
    (pass_pixpro.pixpro_projector, {'b1': np.array([5.0, -5.0])}),
  ],
)
def test_heads_of_two_convolutions(head, biases):
  weights = {
    'w1': MIRROR['w1'],
    'gamma': 2 * ONES,
    'beta': ZEROS,
    'w2': np.array([[1.0], [3.0]]),
    'b2': np.array([7.0]),
    **biases,
  }
  maps = np.array([99.0, 100, 101]).reshape(1, 1, 3, 1)
  # ±sqrt(3/2) after the norm; twice that where it is positive.
  t = math.sqrt(1.5)
  np.testing.assert_allclose(
    head(maps, weights).ravel(), [7 + 6 * t, 7, 7 + 2 * t], atol=1e-4
  )


# §2.5

# exp(scores / epsilon) is [[1, 3], [1, 1]]. Of its transpose the rows become
# (1/4, 1/4) and (3/8, 1/8), the columns (1/5, 3/10) and (1/3, 1/6).
SCORES = 0.05 * np.log([[1.0, 3.0], [1.0, 1.0]])
ONCE = np.array([[0.4, 0.6], [2 / 3, 1 / 3]])


def test_sinkhorn_once_by_hand():
  np.testing.assert_allclose(pass_pretraining.sinkhorn(SCORES, 0.05, 1), ONCE)
  actual = pass_pretraining.sinkhorn(2 * SCORES, 0.1, 1)
  np.testing.assert_allclose(actual, ONCE)


def test_sinkhorn_marginals():
  scores = random((12, 4)) / 10
  actual = pass_pretraining.sinkhorn(scores)
  np.testing.assert_allclose(actual.sum(axis=1), np.ones(12))
  assert np.abs(actual.sum(axis=0) - 3).max() > 1e-6  # three are not enough
  actual = pass_pretraining.sinkhorn(scores, num_iterations=200)
  np.testing.assert_allclose(actual.sum(axis=0), [3] * 4)
  np.testing.assert_allclose(actual.sum(axis=1), np.ones(12))
  # A constant of a sample drops out; so does the order of the samples.
  np.testing.assert_allclose(
    pass_pretraining.sinkhorn(scores + 0.3, num_iterations=1),
    pass_pretraining.sinkhorn(scores, num_iterations=1),
  )
  np.testing.assert_allclose(
    pass_pretraining.sinkhorn(scores[::-1]),
    pass_pretraining.sinkhorn(scores)[::-1],
  )


def test_queue_enters_sinkhorn_and_its_rows_are_dropped():
  logits = np.array([SCORES[1:], SCORES[:1]])
  targets = pass_pretraining.swav_targets(
    logits, np.array([SCORES[:1], SCORES[1:]]), num_iterations=1
  )
  np.testing.assert_allclose(targets, [ONCE[1:], ONCE[:1]])
  # One sample alone: the rows become 1/K each.
  alone = pass_pretraining.swav_targets(logits, num_iterations=1)
  np.testing.assert_allclose(alone, np.full((2, 1, 2), 0.5))


def test_swav_loss():
  # Targets: ONCE of view 0; view 1 is flat, so are its targets.
  logits = [SCORES, np.zeros((2, 2)), logits_of([[0.8, 0.2], [0.5, 0.5]], 0.1)]
  actual, targets = pass_pretraining.swav_loss(logits, num_iterations=1)
  np.testing.assert_allclose(targets, [ONCE, np.full((2, 2), 0.5)])
  # softmax(SCORES / 0.1): 1 to sqrt3, and flat.
  p = 1 / (1 + math.sqrt(3))
  view_0 = (-(LN(p) + LN(1 - p)) / 2 + LN(2)) / 2  # of the flat targets
  view_1 = LN(2)  # of ONCE
  small_0 = (-0.4 * LN(0.8) - 0.6 * LN(0.2) + LN(2)) / 2
  small_1 = (-(LN(0.8) + LN(0.2)) / 2 + LN(2)) / 2
  expected = ((view_1 + small_0) / 2 + (view_0 + small_1) / 2) / 2
  assert actual == pytest.approx(expected)


def test_crop_weights():
  expected = np.full((2, 8), 1 / 14)
  expected[0, 0] = expected[1, 1] = 0
  np.testing.assert_allclose(pass_pretraining.crop_weights(8), expected)
  np.testing.assert_allclose(
    pass_pretraining.crop_weights(2), [[0, 0.5], [0.5, 0]]
  )


def test_queue():
  queue = np.zeros((2, 3, 2))
  pushed = np.array([[[1.0, 2], [3, 4]], [[5.0, 6], [7, 8]]])
  queue = pass_pretraining.queue_push(queue, pushed)
  assert pass_pretraining.scores_of_queue(queue, np.eye(2)) is None
  queue = pass_pretraining.queue_push(queue, 10 * pushed)
  assert queue[0].tolist() == [[10, 20], [30, 40], [1, 2]]
  assert queue[1].tolist() == [[50, 60], [70, 80], [5, 6]]
  actual = pass_pretraining.scores_of_queue(queue, np.array([[1.0], [-1.0]]))
  assert actual.tolist() == [[[-10], [-10], [-1]], [[-10], [-10], [-1]]]


def test_prototypes():
  actual = pass_pretraining.normalize_prototypes(np.array([[3.0, 0], [4, -2]]))
  np.testing.assert_allclose(actual, [[0.6, 0], [0.8, -1]])
  assert pass_pretraining.prototypes_frozen(1000, 1001)
  assert not pass_pretraining.prototypes_frozen(1001, 1001)


# §2.6


def test_identical_boxes_give_the_identity_grid():
  a, b = pass_pretraining.overlap_grids(
    (3, 5, 10, 20), (3, 5, 10, 20), False, False, 3
  )
  x, y = np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1])
  np.testing.assert_allclose(a, np.stack([x, y], axis=-1), atol=1e-12)
  np.testing.assert_array_equal(a, b)
  a, b = pass_pretraining.overlap_grids(
    (3, 5, 10, 20), (3, 5, 10, 20), True, False, 3
  )
  np.testing.assert_allclose(a[..., 0], -b[..., 0], atol=1e-12)
  np.testing.assert_allclose(a[..., 1], b[..., 1])


def test_overlap_grids():
  # The overlap is 2 <= x <= 4, 0 <= y <= 4. In b, flipped, x = 2 is at u = 1,
  # x = 4 at u = 1/2; y = 4 is half-way down.
  a, b = pass_pretraining.overlap_grids(
    (0, 0, 4, 4), (2, 0, 4, 8), False, True, 2
  )
  assert a.tolist() == [[[0, -1], [1, -1]], [[0, 1], [1, 1]]]
  assert b.tolist() == [[[1, -1], [0, -1]], [[1, 0], [0, 0]]]
  # Where the image begins does not matter.
  moved = pass_pretraining.overlap_grids(
    (10, 20, 4, 4), (12, 20, 4, 8), False, True, 2
  )
  np.testing.assert_array_equal(moved, [a, b])


@pytest.mark.parametrize(
  ('box_a', 'box_b', 'corners'),
  [
    ((2, 3, 10, 6), (5, 1, 4, 20), (5, 3, 9, 9)),
    ((2, 3, 10, 6), (0, 4, 5, 3), (2, 4, 5, 7)),
    ((8, 0, 3, 30), (1, 2, 9, 4), (8, 2, 10, 6)),
    ((1, 9, 40, 5), (3, 2, 70, 10), (3, 9, 41, 12)),
  ],
)
def test_the_grids_span_the_overlap_in_both_views(box_a, box_b, corners):
  grids = pass_pretraining.overlap_grids(box_a, box_b, False, False, 4)
  for grid, box in zip(grids, (box_a, box_b), strict=True):
    points = np.array(box[:2]) + (grid + 1) / 2 * np.array(box[2:])
    np.testing.assert_allclose(points[0, 0], corners[:2])
    np.testing.assert_allclose(points[-1, -1], corners[2:])
    steps = np.diff(points[..., 0], axis=1)  # x runs along the columns
    np.testing.assert_allclose(steps, (corners[2] - corners[0]) / 3)


def test_boxes_that_only_touch_do_not_overlap():
  assert pass_pretraining.overlaps((0, 0, 4, 4), (3, 3, 9, 9))
  assert not pass_pretraining.overlaps((0, 0, 4, 4), (4, 0, 4, 4))
  assert not pass_pretraining.overlaps((0, 0, 4, 4), (0, 4, 4, 4))
  a, b = pass_pretraining.overlap_grids((0, 0, 4, 4), (4, 0, 4, 4), True, False)
  assert a.shape == b.shape == (7, 7, 2)
  assert (a == -2).all() and (b == -2).all()


def test_grid_sample():
  # The edge lies half a pixel outside: half of it is zeros.
  grid, _ = pass_pretraining.overlap_grids(
    (0, 0, 1, 1), (0, 0, 1, 1), False, False, 3
  )
  actual = pass_pretraining.grid_sample(np.ones((7, 7, 1)), grid)[..., 0]
  np.testing.assert_allclose(
    actual, [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]
  )
  assert not pass_pretraining.grid_sample(
    np.ones((7, 7, 1)), np.full((2, 2, 2), -2.0)
  ).any()
  # Of 2 rows and 4 columns: x = 1/4 is at column 2, x = 0 at 1.5, y = -0.5 at
  # row 0, y = 0 at row 0.5.
  features = np.array([[0.0, 1, 2, 3], [10, 11, 12, 13]])[..., None]
  grid = np.array([[[0.25, -0.5], [0, -0.5], [0.25, 0]]])
  actual = pass_pretraining.grid_sample(features, grid)
  np.testing.assert_allclose(actual[0, :, 0], [2, 1.5, 7])


def test_p2p_of_equal_views_and_of_no_overlap():
  maps = np.tile(np.array([3.0, 4.0]), (2, 7, 7, 1))
  boxes = [(0, 0, 5, 5)] * 2, [(0, 0, 5, 5), (9, 9, 5, 5)]
  flips = [False, False], [True, True]
  # The first image's cosines are 1; the second counts as zeros.
  actual = pass_pretraining.p2p_loss(
    maps, maps, *boxes, *flips, lambda z: 2 * z
  )
  assert actual == pytest.approx(-0.5)

  def bent(z):  # toward an angle whose cosine with (3, 4) is 24/25
    return 0 * z + np.array([4.0, 3.0])

  actual = pass_pretraining.p2p_loss(maps, maps, *boxes, *flips, bent)
  assert actual == pytest.approx(-0.5 * 24 / 25)


def test_p2p_compares_the_same_points():
  # Columns of two maps of the same box, the second flipped: equal when flipped.
  maps = random((1, 7, 7, 3))
  box = [(2, 2, 9, 9)]
  arguments = box, box, [False], [True], lambda z: z
  same = pass_pretraining.p2p_loss(maps, maps[:, :, ::-1], *arguments)
  assert same == pytest.approx(-1)
  assert pass_pretraining.p2p_loss(maps, maps, *arguments) > -0.9


def test_p2p_predicts_both_views_as_one_batch():
  maps = random((3, 7, 7, 2))
  box = [(2, 2, 9, 9)] * 3
  sizes = []

  def predict(z):
    sizes.append(len(z))
    return z

  for statistics in ('joint', 'per_view'):
    pass_pretraining.p2p_loss(
      *(maps, maps, box, box, [False] * 3, [True] * 3, predict),
      statistics=statistics,
    )
  assert sizes == [6, 3, 3]


def test_cosine_of_short_vectors():
  assert pass_pretraining.cosine(
    np.array([3.0, 4]), np.array([2.0, 0])
  ) == pytest.approx(0.6)
  short = np.array([2e-9, 0])  # its norm counts as 1e-8
  assert pass_pretraining.cosine(short, np.array([5.0, 0])) == pytest.approx(
    0.2
  )
  assert pass_pretraining.cosine(np.array([5.0, 0]), short) == pytest.approx(
    0.2
  )
  assert pass_pretraining.cosine(0 * short, short) == 0


def test_p2p_directions():
  e, f = np.array([[[[1.0, 0]]]]), np.array([[[[0, 1.0]]]])
  assert pass_pretraining.p2p_cosine_loss(e, f, f, -f) == pytest.approx(
    -0.5
  )  # 0 and 1
  assert pass_pretraining.p2p_cosine_loss(e, f, e, e) == pytest.approx(
    -0.5
  )  # 1 and 0
  assert pass_pretraining.p2p_cosine_loss(e, -f, f, e) == pytest.approx(
    0
  )  # 1 and -1


def test_contrastive_p2p():
  z = np.array([[[[2.0, 0], [0, 3.0]]]])
  expected = LN(1 + math.exp(-2))  # cosines 1 and 0 over 1/2
  actual = pass_pretraining.contrastive_p2p_loss(z, z, z, z, [True], 0.5)
  assert actual == pytest.approx(expected)
  two = np.concatenate([z, z])
  actual = pass_pretraining.contrastive_p2p_loss(
    two, two, two, two, [True, False], 0.5
  )
  assert actual == pytest.approx(expected / 2)
  # One direction meets the exchanged positions: its positive is the 0.
  actual = pass_pretraining.contrastive_p2p_loss(
    z, z[:, :, ::-1], z, z, [True], 0.5
  )
  assert actual == pytest.approx((expected + LN(1 + math.exp(2))) / 2)


def test_clustering_p2p():
  a, b = SCORES.reshape(1, 1, 2, 2), logits_of([[0.8, 0.2], [0.5, 0.5]], 0.1)
  flat = np.full((2, 2), 0.5)
  one = pass_pretraining.clustering_p2p_loss(
    a, 0 * a, [True], num_iterations=1
  )  # ONCE with flat, flat with SCORES
  p = 1 / (1 + math.sqrt(3))
  forward, back = LN(2), (-(LN(p) + LN(1 - p)) / 2 + LN(2)) / 2
  assert one == pytest.approx((forward + back) / 2)
  b = b.reshape(1, 1, 2, 2)
  two = np.concatenate([a, b]), np.concatenate([0 * a, a])
  # The image without overlap takes no part in Sinkhorn but in the mean.
  actual = pass_pretraining.clustering_p2p_loss(
    *two, [True, False], num_iterations=1
  )
  assert actual == pytest.approx(one / 2)
  three = [np.concatenate([x[:1], x]) for x in two]
  # Two equal images have the targets of one.
  actual = pass_pretraining.clustering_p2p_loss(
    *three, [True, True, False], num_iterations=1
  )
  assert actual == pytest.approx(one * 2 / 3)
  both = pass_pretraining.clustering_p2p_loss(
    *two, [True, True], num_iterations=1
  )
  assert both != pytest.approx(one)
  assert pass_pretraining.clustering_p2p_loss(*two, [False, False]) == 0
  # d2s_loss with both views' targets is the same sum.
  targets = np.stack([ONCE, flat])
  views = np.stack([SCORES, 0 * SCORES])
  assert pass_pretraining.d2s_loss(views, targets) == pytest.approx(one)


# §2.7 and §2.8


def test_d2s_loss_crosses_the_views():
  targets = np.array([[[1.0, 0]], [[0, 1.0]]])
  logits = logits_of([[[0.8, 0.2]], [[0.6, 0.4]]], 0.1)
  crossed = -(LN(0.6) + LN(0.2)) / 2
  assert pass_pretraining.d2s_loss(logits, targets) == pytest.approx(crossed)
  same = -(LN(0.8) + LN(0.4)) / 2
  assert pass_pretraining.d2s_loss(
    logits, targets, same_view=True
  ) == pytest.approx(same)
  cold = pass_pretraining.d2s_loss(2 * logits, targets, temperature=0.2)
  assert cold == pytest.approx(crossed)


def test_total_loss():
  assert pass_pretraining.total_loss(6, [2], -1) == pytest.approx(3)
  assert pass_pretraining.total_loss(6, [2, 1], -1) == pytest.approx(2)
  assert pass_pretraining.total_loss(6, [2], -1, [1, 3]) == pytest.approx(2)
  assert pass_pretraining.total_loss(6, [], -1) == pytest.approx(5)
  assert pass_pretraining.total_loss(
    6, [2, 1], -1, combine='paper'
  ) == pytest.approx(8)
  assert pass_pixpro.pixpro_total_loss(-4, 6, [2, 1], -1) == pytest.approx(-2)
  with pytest.raises(ValueError, match='combine'):
    pass_pretraining.total_loss(6, [2], -1, combine='mean')
  with pytest.raises(ValueError, match='zip'):
    pass_pretraining.total_loss(6, [2], -1, [1])


# §2.9 and §2.10


def test_larc():
  w, g = np.array([3.0, 4.0]), np.array([0.0, 2.0])
  # |w| = 5, |g| = 2: 0.1 * 5 / (2 + 0.5 * 5) = 1/9.
  actual = pass_updates.larc(w, g, weight_decay=0.5, trust=0.1)
  np.testing.assert_allclose(actual, [1.5 / 9, 4 / 9])
  zero = np.zeros(2)
  np.testing.assert_array_equal(pass_updates.larc(zero, g, 0.5), g)
  np.testing.assert_array_equal(pass_updates.larc(w, zero, 0.5), zero)
  # Without weight decay the step's length is trust |w|.
  actual = pass_updates.larc(w, 1e3 * g, weight_decay=0)
  assert np.linalg.norm(actual) == pytest.approx(0.005)


def test_the_factors_of_short_gradients():
  w, g = np.array([[3.0, 4.0]]), np.array([[1e-8, 0.0]])
  for rule in (pass_updates.larc, pass_updates.lars):  # 5 / (1e-8 + 1e-8)
    actual = rule(w, g, weight_decay=0, trust=1)
    np.testing.assert_allclose(actual, [[2.5, 0]], err_msg=rule.__name__)


def test_sgd_momentum():
  w, m = pass_updates.sgd_momentum(np.array([1.0]), None, np.array([2.0]), 0.1)
  assert (w.tolist(), m.tolist()) == ([0.8], [2.0])
  w, m = pass_updates.sgd_momentum(w, m, np.array([1.0]), 0.5)
  np.testing.assert_allclose([w, m], [[0.8 - 0.5 * 2.8], [2.8]])


def test_larc_sgd_steps():
  weights = {'beta': np.zeros(1), 'kernel': np.array([3.0, 4.0])}
  g = np.array([1.0, 0.0])
  actual, momenta = pass_updates.larc_sgd_steps(
    weights,
    [{'beta': np.ones(1)}, {'beta': np.ones(1), 'kernel': g}],
    [0.5, 1.0],
    weight_decay=0,
    trust=0.1,
  )
  # beta: raw at first, w = -0.5; then 0.1 * 0.5 / 1 = 0.05 and m = 0.95. The
  # kernel is frozen at first; then its momentum is 0.1 * 5 g.
  np.testing.assert_allclose(actual['beta'], [-0.5 - 0.95], atol=1e-8)
  np.testing.assert_allclose(actual['kernel'], [2.5, 4], atol=1e-8)
  np.testing.assert_allclose(momenta['kernel'], [0.5, 0], atol=1e-8)
  assert weights['beta'] == 0


def test_lars():
  w, g = np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])
  # g + w / 2 = (1.5, 4): the norm of the sum, not the sum of the norms.
  actual = pass_updates.lars(w, g, weight_decay=0.5, trust=0.1)
  expected = np.array([[1.5, 4]]) * 0.5 / math.sqrt(1.5**2 + 16)
  np.testing.assert_allclose(actual, expected)
  np.testing.assert_array_equal(pass_updates.lars(w[0], g[0], 0.5), g[0])
  np.testing.assert_array_equal(pass_updates.lars(0 * w, g, 0.5), g)


def test_pixpro_learning_rate_and_momentum():
  rates = [
    pass_updates.pixpro_learning_rate(k, 30, 10, 2.0, 0.5) for k in range(31)
  ]
  assert rates[0] == pytest.approx(0.02)
  assert rates[5] == pytest.approx(1.01)
  assert rates[10] == pytest.approx(2.0)
  assert rates[20] == pytest.approx(1.25)
  assert rates[30] == pytest.approx(0.5)
  assert pass_updates.momentum(0, 8) == pytest.approx(0.99)
  assert pass_updates.momentum(4, 8) == pytest.approx(0.995)
  assert pass_updates.momentum(8, 8) == 1
  assert pass_updates.ema(2.0, 10.0, 0.75) == 4


def test_ppm():
  # Cosines: 0.6 of the first two, 0 and 0.8 with the third, -1 dropped.
  x = np.array([[[1.0, 0], [3, 4]], [[0, 2], [-5, 0]]])
  actual = pass_pixpro.ppm(x, np.eye(2), np.zeros(2))
  e, m, f = np.array([1.0, 0]), np.array([0.6, 0.8]), np.array([0, 1.0])
  sums = [
    e + 0.36 * m,
    0.36 * e + m + 0.64 * f,
    0.64 * m + f,
    -e,
  ]
  expected = [v / np.linalg.norm(v) for v in sums]
  np.testing.assert_allclose(actual.reshape(4, 2), expected)
  # The transform is of the values alone: rotated values, rotated result.
  turn = np.array([[0.0, 1], [-1, 0]])
  np.testing.assert_allclose(
    pass_pixpro.ppm(x, turn, np.zeros(2)).reshape(4, 2),
    np.array(expected) @ turn,
  )
  biased = pass_pixpro.ppm(x, 0 * turn, np.array([0.0, 7.0]))
  np.testing.assert_allclose(biased.reshape(4, 2), [f] * 4)
  loose = pass_pixpro.ppm(x, np.eye(2), np.zeros(2), power=1, clamp=-9)
  np.testing.assert_allclose(
    loose[1, 1], -(e + 0.6 * m + e) / np.linalg.norm(2 * e + 0.6 * m)
  )


def test_pixpro_masks():
  whole = (0, 0, 9, 9)
  # Neighbors of a square grid are 0.707 diagonals apart: only i = j.
  actual = pass_pixpro.pixpro_masks(whole, whole, False, False, 3, (9, 9))
  np.testing.assert_array_equal(actual, np.eye(9))
  wider = pass_pixpro.pixpro_masks(whole, whole, False, False, 3, (9, 9), 0.71)
  assert wider[4].tolist() == [0, 1, 0, 1, 1, 1, 0, 1, 0]
  actual = pass_pixpro.pixpro_masks(whole, whole, True, False, 2, (9, 9))
  np.testing.assert_array_equal(actual, np.eye(4)[[1, 0, 3, 2]])
  far = pass_pixpro.pixpro_masks(
    (0, 0, 9, 9), (50, 0, 9, 9), False, False, 3, (9, 99)
  )
  assert not far.any()


def test_pixpro_masks_of_different_bins():
  # Source 11 by 11: a is 0 to 1, b 0 to 0.5 each way, 2 cells a side. Centers
  # 1/4, 3/4 and 1/8, 3/8; the larger diagonal is sqrt2 / 2.
  actual = pass_pixpro.pixpro_masks(
    (0, 0, 11, 11), (0, 0, 6, 6), False, False, 2, (11,) * 2
  )
  # The first cell of a is (1/8, 1/8) from all of b's: 0.25 diagonals. The
  # second is (3/8, 1/8) from b's second: 0.559, and (5/8, 1/8) from the first.
  assert actual[0].tolist() == [True, True, True, True]
  assert actual[1].tolist() == [False, True, False, True]
  assert actual[2].tolist() == [False, False, True, True]
  assert actual[3].tolist() == [False, False, False, False]  # 3/8, 3/8: 0.75


def test_pixpro_masks_of_boxes_inside():
  # Source of 17 rows and 33 columns: steps of 1/16 down and 1/32 across. One
  # cell each: 3/16 across and 4/16 down, a diagonal of 5/16; half a box to the
  # right is 3/32, two boxes down 8/16.
  box = (4, 3, 7, 5)
  arguments = False, False, 1, (17, 33)
  for other, distance in [
    ((4, 3, 7, 5), 0),
    ((7, 3, 7, 5), 3 / 10),
    ((4, 11, 7, 5), 8 / 5),
    ((14, 3, 7, 5), 1),
    ((10, 7, 7, 5), 1),  # 3/16 across, 4/16 down
    ((4, 3, 1, 1), 1 / 2),  # a point at the corner; the larger bin counts
  ]:
    assert not pass_pixpro.pixpro_masks(box, other, *arguments, distance).any()
    assert pass_pixpro.pixpro_masks(
      box, other, *arguments, distance + 1e-9
    ).all()
  # Centers 7/32, 5/16 and 9/32, 11/16; the larger diagonal is 1/16, 8/16.
  distance = math.sqrt((1 + 36) / (1 + 64))
  for threshold, positive in [
    (distance - 1e-9, False),
    (distance + 1e-9, True),
  ]:
    actual = pass_pixpro.pixpro_masks(box, (8, 7, 3, 9), *arguments, threshold)
    assert actual.tolist() == [[positive]]


def test_pixpro_loss():
  y_a = np.array([[[[1.0, 0], [0, 1.0]]]])
  y_b = np.array([[[[0, 1.0], [0, 1.0]]]])
  k_a, k_b = np.array([[[[3.0, 4], [5, 0]]]]), np.array([[[[0, 2.0], [6, 8]]]])
  mask = np.array([[[False, True], [False, True]]])
  # a to b: (0.6 + 0.8) / 2. b to a: b's second with both of a's: (0.8 + 0) / 2.
  actual = pass_pixpro.pixpro_loss(y_a, y_b, k_a, k_b, mask)
  assert actual == pytest.approx(-2 * (0.7 + 0.4), rel=1e-5)
  two = [np.concatenate([x, x]) for x in (y_a, y_b, k_a, k_b)]
  actual = pass_pixpro.pixpro_loss(*two, np.concatenate([mask, mask & False]))
  assert actual == pytest.approx(-1.1, rel=1e-5)
  one = np.ones((1, 1, 1, 1))
  actual = pass_pixpro.pixpro_loss(one, one, one, one, np.ones((1, 1, 1), bool))
  assert actual == pytest.approx(-4 / (1 + 1e-6), rel=1e-12)


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


# §5.2


def test_matching_matrix_counts_images():
  predictions = [np.array([[1, 1, 2]]), np.array([[0, 1, 1]])]
  truths = [np.array([[3, 0, 1000]]), np.array([[3, 3, 2]])]
  actual = pass_benchmark.matching_matrix(predictions, truths, 3)
  assert actual.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]


def test_hungarian():
  matrix = np.array([[9, 8, 0], [8, 1, 0], [0, 0, 5]])
  # Greedy would take 9 and then 1: 15; the best is 8 + 8 + 5.
  matching = pass_benchmark.hungarian(matrix)
  assert matching == {0: 0, 1: 2, 2: 1, 3: 3}
  assert pass_benchmark.matched_total(matrix, matching) == 21
  assert pass_benchmark.hungarian(0 * matrix) == {0: 0, 1: 1, 2: 2, 3: 3}
  actual = pass_benchmark.apply_matching(np.array([[0, 1, 2, 3, 4]]), matching)
  assert actual.tolist() == [[0, 2, 1, 3, 0]]


def test_a_bijection_matched_to_itself_scores_100():
  generator = np.random.default_rng(0)
  truths = [generator.integers(0, 5, (6, 7)) for _ in range(8)]
  # Each image has two of the categories, so that they are distinct.
  pairs = [(1, 2), (2, 3), (3, 4), (4, 1), (1, 1), (2, 2), (3, 3), (4, 4)]
  truths = [
    np.where(np.isin(truth, pair), truth, 0)
    for truth, pair in zip(truths, pairs, strict=True)
  ]
  renamed = pass_benchmark.apply_matching
  predictions = [renamed(t, {1: 3, 2: 1, 3: 4, 4: 2}) for t in truths]
  matching = pass_benchmark.hungarian(
    pass_benchmark.matching_matrix(predictions, truths, 4)
  )
  assert matching == {0: 0, 3: 1, 1: 2, 4: 3, 2: 4}
  matched = [renamed(p, matching) for p in predictions]
  assert pass_benchmark.miou(matched, truths, 4) == pytest.approx(100)
  assert pass_benchmark.boundary_miou(matched, truths, 4) == pytest.approx(100)
  assert pass_benchmark.image_accuracy(matched, truths, 4) == 100
  assert pass_benchmark.f_beta(matched, truths) == pytest.approx(100)
  assert pass_benchmark.miou(predictions, truths, 4) < 50


# §5.3 and §5.4


def test_bank_entries():
  features = np.array([[[8.0, 0], [0, 8]], [[4, 4], [1, 1]]])
  mask = np.array([[0, 9, 7, 9], [9, 9, 9, 9], [7, 9, 1000, 9], [9, 9, 9, 9]])
  entries, ids = pass_benchmark.bank_entries(
    features, mask
  )  # reduced: 0 7 / 7 1000
  assert ids.tolist() == [0, 7]
  assert entries.tolist() == [[2, 0], [1, 3]]


def test_knn_label_map():
  bank = np.array([[5.0, 0], [0.6, 0.8], [1.2, 1.6], [0, 1]])
  labels = np.array([2, 1, 1, 0])
  query = np.array([[[3.0, 0], [0, 0.5]]])
  # Of (1, 0): 1 for class 2, 0.6 twice for class 1. At 0.07 the nearest wins
  # (exp(0.4 / 0.07) > 2), at 1 the two do (exp(0.4) < 2).
  actual = pass_benchmark.knn_label_map(query, bank, labels, 3, 0.07, 3)
  assert actual.tolist() == [[2, 0]]
  actual = pass_benchmark.knn_label_map(query, bank, labels, 3, 1.0, 3)
  assert actual.tolist() == [[1, 1]]
  # Two neighbors: 1 against 0.6.
  actual = pass_benchmark.knn_label_map(query, bank, labels, 2, 1.0, 3)
  assert actual.tolist() == [[2, 0]]


def test_cam_labels():
  # The pooled logits are 1 and 2: category 2, of values 4 0 -2 6.
  logits = np.array([[[1.0, 4], [1, 0], [1, -2], [1, 6]]])
  actual = pass_benchmark.cam_labels(logits, (1, 4), 0.6)
  assert actual.tolist() == [[2, 0, 0, 2]]  # 2/3 0 0 1
  assert (
    pass_benchmark.cam_labels(logits / 9, (1, 4), 0.6).tolist()
    == actual.tolist()
  )
  assert pass_benchmark.cam_labels(logits, (1, 4), 0.7).tolist() == [
    [0, 0, 0, 2]
  ]
  assert pass_benchmark.cam_labels(logits, (1, 4), 1.0).tolist() == [
    [0, 0, 0, 0]
  ]
  actual = pass_benchmark.cam_labels(logits, (1, 4), 0.7, 'min-max')
  assert actual.tolist() == [[2, 0, 0, 2]]  # 6/8 2/8 0 1
  # Scaled, then enlarged: 2/3 2/3 1/2 1/6 0 0 0 0 ... of the first ones.
  actual = pass_benchmark.cam_labels(logits, (1, 16), 0.4)
  assert actual[0, :5].tolist() == [2, 2, 2, 2, 0]
  assert not pass_benchmark.cam_labels(-1 - logits**2, (1, 4), 0.0).any()
  with pytest.raises(ValueError, match='scaling'):
    pass_benchmark.cam_labels(logits, (1, 4), 0.5, 'sum')


# §6


def test_miou():
  predictions = [np.array([[0, 1, 1, 2]]), np.array([[1, 1]])]
  truths = [np.array([[0, 0, 1, 1000]]), np.array([[1, 0]])]
  # Over both images: class 0 has 1 of 3, class 1 has 2 of 4; 2 and 3 none.
  actual = pass_benchmark.ious(predictions, truths, 3)
  np.testing.assert_allclose(
    actual, [1 / (3 + 1e-10), 2 / (4 + 1e-10), 0, 0], rtol=1e-13
  )
  assert pass_benchmark.miou(predictions, truths, 3) == pytest.approx(
    100 * 5 / 24
  )
  actual = pass_benchmark.miou(predictions, truths, 3, other=False)
  assert actual == pytest.approx(100 / 6)


def test_boundary_of_a_full_map_is_its_border():
  actual = pass_benchmark.boundary_map(np.full((5, 6), 7))
  expected = np.full((5, 6), 8)
  expected[1:-1, 1:-1] = 0
  np.testing.assert_array_equal(actual, expected)


def test_boundary_map_between_classes():
  labels = np.zeros((5, 5), int)
  labels[:, :2] = 3
  actual = pass_benchmark.boundary_map(labels)
  expected = np.where(labels == 3, 4, 1)
  expected[1:4, 3] = 0  # all of 3 is a neighbor of 0 or of the border
  np.testing.assert_array_equal(actual, expected)
  labels[:, :2] = 1000  # ignored areas make boundaries too
  actual = pass_benchmark.boundary_map(labels)
  assert actual[2].tolist() == [1001, 1001, 1, 0, 1]


@pytest.mark.parametrize(
  ('ratio', 'depth'),
  [(0.03, 2), (0.05, 2), (0.07, 4), (0.001, 1)],  # 1.5, 2.5, 3.5, 0.05
)
def test_boundary_depth(ratio, depth):
  actual = pass_benchmark.boundary_map(
    np.zeros((30, 40), int), ratio
  )  # diagonal 50
  interior = (30 - 2 * depth) * (40 - 2 * depth)
  assert (actual == 0).sum() == interior
  assert not actual[depth:-depth, depth:-depth].any()


def test_boundary_miou():
  truth = np.zeros((5, 5), int)
  truth[:, 0] = 1000
  predicted = np.zeros((5, 5), int)
  # Of columns 1 to 4 the true boundary is 4 + 4 + 2 * 3 = 14 - 0: columns 1
  # and 4 (10), rows 0 and 4 of the others (4). The prediction's has the rows
  # and column 4 alone: 8 + 3 = 11, all hits.
  actual = pass_benchmark.boundary_miou([predicted], [truth], 1)
  assert actual == pytest.approx(100 * 11 / 14 / 2)
  assert pass_benchmark.boundary_miou([predicted], [truth], 1, other=False) == 0
  # A boundary of another class is no hit, and the interior does not count.
  actual = pass_benchmark.boundary_miou([predicted + 1], [predicted], 1)
  assert actual == 0
  actual = pass_benchmark.boundary_miou([predicted], [predicted], 1)
  assert actual == pytest.approx(50)


def test_image_accuracy():
  truth = np.array([[1, 1, 0, 1000]])
  cases = [
    ([[0, 1, 0, 2]], True),
    ([[2, 2, 1, 1]], False),  # 2 has the most
    ([[2, 1, 0, 2]], True),  # the ignored pixel does not count; first of ties
    ([[0, 0, 0, 1]], False),  # nothing is left
    ([[0, 0, 1, 0]], True),  # elsewhere, but it occurs
  ]
  for predicted, correct in cases:
    actual = pass_benchmark.image_accuracy([np.array(predicted)], [truth], 2)
    assert actual == 100 * correct, predicted
  both = [np.array(predicted) for predicted, _ in cases]
  assert pass_benchmark.image_accuracy(both, [truth] * 5, 2) == pytest.approx(
    60
  )


def test_f_beta():
  truth = np.array([[1, 2, 0, 0, 1000]])
  # Categories do not matter: P = 1/3, R = 1/2.
  predicted = np.array([[2, 0, 1, 1, 1]])
  expected = 130 / 6 / (0.1 + 0.5)
  assert pass_benchmark.f_beta([predicted], [truth]) == pytest.approx(expected)
  assert pass_benchmark.f_beta([truth], [truth]) == pytest.approx(100)
  assert pass_benchmark.f_beta([truth * 0], [truth]) == 0
  assert pass_benchmark.f_beta([predicted], [truth * 0]) == 0
  # The mean of the images, not of their pixels.
  actual = pass_benchmark.f_beta([predicted, truth * 0], [truth, truth])
  assert actual == pytest.approx(expected / 2)


def test_size_groups():
  truth = np.zeros(400, int)
  truth[:100] = 1  # 25 %
  truth[100:201] = 2  # 25.25 %, up to 26
  truth[201:221] = 3  # 5 %
  truth[221:242] = 4  # 5.25 %
  groups = pass_benchmark.size_groups(truth.reshape(20, 20), 6)
  assert groups == {'S': [3], 'MS': [1, 4], 'ML': [2], 'L': []}
  truth[242:] = 1000  # 242 are left: 41.3, 41.7, 8.3, 8.7 %
  groups = pass_benchmark.size_groups(truth.reshape(20, 20), 6)
  assert groups == {'S': [], 'MS': [3, 4], 'ML': [1, 2], 'L': []}
  large = (np.arange(100) < 51).astype(int)[None]
  assert pass_benchmark.size_groups(large, 1)['L'] == [1]
  half = np.array([[1, 0]])
  assert pass_benchmark.size_groups(half, 1)['ML'] == [1]
  assert pass_benchmark.size_groups(half * 0 + 1, 1)['L'] == [1]


def test_miou_by_size():
  # 20 pixels: 10 of 'other', 1 of class 1 (5 %), 9 of class 2 (45 %).
  truth = np.array([[0] * 10, [1] + [2] * 9])
  predicted = np.array([[0] * 8 + [2, 3], [1, 1] + [2] * 8])
  actual = pass_benchmark.miou_by_size([predicted], [truth], 3)
  # S sees 'other' (8 of 10) and class 1 (1 of 1, its other pixel is left out);
  # classes 2 and 3 do not occur in the split. ML: class 2 has 8 of 10.
  assert actual['S'] == pytest.approx(90)
  assert actual['ML'] == pytest.approx(80)
  assert math.isnan(actual['MS']) and math.isnan(actual['L'])
  actual = pass_benchmark.miou_by_size([predicted], [truth], 3, other=False)
  assert actual['S'] == pytest.approx(100)
  assert actual['ML'] == pytest.approx(80)
  # The same class is large elsewhere; 'other' of that image is not small's.
  images = [predicted, np.array([[0, 2], [2, 2]])]
  truths = [truth, np.array([[2, 2], [2, 2]])]
  actual = pass_benchmark.miou_by_size(images, truths, 3)
  assert actual['S'] == pytest.approx(90)
  assert actual['L'] == pytest.approx(75)  # 'other' has no true pixel there


def test_boundary_miou_by_size():
  # 25 pixels: the middle one is class 1 (4 %); 'other' is all boundary.
  truth = np.zeros((5, 5), int)
  truth[2, 2] = 1
  actual = pass_benchmark.boundary_miou_by_size([truth], [truth], 2)
  assert actual['S'] == pytest.approx(100)
  assert math.isnan(actual['L'])
  # Predicted empty: the 16 of the frame are hits of 24, class 1 has none.
  actual = pass_benchmark.boundary_miou_by_size([truth * 0], [truth], 2)
  assert actual['S'] == pytest.approx(100 * 16 / 24 / 2)
  actual = pass_benchmark.boundary_miou_by_size(
    [truth * 0], [truth], 2, other=False
  )
  assert actual['S'] == 0
  # One group alone has the boundaries at its own pixels: 40 % of class 2.
  truth[:, 3:] = 2
  actual = pass_benchmark.boundary_miou_by_size([truth], [truth], 2)
  assert actual['ML'] == pytest.approx(100)
  predicted = np.where(truth == 1, 2, truth)
  actual = pass_benchmark.boundary_miou_by_size(
    [predicted], [truth], 2, other=False
  )
  # The middle is not among ML's pixels.
  assert actual['ML'] == pytest.approx(100) and actual['S'] == 0
