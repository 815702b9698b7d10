"""Tests the numpy transcription of U2PL on numbers worked out by hand."""

import math

import numpy as np
import pytest

from tests.transcriptions import u2pl as ref
from tests.transcriptions import u2pl_contrast as ref_contrast

LN = math.log


def logits_of(true_probs):
  """Returns two-class logits of a row of pixels with the given p of class 1."""
  probs = np.array(true_probs)
  return np.log(np.stack([1 - probs, probs], axis=-1))[None, None]


def row(values, dtype=int):
  """Returns a row of pixels as one image, [1,1,W]."""
  return np.array(values, dtype)[None, None]


# Supervised


def test_cross_entropy_skips_the_ignored():
  logits = logits_of([0.25, 0.75, 0.5])
  expected = (LN(4) + LN(4)) / 2  # p_1 = 1/4 and p_0 = 1/4
  assert ref.cross_entropy(logits, row([1, 0, -1])) == pytest.approx(expected)
  assert ref.cross_entropy(logits, row([-1, -1, -1])) == 0


@pytest.mark.parametrize(
  ('min_kept', 'kept'),
  [
    (0, [1, 1, 1, 1, 0]),  # no selection
    (5, [1, 1, 1, 1, 0]),  # only 4 are valid
    (2, [1, 0, 1, 0, 0]),  # the second is 0.6 < 0.7: all up to 0.7
    (1, [1, 0, 1, 0, 0]),
    (3, [1, 0, 1, 1, 0]),  # the third is 0.8 > 0.7: all up to 0.8
    (4, [1, 1, 1, 1, 0]),
  ],
)
def test_ohem(min_kept, kept):
  probs = [0.2, 0.9, 0.6, 0.8, 0.1]
  logits, labels = logits_of(probs), row([1, 1, 1, 1, -1])
  actual = ref.ohem_kept(logits, labels, min_kept)
  np.testing.assert_array_equal(actual, row(kept, bool))
  hard = [-LN(p) for p, keep in zip(probs, kept, strict=True) if keep]
  expected = sum(hard) / len(hard)
  assert ref.ohem(logits, labels, min_kept) == pytest.approx(expected)


def test_auxiliary():
  assert ref.with_auxiliary(2.0, 5.0) == pytest.approx(4.0)


# Unsupervised


def test_entropy_and_percentile():
  probs = np.array([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
  np.testing.assert_allclose(ref.entropy(probs), [LN(4), 0], atol=1e-9)
  values, valid = np.array([3.0, 0, 99, 1, 4, 2]), np.arange(6) != 2
  # Of 0 1 2 3 4 the place 0.8 * 4 = 3.2.
  assert ref.percentile(values, valid, 80) == pytest.approx(3.2)
  assert ref.percentile(values, valid, 100) == 4
  assert ref.percentile(values, valid, 0) == 0
  assert math.isnan(ref.percentile(values, valid & False, 80))


def test_unreliable_share():
  assert ref.unreliable_share(0, 80) == pytest.approx(0.2)
  assert ref.unreliable_share(40, 80) == pytest.approx(0.1)
  assert 100 - 100 * ref.unreliable_share(79, 80) == pytest.approx(99.75)


def test_reliability_masks():
  entropies, labels = row([0, 1, 2, 3, 4, 9], float), row([0, 0, 0, 0, 0, -1])
  reliable, unreliable = ref.reliability_masks(entropies, labels, 0.2)
  np.testing.assert_array_equal(reliable, row([1, 1, 1, 1, 0, 0], bool))
  np.testing.assert_array_equal(unreliable, row([0, 0, 0, 0, 1, 0], bool))
  # The place 0.3 * 4 = 1.2 from below.
  reliable, _ = ref.reliability_masks(entropies, labels, 0.3, 'released')
  np.testing.assert_array_equal(reliable, row([1, 1, 0, 0, 0, 0], bool))
  # All alike: gamma is their value, and >= drops them all.
  reliable, unreliable = ref.reliability_masks(entropies * 0 + 0.1, labels, 0.2)
  assert not reliable.any() and unreliable.sum() == 5
  with pytest.raises(ValueError, match='anchor_entropy'):
    ref.reliability_masks(entropies, labels, 0.2, 'lowest')


def test_symmetric_cross_entropy():
  logits, labels = logits_of([0.25, 0.5, 0.9]), row([1, 1, -1])
  reverse = LN(1e4) * (0.75 + 0.5) / 2
  assert ref.reverse_cross_entropy(logits, labels) == pytest.approx(reverse)
  expected = (LN(4) + LN(2)) / 2 + 0.1 * reverse
  assert ref.symmetric_cross_entropy(logits, labels) == pytest.approx(expected)


def test_unsupervised_loss():
  logits = logits_of([0.25, 0.5, 0.5, 0.1, 0.1])
  labels, entropies = row([1, 1, 0, 1, -1]), row([0, 1, 2, 3, 0], float)
  # gamma is at 0.75 * 3 = 2.25; three of five pixels are left.
  ce, rce = (LN(4) + LN(2) + LN(2)) / 3, LN(1e4) * (0.75 + 0.5 + 0.5) / 3
  actual = ref.unsupervised_loss(logits, labels, entropies, 0.25)
  assert actual == pytest.approx(5 / 3 * ce)
  actual = ref.unsupervised_loss(logits, labels, entropies, 0.25, (1, 0.1))
  assert actual == pytest.approx(5 / 3 * (ce + 0.1 * rce))
  assert ref.unsupervised_loss(logits, labels * 0 - 1, entropies, 0.25) == 0
  assert ref.adaptive_weight(np.zeros((2, 3), bool)) == 6


# Contrast


def test_ranks_of_ties_go_to_the_lower_class():
  probs = np.array([[0.2, 0.5, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
  np.testing.assert_array_equal(
    ref_contrast.ranks(probs), [[1, 0, 2, 3], [0, 1, 2, 3]]
  )


def test_contrast_masks():
  # Ranks: 0 1 2 3 / 1 0 3 2 / the first again (ignored), in all the images.
  probs = np.array(
    [[0.5, 0.3, 0.15, 0.05], [0.3, 0.4, 0.1, 0.2], [0.7, 0.1, 0.15, 0.05]]
  )
  probs = probs[None, None]
  masks = ref_contrast.contrast_masks(
    probs_l=probs,
    labels_l=row([0, 2, -1]),
    probs_u=probs,
    labels_u=row([1, 0, 0]),
    reliable=row([1, 0, 1], bool),
    unreliable=row([0, 1, 0], bool),
    r_l=2,
    r_h=3,
  )
  assert masks.anchors.shape == (2, 1, 3, 4)
  for actual, labeled, unlabeled in [
    (masks.positives, {(0, 0), (1, 2)}, {(0, 1), (2, 0)}),
    # (1, 2) has p = 0.1; (0, 1) has p = 0.3, which is not above 0.3.
    (masks.anchors, {(0, 0)}, {(2, 0)}),
    # Ranks 0 and 1 but the label; of the unreliable pixel rank 2 alone.
    (masks.negatives, {(0, 1), (1, 0), (1, 1)}, {(1, 3)}),
  ]:
    pairs = [{(x, c) for _, x, c in np.argwhere(image)} for image in actual]
    assert pairs == [labeled, unlabeled]


def test_an_ignored_pixel_is_neither_positive_nor_negative():
  probs = np.array([0.4, 0.3, 0.2, 0.1])[None, None, None]
  on = np.ones((1, 1, 1), bool)
  actual = ref_contrast.unlabeled_negative_masks(probs, row([1]), on)
  np.testing.assert_array_equal(actual[0, 0, 0], [0, 0, 0, 1])
  assert not ref_contrast.unlabeled_negative_masks(probs, row([-1]), on).any()
  assert not ref_contrast.positive_masks(row([-1]), on, 4).any()


def test_class_means():
  features = np.array([[1.0, 0], [3, 2], [5, 5]])[None, None]
  masks = ref_contrast.positive_masks(row([1, 1, 0]), row([1, 1, 0], bool), 3)
  means, counts = ref_contrast.class_means(features, masks)
  np.testing.assert_array_equal(means, [[0, 0], [2, 1], [0, 0]])
  np.testing.assert_array_equal(counts, [0, 2, 0])


def test_info_nce():
  assert ref_contrast.cosine([3, 4], [1, 0]) == pytest.approx(0.6)
  assert ref_contrast.cosine([0, 0], [1, 0]) == 0
  anchors, negatives = np.array([[2.0, 0]] * 3), np.full((3, 50, 2), [-3.0, 0])
  floor = ref_contrast.info_nce(anchors, np.array([1.0, 0]), negatives)
  assert floor == pytest.approx(LN(1 + 50 * math.exp(-4)))
  # Cosines 1 / 0.6 and 0 / 0.6, one negative at right angles to each.
  actual = ref_contrast.info_nce(
    np.array([[5.0, 0], [0, 1]]),
    np.array([3.0, 4]),
    np.array([[[0, 1.0]], [[1.0, 0]]]),
    tau=1,
  )
  expected = (LN(1 + math.exp(-0.6)) + LN(1 + math.exp(-0.8))) / 2
  assert actual == pytest.approx(expected)


def test_uniform_to_index():
  actual = ref.uniform_to_index([0, 0.249, 0.25, 0.5, 0.999], 4)
  np.testing.assert_array_equal(actual, [0, 0, 1, 2, 3])


def test_bank_is_first_in_first_out():
  bank = ref_contrast.Bank([2, 3])
  bank.push(0, np.array([[1.0], [2], [3]]))
  bank.push(0, np.array([[4.0]]))
  bank.push(1, np.array([[5.0], [6]]))
  np.testing.assert_array_equal(bank.rows(0), [[3], [4]])
  np.testing.assert_array_equal(bank.rows(1), [[5], [6]])
  assert (bank.size(0), bank.size(1)) == (2, 2)
  assert ref_contrast.bank_capacities(3) == [50_000, 30_000, 30_000]


@pytest.fixture
def contrast():
  """Returns three classes: class 0 has anchors and keys, class 1 no anchor."""
  at = {'anchors': [(0, 0), (1, 0)], 'positives': [(0, 0), (1, 0), (2, 1)]}
  at['negatives'] = [(2, 0), (3, 0), (2, 1)]
  masks = {name: np.zeros((1, 1, 4, 3), bool) for name in at}
  for name, pairs in at.items():
    for x, category in pairs:
      masks[name][0, 0, x, category] = True
  student = np.array([[0.0, 1], [1, 0], [9, 9], [9, 9]])[None, None]
  teacher = np.array([[2.0, 0], [4, 0], [-1, 0], [0, 1]])[None, None]
  return student, teacher, ref_contrast.ContrastMasks(**masks)


def test_contrastive_step(contrast):
  student, teacher, masks = contrast
  bank = ref_contrast.Bank([4, 4, 4])
  anchor_draws, bank_draws = {0: [1, 1]}, {0: np.array([[0], [1]])}
  actual = ref_contrast.contrastive_step(
    student, teacher, masks, bank, anchor_draws, bank_draws
  )
  # Anchor (1,0), positive (3,0), negatives (-1,0) and (0,1): cosines 1, -1, 0.
  expected = (LN(1 + math.exp(-4)) + LN(1 + math.exp(-2))) / 2
  assert actual == pytest.approx(expected / 2)  # V = 2: class 1 counts as 0
  np.testing.assert_array_equal(bank.rows(0), [[-1, 0], [0, 1]])
  np.testing.assert_array_equal(bank.rows(1), [[-1, 0]])
  assert bank.size(2) == 0
  # Another positive, at right angles to the anchor; a part of the keys.
  bank = ref_contrast.Bank([4, 4, 4])
  actual = ref_contrast.contrastive_step(
    student,
    teacher,
    masks,
    bank,
    {0: [1]},
    {0: np.array([[0]])},
    positives=np.array([[0.0, 1], [0, 0], [0, 0]]),
    push_draws={0: [1]},
  )
  np.testing.assert_array_equal(bank.rows(0), [[0, 1]])
  assert actual == pytest.approx(LN(2) / 2)


def test_one_class_has_no_loss_but_its_keys_are_pushed(contrast):
  student, teacher, masks = contrast
  masks.positives[..., 1] = False
  bank = ref_contrast.Bank([4, 4, 4])
  actual = ref_contrast.contrastive_step(
    student, teacher, masks, bank, {0: [0]}, {0: np.array([[0]])}
  )
  assert actual == 0
  assert [bank.size(category) for category in range(3)] == [2, 1, 0]


# Prototypes


def test_momentum_prototypes():
  state = ref_contrast.no_prototypes(2, 1)
  state = ref_contrast.update_prototypes(
    state, np.array([[8.0], [0]]), [3, 0], 0.75
  )
  np.testing.assert_array_equal(state.values, [[8], [0]])
  np.testing.assert_array_equal(state.updates, [1, 0])
  state = ref_contrast.update_prototypes(
    state, np.array([[4.0], [6]]), [1, 1], 0.75
  )
  np.testing.assert_array_equal(state.values, [[7], [6]])
  state = ref_contrast.update_prototypes(
    state, np.array([[0.0], [2]]), [0, 1], 0.75
  )
  np.testing.assert_array_equal(state.values, [[7], [5]])
  np.testing.assert_array_equal(state.updates, [2, 2])


def test_ramp_is_the_plain_mean_at_first():
  state = ref_contrast.no_prototypes(1, 1)
  for value in (1.0, 3.0, 8.0):
    state = ref_contrast.update_prototypes(
      state, np.array([[value]]), [1], ramp=True
    )
  assert state.values[0, 0] == pytest.approx(4)


def test_denoising_weights():
  features = np.array([3.0, 4.0])[None, None, None]
  values = np.array([[0, 0], [3, 1], [7, 7]], float)
  # Distances 5 and 3; the class without an update is at 4.
  state = ref_contrast.Prototypes(values, np.array([1, 1, 0]))
  powers = np.exp([-5.0, -3, -4])
  actual = ref_contrast.denoising_weights(features, state)[0, 0, 0]
  np.testing.assert_allclose(actual, powers / powers.sum())
  # Directions (0.6, 0.8) and (1, 0): 0.8^0.5 apart; the same: 0.
  state = ref_contrast.Prototypes(
    np.array([[2.0, 0], [6, 8]]), np.array([1, 1])
  )
  powers = np.exp([-math.sqrt(0.8), 0])
  actual = ref_contrast.denoising_weights(features, state, 'l2')[0, 0, 0]
  np.testing.assert_allclose(actual, powers / powers.sum())
  actual = ref_contrast.denoising_weights(
    features, ref_contrast.no_prototypes(4, 2)
  )
  np.testing.assert_allclose(actual, np.full((1, 1, 1, 4), 0.25))
  with pytest.raises(ValueError, match='similarity'):
    ref_contrast.denoising_weights(features, state, 'cosine')


def test_denoised_labels():
  # Weights (e, 1)/(e+1), then (1, e)/(e+1), and half-half between them.
  features = np.array([[0.0], [1.0]])[None, None]
  state = ref_contrast.Prototypes(np.array([[0.0], [1.0]]), np.array([1, 1]))
  probs = np.array([[0.4, 0.6], [0.4, 0.6], [0.7, 0.3]])[None, None]
  labels, weighted = ref_contrast.denoised_labels(probs, features, state)
  np.testing.assert_array_equal(labels, row([0, 1, 1]))
  low = 1 / (math.e + 1)
  expected = [[0.4 * (1 - low), 0.6 * low], [0.2, 0.3]]
  expected.append([0.7 * low, 0.3 * (1 - low)])
  np.testing.assert_allclose(weighted[0, 0], expected)


# Teacher and schedules


def test_teacher_decay():
  assert [ref.ema_decay(k) for k in (0, 1, 3)] == [0, 0.5, 0.75]
  assert ref.ema_decay(98) == pytest.approx(98 / 99)
  assert ref.ema_decay(1000) == 0.99
  assert ref.ema(np.array(2.0), np.array(6.0), 0.75) == 3
  actual = [ref.teacher_decay(step, 2) for step in range(6)]
  np.testing.assert_allclose(actual, [1, 1, 0, 0, 2 / 3, 3 / 4])
  actual = [ref.teacher_decay(step, 2, sup_only_epoch=0) for step in range(3)]
  np.testing.assert_allclose(actual, [0, 0, 2 / 3])
  assert ref.total_loss(1, 2, 3) == pytest.approx(3.3)


def test_poly_learning_rate():
  assert ref.poly_learning_rate(0.01, 0, 10) == 0.01
  assert ref.poly_learning_rate(1, 3, 4, power=0.5) == pytest.approx(0.5)
  assert ref.poly_learning_rate(1, 5, 10) == pytest.approx(2**-0.9)


def test_epochs_of_the_published_splits():
  unlabeled = [10490, 10399, 10216, 9850, 9118, 9920, 9259, 7936, 5291]
  unlabeled += [2789, 2603, 2231, 1487]
  actual = [ref.steps_per_epoch(count, 16) for count in unlabeled]
  expected = [655, 649, 638, 615, 569, 620, 578, 496, 330, 174, 162, 139, 92]
  assert actual == expected
  assert ref.labeled_only_steps_per_epoch(92, 16) * 80 == 480


def test_labeled_entries():
  actual = ref.labeled_entries(3, 5, [5, 0, 4, 1, 2, 3])
  np.testing.assert_array_equal(actual, [2, 0, 1, 1, 2])
  with pytest.raises(ValueError, match='permutation of 6'):
    ref.labeled_entries(3, 5, [0, 1, 2, 3, 4])


# Grids and mixing


def test_nearest():
  actual = ref.nearest_indices(513, 129)
  assert actual[:6] == [0, 3, 7, 11, 15, 19]
  assert actual[-3:] == [501, 505, 509]
  picture = np.arange(20).reshape(1, 4, 5)
  np.testing.assert_array_equal(
    ref.nearest(picture, (2, 3)), [[[0, 1, 3], [10, 11, 13]]]
  )


def test_bilinear():
  corners = np.array([[0.0, 3], [6, 9]])[None, ..., None]
  actual = ref.bilinear(corners, (3, 4))[0, ..., 0]
  np.testing.assert_allclose(actual, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
  np.testing.assert_allclose(ref.bilinear(corners, (1, 1)), [[[[0]]]])
  np.testing.assert_allclose(ref.bilinear(corners[:, :1, :1], (2, 2)), 0)


def test_box():
  # W = 8: columns 5, 6 or 7; rows 24 / 5 = 4.8, 24 / 6 = 4, 24 / 7 = 3.43.
  assert ref.box_from_uniform((0, 0, 0), (6, 8)) == (0, 0, 5, 5)
  assert ref.box_from_uniform((0.5, 0.5, 0.5), (6, 8)) == (1, 1, 4, 6)
  assert ref.box_from_uniform((0.99, 0.99, 0.99), (6, 8)) == (3, 1, 3, 7)


def test_mixing():
  labels = np.array([[[0, 0, 1], [0, 2, 1]], [[3, 3, 3], [4, 4, 4]]])
  images = np.stack([labels + 10, labels + 20], axis=-1).astype(float)
  boxes = [(0, 1, 2, 1), (1, 0, 1, 2)]
  mixed, targets = ref.cutmix(images, labels, boxes)
  expected = np.array([[[0, 3, 1], [0, 4, 1]], [[3, 3, 3], [0, 2, 4]]])
  np.testing.assert_array_equal(targets, expected)
  np.testing.assert_array_equal(mixed[..., 0], expected + 10)
  mixed, targets = ref.cutout(images, labels, boxes)
  expected = [[[0, -1, 1], [0, -1, 1]], [[3, 3, 3], [-1, -1, 4]]]
  np.testing.assert_array_equal(targets, expected)
  np.testing.assert_array_equal(mixed[0, ..., 1], [[20, 0, 21], [20, 0, 21]])
  assert [ref.classmix_count(image) for image in labels] == [1, 1]
  mixed, targets = ref.classmix(images, labels, [{0}, {4}])
  expected = np.array([[[0, 0, 3], [0, 4, 4]], [[0, 0, 1], [4, 4, 4]]])
  np.testing.assert_array_equal(targets, expected)
  np.testing.assert_array_equal(mixed[..., 0], expected + 10)


def test_numeric_gradient():
  x = np.array([[1.0, -2], [0.5, 3]])
  actual = ref.numeric_gradient(lambda value: (value**3).sum(), x)
  np.testing.assert_allclose(actual, 3 * x**2, rtol=1e-8)
