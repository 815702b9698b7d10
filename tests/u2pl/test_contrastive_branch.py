"""Contrastive branch: state over steps, targets, loss and denoising."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transcriptions import u2pl as reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import inputs, numpy_contrast
from u2pl import contrast, contrastive_branch, memory_bank, prototypes

BATCH, CELLS, CLASSES, DIM = 4, (5, 6), 5, 3
OPTIONS = dataclasses.replace(
  inputs.CONTRAST,
  num_anchors=7,
  high_rank=4,
  capacity=20,
  first_capacity=30,
  max_push=12,
)


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def branch_of(options=OPTIONS, momentum=0.9):
  return contrastive_branch.ContrastiveBranch(CLASSES, DIM, options, momentum)


def inputs_of(seed=0, scale=1):
  """Draws features, probabilities, labels and masks for `update`.

  Args:
    seed: of the draws.
    scale: size of the labels and masks, in sizes of the features.
  """
  rng = np.random.default_rng(seed)
  size = (scale * CELLS[0], scale * CELLS[1])
  labeled = np.zeros((BATCH, *size), bool)
  labeled[::2] = True
  reliable = ~labeled & (rng.random(labeled.shape) < 0.6)
  return (
    rng.normal(size=(BATCH, *CELLS, DIM)),
    reference.softmax(rng.normal(scale=2, size=(BATCH, *CELLS, CLASSES))),
    rng.integers(-1, CLASSES, (BATCH, *size)),
    contrastive_branch.PixelMasks(labeled, reliable, ~labeled & ~reliable),
  )


@functools.partial(jax.jit, static_argnums=0)
def update(branch, state, inputs, key):
  return branch.update(state, *inputs, key)


candidates_of = jax.jit(contrast.contrast_candidates, static_argnums=5)


def key(seed=0):
  return jax.random.PRNGKey(seed)


def assert_equal_trees(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_two_steps_are_those_of_the_reference():
  """Compares prototypes, bank and loss with numpy, in two steps."""
  branch = branch_of()
  state = branch.init()
  bank = contrast_reference.Bank([30, 20, 20, 20, 20])
  known = contrast_reference.no_prototypes(CLASSES, DIM)
  for step in range(2):
    features, probs, labels, masks = inputs_of(step)
    state, targets = update(
      branch, state, (features, probs, labels, masks), key(step)
    )
    student = np.random.default_rng(10 + step).normal(size=features.shape)
    loss = jax.jit(branch.loss)(student, targets, state)

    masks = contrast_reference.contrast_masks(
      probs[::2],
      labels[::2],
      probs[1::2],
      labels[1::2],
      masks.reliable[1::2],
      masks.unreliable[1::2],
      threshold=0.1,
      r_l=2,
      r_h=4,
    )
    expected = numpy_contrast.step(
      numpy_contrast.interleave(masks),
      features,
      student,
      known,
      bank,
      key(step),
      OPTIONS,
      momentum=0.9,
    )
    known = expected.prototypes
    assert expected.anchor_counts.min() > 0
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(state.prototypes.vectors, known.values)
    sizes = [bank.size(c) for c in range(CLASSES)]
    np.testing.assert_array_equal(state.bank.count, sizes)
    assert step == 0 or 20 in sizes[1:]  # Some ring has wrapped around.


def test_without_a_loss_there_are_prototypes_alone():
  branch = branch_of(options=None, momentum=0.0)
  state = branch.init()
  assert state.bank is None
  features, _, labels, masks = inputs = inputs_of()
  state, targets = update(branch, state, inputs, key())
  assert targets is None and state.bank is None
  means, _ = contrast_reference.class_means(
    features,
    contrast_reference.positive_masks(
      labels, masks.labeled | masks.reliable, CLASSES
    ),
  )
  np.testing.assert_allclose(state.prototypes.vectors, means)


def test_without_a_bank_only_negatives_of_the_step_are_drawn():
  branch = branch_of(dataclasses.replace(OPTIONS, bank=False))
  before, _ = update(branch, branch.init(), inputs_of(0), key(0))
  after, targets = jax.device_get(update(branch, before, inputs_of(1), key(1)))
  alone, _ = jax.device_get(update(branch, branch.init(), inputs_of(1), key(1)))
  np.testing.assert_array_equal(after.bank.count, alone.bank.count)
  for c, count in enumerate(np.asarray(alone.bank.count)):
    ring = slice(alone.bank.starts[c], alone.bank.starts[c] + count)
    np.testing.assert_array_equal(after.bank.rows[ring], alone.bank.rows[ring])
    drawn = targets.draws[c] - ring.start
    assert drawn.min() >= 0 and drawn.max() < count


def test_labels_are_read_at_the_cells_of_the_features():
  features, probs, labels, masks = inputs_of(scale=3)
  at_cells = contrastive_branch.PixelMasks(*(m[:, ::3, ::3] for m in masks))
  branch = branch_of()
  fine = update(branch, branch.init(), (features, probs, labels, masks), key())
  coarse = update(
    branch,
    branch.init(),
    (features, probs, labels[:, ::3, ::3], at_cells),
    key(),
  )
  assert_equal_trees(fine, coarse)


def test_candidates_of_another_rule_take_the_same_way():
  features, probs, labels, masks = inputs_of()
  branch = branch_of()
  usual = update(branch, branch.init(), (features, probs, labels, masks), key())
  candidates = candidates_of(probs, labels, *masks, OPTIONS)
  given = jax.jit(branch.update_with)(
    branch.init(), features, candidates, key()
  )
  assert_equal_trees(usual, given)


def test_an_image_may_hold_labeled_and_unlabeled_cells():
  """Checks cells of both rules in an image, as mixing of two domains gives."""
  _, probs, labels, masks = inputs_of()
  all_cells, none = np.ones_like(masks.labeled), np.zeros_like(masks.labeled)
  unlabeled = candidates_of(
    probs, labels, none, ~masks.unreliable, masks.unreliable, OPTIONS
  )
  labeled = candidates_of(probs, labels, all_cells, none, none, OPTIONS)
  left = np.arange(CELLS[1]) < 3
  mixed = candidates_of(
    probs,
    labels,
    all_cells & left,
    ~masks.unreliable & ~left,
    masks.unreliable & ~left,
    OPTIONS,
  )
  for i in range(3):
    np.testing.assert_array_equal(
      mixed[i], np.where(left[:, None], labeled[i], unlabeled[i])
    )


def test_only_the_student_has_a_gradient():
  branch = branch_of()
  state, targets = update(branch, branch.init(), inputs_of(), key())
  gradient = jax.jit(jax.grad(branch.loss))(inputs_of(3)[0], targets, state)
  gradient = np.asarray(gradient).reshape(-1, DIM)
  anchors = np.unique(np.asarray(targets.anchors)[np.asarray(targets.usable)])
  nonzero = np.flatnonzero(np.abs(gradient).max(-1))
  np.testing.assert_array_equal(nonzero, anchors)


@pytest.mark.parametrize('kind', ['raw', 'l2'])
def test_denoising_waits_for_a_prototype_of_every_class(kind):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, *CELLS, DIM))
  scores = rng.normal(scale=0.3, size=(2, 9, 11, CLASSES))
  vectors = rng.normal(size=(CLASSES, DIM))
  denoise = jax.jit(branch_of(options=None).denoise, static_argnums=3)

  def labels(updates, due):
    state = contrastive_branch.BranchState(
      None, prototypes.Prototypes(vectors, np.asarray(updates))
    )
    denoised = denoise(state, scores, features, kind, due)
    return np.argmax(denoised, -1)

  def expected(updates):
    known = contrast_reference.Prototypes(vectors, np.array(updates))
    return contrast_reference.denoised_labels(
      reference.softmax(scores), features, known, kind
    )[0]

  every, some = [1, 2, 1, 1, 3], [1, 2, 0, 1, 0]
  np.testing.assert_array_equal(labels(every, False), expected(every))
  np.testing.assert_array_equal(labels(some, False), scores.argmax(-1))
  np.testing.assert_array_equal(labels(some, True), expected(some))
  assert (labels(every, False) != scores.argmax(-1)).any()


def test_scalars_are_the_fill_and_the_share_of_classes_with_a_loss():
  branch = branch_of()
  bank = memory_bank.empty_memory_bank(OPTIONS.capacities(CLASSES), DIM)
  bank = bank.replace(count=jnp.array([15, 20, 0, 5, 10]))
  state = contrastive_branch.BranchState(bank, None)
  targets = contrastive_branch.ContrastiveTargets(
    anchors=None,
    draws=None,
    positives=None,
    usable=jnp.array([True, True, False, True, True]),
    present=jnp.array([True, True, True, False, True]),
  )
  scalars = branch.scalars(state, targets)
  fill = [float(scalars[f'bank_fill/{c}']) for c in range(CLASSES)]
  np.testing.assert_allclose(fill, [0.5, 1, 0, 0.25, 0.5])
  assert scalars['contrasted_share'] == 0.75
