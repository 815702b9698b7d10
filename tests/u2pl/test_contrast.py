"""Candidates and InfoNCE against the transcription, on given draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.ops import order_statistics
from tests.transcriptions import u2pl as reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import inputs
from u2pl import contrast, prototypes


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


candidates = jax.jit(contrast.contrast_candidates, static_argnums=5)
class_ranks = jax.jit(contrast.class_probability_ranks)


def masks_of(options, seed=0):
  """Returns actual and expected candidates of two labeled and two mixed images.

  Also returns which of the images are labeled.
  """
  probs = reference.softmax(inputs.draw(4, 4, 5, inputs.CLASSES, seed=seed))
  labels = inputs.draw_labels(4, 4, 5, seed=seed + 1)
  entropies = reference.entropy(probs)
  labeled = np.array([True, False, True, False])  # As batches are joined.
  reliable, unreliable = (
    np.zeros(labels.shape, bool),
    np.zeros(labels.shape, bool),
  )
  reliable[~labeled], unreliable[~labeled] = reference.reliability_masks(
    entropies[~labeled], labels[~labeled], 0.37, options.anchor_entropy
  )
  actual = candidates(
    probs,
    labels,
    np.broadcast_to(labeled[:, None, None], labels.shape),
    reliable,
    unreliable,
    options,
  )
  actual = jax.device_get(actual)
  expected = contrast_reference.contrast_masks(
    *(probs[labeled], labels[labeled], probs[~labeled], labels[~labeled]),
    *(reliable[~labeled], unreliable[~labeled]),
    threshold=options.anchor_threshold,
    r_l=options.low_rank,
    r_h=options.high_rank,
  )
  return actual, expected, labeled


@pytest.mark.parametrize('anchor_entropy', ['paper', 'released'])
@pytest.mark.parametrize(('low', 'high'), [(3, 20), (2, 5), (1, 3)])
def test_candidates(anchor_entropy, low, high):
  options = contrast.ContrastOptions(
    low_rank=low, high_rank=high, anchor_entropy=anchor_entropy
  )
  actual, expected, labeled = masks_of(options)
  for name in ('anchors', 'positives', 'negatives'):
    mask = np.asarray(getattr(actual, name))
    together = np.concatenate([mask[labeled], mask[~labeled]])
    np.testing.assert_array_equal(together, getattr(expected, name), name)
    assert mask.any(), name
  # Nothing is both of a class and against it where the truth is known.
  assert not (actual.positives & actual.negatives)[labeled].any()


def test_without_ranks_cells_are_negatives_of_all_other_classes():
  actual, _, labeled = masks_of(contrast.ContrastOptions(by_rank=False))
  probs = reference.softmax(inputs.draw(4, 4, 5, inputs.CLASSES))
  labels = inputs.draw_labels(4, 4, 5)
  _, unreliable = reference.reliability_masks(
    reference.entropy(probs)[~labeled], labels[~labeled], 0.37
  )
  classes = np.arange(inputs.CLASSES)
  expected = (labels[labeled][..., None] != classes) & (labels[labeled] >= 0)[
    ..., None
  ]
  np.testing.assert_array_equal(actual.negatives[labeled], expected)
  first = probs[~labeled].argmax(-1)
  expected = (first[..., None] != classes) & unreliable[..., None]
  np.testing.assert_array_equal(actual.negatives[~labeled], expected)


def test_ranks_of_equal_probabilities():
  probs = np.array([[0.25, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
  np.testing.assert_array_equal(
    class_ranks(probs), [[1, 2, 0, 3], [1, 2, 3, 0]]
  )
  random = reference.softmax(inputs.draw(3, 4, inputs.CLASSES))
  np.testing.assert_array_equal(
    class_ranks(random),
    contrast_reference.ranks(random),
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
def test_source_of_unlabeled_negatives(kind, expected):
  probs = reference.softmax(np.zeros((1, 1, 2, inputs.CLASSES)))
  actual = candidates(
    probs,
    np.zeros((1, 1, 2), int),
    np.zeros((1, 1, 2), bool),
    np.array([[[True, False]]]),
    np.array([[[False, True]]]),
    contrast.ContrastOptions(negatives=kind),
  )
  # Class 5 has rank 5 everywhere.
  assert actual.negatives[0, 0, :, 5].tolist() == expected


@pytest.mark.parametrize('tau', [0.5, 0.07])
def test_info_nce_and_its_gradient(tau):
  anchors, positive = inputs.draw(4, 8), inputs.draw(8, seed=1)
  negatives = inputs.draw(4, 5, 8, seed=2)

  @jax.jit
  def loss(x):
    return contrast.anchor_info_nce(
      x, jnp.asarray(positive), jnp.asarray(negatives), tau
    )

  def reference_loss(x):
    return contrast_reference.info_nce(x, positive, negatives, tau)

  inputs.assert_close(loss(anchors), reference_loss(anchors))
  inputs.assert_gradient(loss, reference_loss, anchors)


def test_info_nce_is_finite_for_vectors_of_length_0():
  def loss(x):
    return contrast.anchor_info_nce(
      x,
      positive=jnp.zeros(3),
      negatives=jnp.zeros((2, 4, 3)),
      temperature=0.5,
    )

  value, gradient = jax.jit(jax.value_and_grad(loss))(np.zeros((2, 3)))
  inputs.assert_close(value, np.log(5))
  assert np.isfinite(gradient).all()


def step_inputs(seed=0):
  options = contrast.ContrastOptions(low_rank=2, high_rank=5, num_anchors=7)
  actual, _, _ = masks_of(options, seed)
  student, teacher = (
    inputs.draw(4, 4, 5, 3, seed=5),
    inputs.draw(4, 4, 5, 3, seed=6),
  )
  bank = contrast_reference.Bank([11] + [9] * (inputs.CLASSES - 1))
  return actual, student, teacher, bank


def test_the_whole_contrastive_loss_on_given_draws():
  actual, student, teacher, bank = step_inputs()
  # The reference takes cells in the joined order too.
  joined = contrast_reference.ContrastMasks(*map(np.asarray, actual))
  rng = np.random.default_rng(7)
  uniforms = rng.random((inputs.CLASSES, 7)), rng.random((inputs.CLASSES, 7, 4))
  contrast_reference.push_negatives(bank, teacher, joined.negatives)
  anchor_counts = joined.anchors.sum((0, 1, 2))
  sizes = [bank.size(c) for c in range(inputs.CLASSES)]
  assert min(sizes) > 0 and anchor_counts.max() > 1
  anchor_draws = [
    reference.uniform_to_index(u, max(n, 1))
    for u, n in zip(uniforms[0], anchor_counts, strict=True)
  ]
  bank_draws = [
    reference.uniform_to_index(u, n)
    for u, n in zip(uniforms[1], sizes, strict=True)
  ]
  means, counts = contrast_reference.class_means(teacher, joined.positives)

  by_pixel = [mask.reshape(4, -1, inputs.CLASSES) for mask in actual]
  picked = jax.jit(order_statistics.ranks_from_uniforms)(
    uniforms[0], anchor_counts[:, None]
  )
  np.testing.assert_array_equal(
    np.asarray(picked)[anchor_counts > 0],
    np.array(anchor_draws)[anchor_counts > 0],
  )
  at = jax.jit(order_statistics.nth_true_pixels)(by_pixel[0], picked)
  rows = np.concatenate([bank.rows(c) for c in range(inputs.CLASSES)])
  starts = np.cumsum([0, *sizes[:-1]])[:, None, None]

  @jax.jit
  def loss(x):
    losses_of = contrast.class_contrast_losses(
      x.reshape(-1, 3)[at],
      jnp.asarray(means),
      jnp.asarray(rows),
      jnp.asarray(starts + np.array(bank_draws)),
      0.5,
    )
    return contrast.mean_contrast_over_classes(
      losses_of, jnp.asarray(anchor_counts > 0), jnp.asarray(counts > 0)
    )

  def reference_loss(x):
    return contrast_reference.contrastive_loss(
      x, joined, means, bank, anchor_draws, bank_draws
    )

  inputs.assert_close(loss(student), reference_loss(student))
  inputs.assert_gradient(loss, reference_loss, student)
  actual_means, actual_counts = jax.jit(prototypes.class_mean_features)(
    teacher, actual.positives
  )
  inputs.assert_close(actual_means, means)
  np.testing.assert_array_equal(actual_counts, counts)


def test_loss_is_0_unless_two_classes_are_present():
  mean = jax.jit(contrast.mean_contrast_over_classes)
  present, both = np.array([True, False]), np.array([True, True])
  assert mean(np.ones(2), present, present) == 0
  # A present class without an anchor counts in the mean.
  assert mean(np.ones(2), present, both) == 0.5


def test_capacities():
  expected = contrast_reference.bank_capacities(21)
  assert contrast.ContrastOptions().capacities(21) == tuple(expected)
