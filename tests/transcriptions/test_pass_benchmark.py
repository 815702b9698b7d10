"""Matching, probes and metrics of PASS by hand (spec §5.2 to §6)."""

import math

import numpy as np
import pytest

from tests.transcriptions import pass_benchmark

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
