"""Heads and objectives of PASS by hand (spec §2.4 to §2.8)."""

import math

import numpy as np
import pytest

from tests.transcriptions import pass_pixpro, pass_pretraining

LN = math.log
R2 = math.sqrt(2)
R5 = math.sqrt(5)


def logits_of(probs, temperature):
  """Returns logits whose softmax at the temperature is `probs`."""
  return temperature * np.log(np.array(probs, np.float64))


def random(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


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
