"""The parts of U2PL against slow numpy transcriptions (`reference_u2pl`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import resize
from segcore.ops import losses, order_statistics
from segcore.train import optimizers
from tests.transcriptions import u2pl as reference
from u2pl import contrast, ema, memory_bank, mixing, prototypes, pseudo_labels

CLASSES = 6


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def drawn(*shape, seed=0, scale=2.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


def labels_of(*shape, seed=1, classes=CLASSES):
  """Some are ignored."""
  return np.random.default_rng(seed).integers(-1, classes, shape)


def assert_close(found, expected, rtol=1e-6):
  np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=1e-12)


def assert_gradient(loss, reference_loss, x, rtol=1e-5):
  """The gradient by automatic differentiation is that by differences."""
  found = jax.grad(loss)(jnp.asarray(x))
  expected = reference.numeric_gradient(reference_loss, x)
  np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-8)


# Losses of pixels.


def mean_cross_entropy(logits, labels):
  return losses.masked_mean(losses.cross_entropy(logits, labels), labels >= 0)


def test_cross_entropy():
  logits, labels = drawn(2, 3, 4, CLASSES), labels_of(2, 3, 4)
  assert_close(
    mean_cross_entropy(jnp.asarray(logits), jnp.asarray(labels)),
    reference.cross_entropy(logits, labels),
  )
  assert_gradient(
    lambda x: mean_cross_entropy(x, jnp.asarray(labels)),
    lambda x: reference.cross_entropy(x, labels),
    logits,
  )


@pytest.mark.parametrize(
  ('least', 'threshold'),
  [
    (0, 0.7),  # All pixels.
    (10_000, 0.7),  # Fewer with a label than that.
    (5, 0.9),  # The threshold keeps more.
    (20, 0.01),  # The number keeps more.
    (1, 0.3),
  ],
)
def test_hardest_pixels(least, threshold):
  logits, labels = drawn(2, 4, 5, CLASSES), labels_of(2, 4, 5)
  found = losses.hard_example_mask(
    jnp.asarray(logits), jnp.asarray(labels), threshold, least
  )
  expected = reference.ohem_kept(logits, labels, least, threshold)
  np.testing.assert_array_equal(found, expected)
  assert expected.any()

  def loss(x):
    kept = losses.hard_example_mask(x, jnp.asarray(labels), threshold, least)
    return losses.masked_mean(
      losses.cross_entropy(x, jnp.asarray(labels)), kept
    )

  def reference_loss(x):
    return reference.ohem(x, labels, least, threshold)

  assert_close(loss(jnp.asarray(logits)), reference_loss(logits))
  assert_gradient(loss, reference_loss, logits)


@pytest.mark.parametrize('xi', [(1.0, 0.0), (1.0, 0.1), (0.1, 1.0)])
def test_symmetric_cross_entropy(xi):
  logits, labels = drawn(1, 3, 4, CLASSES), labels_of(1, 3, 4)

  def loss(x):
    values = pseudo_labels.symmetric_cross_entropy(x, jnp.asarray(labels), *xi)
    return losses.masked_mean(values, jnp.asarray(labels) >= 0)

  def reference_loss(x):
    return reference.symmetric_cross_entropy(x, labels, xi)

  assert_close(loss(jnp.asarray(logits)), reference_loss(logits))
  assert_gradient(loss, reference_loss, logits)


# Which pixels are believed.


def test_entropy():
  logits = drawn(2, 3, CLASSES)
  assert_close(
    pseudo_labels.entropy(jnp.asarray(logits)),
    reference.entropy(reference.softmax(logits)),
  )


@pytest.mark.parametrize('epoch', [0, 1, 40, 79])
def test_partition_shrinks(epoch):
  partition = pseudo_labels.PartitionOptions(20.0)
  assert_close(
    partition.at(jnp.asarray(epoch / 80)),
    100 * reference.unreliable_share(epoch, 80),
  )
  still = pseudo_labels.PartitionOptions(20.0, dynamic=False)
  assert float(still.at(jnp.asarray(epoch / 80))) == 20.0


@pytest.mark.parametrize('percent', [80.0, 91.7, 99.75])
def test_percentile_and_weight(percent):
  values = np.abs(drawn(2, 7, 5))
  valid = labels_of(2, 7, 5) >= 0
  gamma = order_statistics.percentile(
    jnp.asarray(values), jnp.asarray(valid), percent
  )
  assert_close(gamma, reference.percentile(values, valid, percent))
  kept = valid & (values < np.asarray(gamma))
  assert_close(
    pseudo_labels.weight(jnp.asarray(kept)), reference.adaptive_weight(kept)
  )
  assert float(pseudo_labels.weight(jnp.zeros(9, bool))) == 9.0


# Contrast.


def masks_of(options, seed=0):
  """Found and expected candidates of two labeled and two mixed images."""
  probs = reference.softmax(drawn(4, 4, 5, CLASSES, seed=seed))
  labels = labels_of(4, 4, 5, seed=seed + 1)
  entropies = reference.entropy(probs)
  of = np.array([True, False, True, False])  # As batches are joined.
  reliable, unreliable = (
    np.zeros(labels.shape, bool),
    np.zeros(labels.shape, bool),
  )
  reliable[~of], unreliable[~of] = reference.reliability_masks(
    entropies[~of], labels[~of], 0.37, options.anchor_entropy
  )
  found = contrast.candidates(
    jnp.asarray(probs),
    jnp.asarray(labels),
    jnp.asarray(np.broadcast_to(of[:, None, None], labels.shape)),
    jnp.asarray(reliable),
    jnp.asarray(unreliable),
    options,
  )
  expected = reference.contrast_masks(
    *(probs[of], labels[of], probs[~of], labels[~of]),
    *(reliable[~of], unreliable[~of]),
    threshold=options.anchor_threshold,
    r_l=options.low_rank,
    r_h=options.high_rank,
  )
  return found, expected, of


@pytest.mark.parametrize('anchor_entropy', ['paper', 'released'])
@pytest.mark.parametrize(('low', 'high'), [(3, 20), (2, 5), (1, 3)])
def test_candidates(anchor_entropy, low, high):
  options = contrast.ContrastOptions(
    low_rank=low, high_rank=high, anchor_entropy=anchor_entropy
  )
  found, expected, of = masks_of(options)
  for name in ('anchors', 'positives', 'negatives'):
    mask = np.asarray(getattr(found, name))
    together = np.concatenate([mask[of], mask[~of]])
    np.testing.assert_array_equal(together, getattr(expected, name), name)
    assert mask.any(), name
  # Nothing is both of a class and against it where the truth is known.
  assert not (found.positives & found.negatives)[of].any()


def test_without_ranks_cells_are_negatives_of_all_other_classes():
  found, _, of = masks_of(contrast.ContrastOptions(by_rank=False))
  probs = reference.softmax(drawn(4, 4, 5, CLASSES))
  labels = labels_of(4, 4, 5)
  _, unreliable = reference.reliability_masks(
    reference.entropy(probs)[~of], labels[~of], 0.37
  )
  classes = np.arange(CLASSES)
  expected = (labels[of][..., None] != classes) & (labels[of] >= 0)[..., None]
  np.testing.assert_array_equal(found.negatives[of], expected)
  first = probs[~of].argmax(-1)
  expected = (first[..., None] != classes) & unreliable[..., None]
  np.testing.assert_array_equal(found.negatives[~of], expected)


def test_ranks_of_equal_probabilities():
  probs = np.array([[0.25, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
  found = contrast.ranks(jnp.asarray(probs))
  np.testing.assert_array_equal(found, [[1, 2, 0, 3], [1, 2, 3, 0]])
  random = reference.softmax(drawn(3, 4, CLASSES))
  np.testing.assert_array_equal(
    contrast.ranks(jnp.asarray(random)), reference.ranks(random)
  )


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('unreliable', [False, True]),
    ('reliable', [True, False]),
    ('all', [True, True]),
    ('none', [False, False]),
  ],
)
def test_which_unlabeled_cells_are_negatives(kind, expected):
  probs = jnp.asarray(reference.softmax(np.zeros((1, 1, 2, CLASSES))))
  found = contrast.candidates(
    probs,
    jnp.zeros((1, 1, 2), int),
    jnp.zeros((1, 1, 2), bool),
    jnp.array([[[True, False]]]),
    jnp.array([[[False, True]]]),
    contrast.ContrastOptions(negatives=kind),
  )
  # Class 5 has rank 5 everywhere.
  assert found.negatives[0, 0, :, 5].tolist() == expected


@pytest.mark.parametrize('tau', [0.5, 0.07])
def test_info_nce_and_its_gradient(tau):
  anchors, positive = drawn(4, 8), drawn(8, seed=1)
  negatives = drawn(4, 5, 8, seed=2)

  def loss(x):
    return contrast.info_nce(
      x, jnp.asarray(positive), jnp.asarray(negatives), tau
    )

  def reference_loss(x):
    return reference.info_nce(x, positive, negatives, tau)

  assert_close(loss(jnp.asarray(anchors)), reference_loss(anchors))
  assert_gradient(loss, reference_loss, anchors)


def test_vectors_of_length_0_do_not_hurt():
  zero = jnp.zeros((2, 3))
  loss = functools.partial(
    contrast.info_nce,
    positive=jnp.zeros(3),
    negatives=jnp.zeros((2, 4, 3)),
    temperature=0.5,
  )
  value, gradient = jax.value_and_grad(loss)(zero)
  assert_close(value, np.log(5))
  assert np.isfinite(gradient).all()


def step_inputs(seed=0):
  options = contrast.ContrastOptions(low_rank=2, high_rank=5, num_anchors=7)
  found, _, _ = masks_of(options, seed)
  student, told = drawn(4, 4, 5, 3, seed=5), drawn(4, 4, 5, 3, seed=6)
  bank = reference.Bank([11] + [9] * (CLASSES - 1))
  return found, student, told, bank


def test_the_whole_contrastive_loss_on_given_draws():
  found, student, told, bank = step_inputs()
  # The reference takes cells in the joined order too.
  joined = reference.ContrastMasks(*map(np.asarray, found))
  rng = np.random.default_rng(7)
  uniforms = rng.random((CLASSES, 7)), rng.random((CLASSES, 7, 4))
  reference.push_negatives(bank, told, joined.negatives)
  anchor_counts = joined.anchors.sum((0, 1, 2))
  sizes = [bank.size(c) for c in range(CLASSES)]
  assert min(sizes) > 0 and anchor_counts.max() > 1
  anchor_draws = [
    reference.uniform_to_index(u, max(n, 1))
    for u, n in zip(uniforms[0], anchor_counts, strict=True)
  ]
  bank_draws = [
    reference.uniform_to_index(u, n)
    for u, n in zip(uniforms[1], sizes, strict=True)
  ]
  means, counts = reference.class_means(told, joined.positives)

  by_pixel = [mask.reshape(4, -1, CLASSES) for mask in found]
  picked = order_statistics.ranks_from_uniforms(
    jnp.asarray(uniforms[0]), jnp.asarray(anchor_counts)[:, None]
  )
  np.testing.assert_array_equal(
    np.asarray(picked)[anchor_counts > 0],
    np.array(anchor_draws)[anchor_counts > 0],
  )
  at = order_statistics.nth_true(by_pixel[0], picked)
  rows = np.zeros((CLASSES, 11, 3))
  for c in range(CLASSES):
    rows[c, : sizes[c]] = bank.rows(c)

  def loss(x):
    losses_of = contrast.class_losses(
      x.reshape(-1, 3)[at],
      jnp.asarray(means),
      jnp.asarray(rows),
      jnp.asarray(np.array(bank_draws)),
      0.5,
    )
    return contrast.mean_over_classes(
      losses_of, jnp.asarray(anchor_counts > 0), jnp.asarray(counts > 0)
    )

  def reference_loss(x):
    return reference.contrastive_loss(
      x, joined, means, bank, anchor_draws, bank_draws
    )

  assert_close(loss(jnp.asarray(student)), reference_loss(student))
  assert_gradient(loss, reference_loss, student)
  found_means, found_counts = prototypes.class_means(
    jnp.asarray(told), found.positives
  )
  assert_close(found_means, means)
  np.testing.assert_array_equal(found_counts, counts)


def test_one_class_alone_has_no_loss():
  present = jnp.array([True, False])
  assert contrast.mean_over_classes(jnp.ones(2), present, present) == 0
  both = jnp.array([True, True])
  # A class that has no anchor counts in the mean all the same.
  assert contrast.mean_over_classes(jnp.ones(2), present, both) == 0.5


# The bank.


def test_bank_is_a_queue_of_each_class():
  capacity = (11, 7, 7)
  bank = memory_bank.empty(capacity, 2, jnp.float64)
  expected = reference.Bank(list(capacity))
  push = jax.jit(memory_bank.push)
  rng = np.random.default_rng(0)
  for step in range(1000):
    rows = rng.normal(size=(3, 7, 2))
    counts = rng.integers(0, 8, 3)
    bank = push(bank, rows, counts.astype(np.int32))
    for c in range(3):
      expected.push(c, rows[c, : counts[c]])
    if step % 50 and step > 20:
      continue
    for c in range(3):
      assert bank.count[c] == expected.size(c)
      newest = int(bank.pointer[c])
      ring = np.asarray(bank.rows[c, : capacity[c]])
      if bank.count[c] == capacity[c]:
        ring = np.roll(ring, -newest, axis=0)
      np.testing.assert_array_equal(
        ring[: bank.count[c]], expected.rows(c).reshape(-1, 2)
      )


def test_bank_refuses_more_than_it_holds():
  bank = memory_bank.empty((9, 4), 2)
  with pytest.raises(
    ValueError, match='smallest capacity of 4 per class, got 5'
  ):
    memory_bank.push(bank, jnp.zeros((2, 5, 2)), jnp.zeros(2, jnp.int32))


def test_capacities():
  expected = reference.bank_capacities(21)
  assert contrast.ContrastOptions().capacities(21) == tuple(expected)


# Prototypes.


def test_prototypes_follow_the_classes_that_are_met():
  found = prototypes.empty(CLASSES, 4)
  expected = reference.no_prototypes(CLASSES, 4)
  rng = np.random.default_rng(0)
  for _ in range(5):
    means = rng.normal(size=(CLASSES, 4))
    counts = rng.integers(0, 3, CLASSES)
    counts[5] = 0  # Never met.
    expected = reference.update_prototypes(expected, means, counts, 0.9)
    found = prototypes.update(
      found, jnp.asarray(means), jnp.asarray(counts), 0.9
    )
  assert_close(found.vectors, expected.values)
  np.testing.assert_array_equal(found.updates, expected.updates)
  assert found.updates[5] == 0


@pytest.mark.parametrize('kind', ['raw', 'l2'])
@pytest.mark.parametrize('seen', [0, 2, CLASSES])
def test_denoising_weights(kind, seen):
  features, vectors = drawn(2, 3, 4, 8), drawn(CLASSES, 8, seed=1)
  updates = (np.arange(CLASSES) < seen).astype(int)
  found = prototypes.weights(
    jnp.asarray(features),
    prototypes.Prototypes(jnp.asarray(vectors), jnp.asarray(updates)),
    kind,
  )
  known = reference.Prototypes(vectors, updates)
  assert_close(found, reference.denoising_weights(features, known, kind))
  probs = reference.softmax(drawn(2, 5, 7, CLASSES, seed=3))
  mended = pseudo_labels.upsample(found, (5, 7)) * probs
  labels, weighted = reference.denoised_labels(probs, features, known, kind)
  assert_close(mended, weighted)
  np.testing.assert_array_equal(np.argmax(mended, -1), labels)


# The teacher.


def test_teachers_decay():
  options = ema.EmaOptions()
  for k in (0, 1, 9, 10, 50, 98, 99, 100, 5000):
    found = ema.decay_at(jnp.asarray(k), options, 10)
    # `step` of the reference counts from the start of the run.
    assert_close(found, reference.teacher_decay(10 + k, 10), rtol=1e-7)


def test_average():
  teacher_params, student = {'a': drawn(3)}, {'a': drawn(3, seed=1)}
  found = ema.average(teacher_params, student, 0.9)
  assert_close(
    found['a'], reference.ema(teacher_params['a'], student['a'], 0.9)
  )


def test_poly_schedule():
  options = optimizers.OptimizerOptions(
    name='sgd', learning_rate=0.01, schedule='poly', poly_power=0.9
  )
  rate = optimizers.schedule(options, 50)
  for step in (0, 1, 25, 49):
    assert_close(
      rate(step), reference.poly_learning_rate(0.01, step, 50), rtol=1e-5
    )


# Grids.


def test_labels_are_read_at_the_floor():
  labels = labels_of(1, 513, 9)
  found = resize.nearest_floor(jnp.asarray(labels), (129, 4))
  np.testing.assert_array_equal(found, reference.nearest(labels, (129, 4)))


def test_scores_are_enlarged_with_aligned_corners():
  scores = drawn(1, 5, 4, 3)
  found = pseudo_labels.upsample(jnp.asarray(scores), (9, 13))
  assert_close(found, reference.bilinear(scores, (9, 13)))


# Mixing.


@pytest.mark.parametrize('size', [(8, 12), (64, 64), (513, 513)])
def test_boxes(size):
  uniforms = np.random.default_rng(0).random((500, 3))
  uniforms[0], uniforms[1] = 0.0, 1 - 1e-12
  found = np.asarray(mixing.boxes(jnp.asarray(uniforms), *size))
  expected = [reference.box_from_uniform(u, size) for u in uniforms]
  np.testing.assert_array_equal(found, expected)
  top, left, height, width = found.T
  assert (top >= 0).all() and (top + height <= size[0]).all()
  assert (left >= 0).all() and (left + width <= size[1]).all()
  # Half of the area, up to the rounding of the height.
  area = height * width / (size[0] * size[1])
  assert np.abs(area - 0.5).max() <= 0.5 / size[0] + 1e-9
  # The law: every width from ⌊W/2 + 1⌋ to W - 1 occurs.
  if size[1] == 12:
    assert set(width) == set(range(7, 12))


def pair(seed=0):
  return drawn(4, 6, 8, 3, seed=seed), labels_of(4, 6, 8, seed=seed + 1)


def draws_of(boxes, mixed=True, classes=None):
  if classes is None:
    classes = np.zeros((4, CLASSES))
  return mixing.Draws(
    jnp.full(1, mixed), jnp.asarray(boxes), jnp.asarray(classes)
  )


@pytest.mark.parametrize('kind', ['cutmix', 'cutout'])
def test_boxes_are_mixed(kind):
  images, labels = pair()
  boxes = np.array([(0, 0, 4, 6), (1, 2, 5, 5), (2, 1, 3, 7), (0, 3, 6, 4)])
  found = mixing.mix(
    *map(jnp.asarray, (images, labels)),
    draws_of(boxes),
    mixing.MixingOptions(kind=kind),
  )
  expected = getattr(reference, kind)(images, labels, boxes)
  np.testing.assert_array_equal(found[1], expected[1])
  if kind == 'cutmix':
    np.testing.assert_array_equal(found[0], expected[0])
  else:
    # The reference writes 0, which is the mean color after normalization.
    mean = np.array([124, 116, 104]) / 127.5 - 1
    cut = (expected[0] == 0).all(-1, keepdims=True)
    assert_close(found[0], np.where(cut, mean, expected[0]))


def test_classes_are_mixed():
  images, labels = pair()
  priorities = np.random.default_rng(2).random((4, CLASSES))
  chosen = []
  for label, priority in zip(labels, priorities, strict=True):
    present = np.unique(label[label >= 0])
    kept = present[np.argsort(-priority[present])][: len(present) // 2]
    chosen.append(kept)
    assert len(kept) == reference.classmix_count(label)
  found = mixing.mix(
    *map(jnp.asarray, (images, labels)),
    draws_of(np.zeros((4, 4), int), classes=priorities),
    mixing.MixingOptions(kind='classmix'),
  )
  expected = reference.classmix(images, labels, chosen)
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize('kind', ['cutmix', 'cutout', 'classmix'])
def test_a_group_is_left_alone_together(kind):
  images, labels = pair()
  boxes = np.tile([1, 1, 4, 6], (4, 1))
  found = mixing.mix(
    *map(jnp.asarray, (images, labels)),
    draws_of(boxes, mixed=False),
    mixing.MixingOptions(kind=kind),
  )
  np.testing.assert_array_equal(found[0], images)
  np.testing.assert_array_equal(found[1], labels)


def test_partners_are_neighbors_in_the_group():
  images = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 4, 4, 3))
  labels = np.zeros((6, 4, 4), int)
  draws = mixing.Draws(
    jnp.array([True, False]),
    jnp.tile(jnp.array([0, 0, 4, 4]), (6, 1)),
    jnp.zeros((6, 2)),
  )
  found, _ = mixing.mix(
    jnp.asarray(images),
    jnp.asarray(labels),
    draws,
    mixing.MixingOptions(group=3),
  )
  assert found[:, 0, 0, 0].tolist() == [1, 2, 0, 3, 4, 5]


def test_half_of_the_groups_are_mixed():
  keys = jax.random.split(jax.random.PRNGKey(0), 4000)
  draws = mixing.sample(
    jax.random.PRNGKey(1), keys, mixing.MixingOptions(), (4000, 64, 64), 3
  )
  share = float(draws.mixed.mean())
  # 1,000 throws of a coin: 4 standard deviations are 0.063.
  assert draws.mixed.shape == (1000,) and abs(share - 0.5) < 0.063
  widths = np.asarray(draws.boxes[:, 3])
  assert set(widths) == set(range(33, 64))
  # Uniform: 31 widths, each expected 129 times; 5 standard deviations.
  assert np.abs(np.bincount(widths)[33:] - 4000 / 31).max() < 57
