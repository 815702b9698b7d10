"""Ignored padding of unlabeled images teaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from segcore.train import update as update_lib
from tests.transcriptions import u2pl as reference
from tests.u2pl.semi import tiny
from u2pl import contrastive_branch, memory_bank, mixing, pseudo_labels
from u2pl.semi import losses, mean_teacher
from u2pl.semi import options as options_lib

SHAPE = (tiny.BATCH, tiny.SIZE, tiny.SIZE)


def padded_batch():
  """Returns a batch with padding above, and beside every other image."""
  batch = tiny.draw_batch()
  valid = np.ones(SHAPE, bool)
  valid[:, :9] = False
  valid[::2, :, 27:] = False
  batch['unlabeled']['valid'] = valid
  return batch, valid


@pytest.fixture(scope='module')
def taught():
  """Returns pseudo-labels of a batch with padding, and the key of their draws.

  The teacher is untrained: what it labels does not matter.
  """
  trained = tiny.make_method()
  state = tiny.draw_state(trained, step=9)
  key = jax.random.PRNGKey(3)
  _, output = jax.jit(trained.teacher_output)(state, padded_batch()[0], key)
  return trained, jax.device_get(output), key


def test_pixels_of_padding_take_no_part(taught):
  trained, output, key = taught
  _, valid = padded_batch()
  np.testing.assert_array_equal(output.weak_labels >= 0, valid)
  # Padding is mixed as the images are.
  mixing_rng, row_rng, _ = jax.random.split(key, 3)
  options = trained.options.consistency.mixing

  @jax.jit
  def mix(mixing_rng, row_rng, labels):
    draws = mixing.sample_mixing_draws(
      *(mixing_rng, update_lib.row_prng_keys(row_rng, tiny.BATCH), options),
      *(SHAPE, tiny.CLASSES),
    )
    images = jnp.zeros((*SHAPE, 3))
    return mixing.mix_unlabeled_images(images, labels, draws, options)[1]

  mixed = np.asarray(mix(mixing_rng, row_rng, np.where(valid, 0, -1))) >= 0
  assert (mixed != valid).any()
  np.testing.assert_array_equal(output.labels >= 0, mixed)
  parts = output.reliability
  for used in (output.kept, *parts):
    assert used.any() and not (used & ~mixed).any()
  np.testing.assert_array_equal(parts.reliable | parts.unreliable, mixed)


def test_the_threshold_of_entropy_is_that_of_the_images(taught):
  trained, output, _ = taught
  # At step 9 of 40, in the third of ten epochs, α is 80 % of 20.
  share = 1 - 0.2 * 0.8
  inside = output.entropy[output.labels >= 0]
  kept = np.mean(output.reliability.reliable[output.labels >= 0])
  assert kept == pytest.approx(share, abs=0.002)
  gamma = output.entropy[output.reliability.reliable].max()
  assert gamma == pytest.approx(np.percentile(inside, 100 * share), abs=1e-3)
  assert trained.options.partition.percent == 20.0


def test_logged_share_is_that_of_the_images(taught):
  _, output, _ = taught
  batch, valid = padded_batch()
  scalars = jax.jit(mean_teacher.pseudo_label_scalars)(batch, output)
  expected = output.kept.sum() / valid.sum()
  np.testing.assert_allclose(scalars['reliable_share'], expected, rtol=1e-6)


@pytest.mark.parametrize('filtered', [True, False])
def test_padding_around_images_does_not_change_the_loss(filtered):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, tiny.CLASSES, (2, 12, 10))
  logits = rng.normal(size=(2, 12, 10, tiny.CLASSES)).astype(np.float32)
  kept = rng.random(labels.shape) < 0.7
  options = options_lib.ConsistencyOptions(filtered=filtered, reverse=0.1)

  @jax.jit
  def loss(logits, labels, kept, valid):
    labels, count = pseudo_labels.ignore_padded_pseudo_labels(
      jnp.asarray(labels), valid
    )
    kept = jnp.asarray(kept) & (labels >= 0)
    return losses.unsupervised_loss(
      jnp.asarray(logits), labels, kept, count, options
    )

  def pad(array, value):
    widths = [(0, 0), (3, 5), (1, 9)] + [(0, 0)] * (array.ndim - 3)
    return np.pad(array, widths, constant_values=value)

  valid = pad(np.ones(labels.shape, bool), False)
  framed = loss(pad(logits, 2.0), pad(labels, 3), pad(kept, True), valid)
  bare = loss(logits, labels, kept, None)
  np.testing.assert_allclose(framed, bare, rtol=1e-6)


def test_padding_is_neither_anchor_nor_positive_nor_negative():
  """Representations of the padding are enormous, and are found nowhere."""
  rng = np.random.default_rng(0)
  branch = contrastive_branch.ContrastiveBranch(
    tiny.CLASSES, 4, tiny.PLUS.contrast
  )
  shape = (4, 9, 9)
  labels = rng.integers(0, tiny.CLASSES, shape)
  labels[:, :4] = batch_lib.IGNORE
  padding = labels < 0
  features = np.where(
    padding[..., None], 1e6, rng.normal(size=(*shape, 4))
  ).astype(np.float32)
  probs = reference.softmax(rng.normal(size=(*shape, tiny.CLASSES)))
  # Of the partition pixels of the padding are in no part; even if they were.
  parts = rng.integers(0, 3, shape)
  masks = contrastive_branch.PixelMasks(*(parts == i for i in range(3)))
  state, targets = jax.jit(branch.update)(
    *(branch.init(), features, np.float32(probs), labels),
    *(masks, jax.random.PRNGKey(0)),
  )
  assert memory_bank.memory_bank_fill(state.bank).min() > 0
  assert np.abs(state.bank.rows).max() < 10
  assert np.abs(state.prototypes.vectors).max() < 10
  assert targets.usable.all()
  assert not padding.reshape(-1)[np.asarray(targets.anchors)].any()


def test_a_step_takes_the_mask():
  trained = tiny.make_method()
  batch, _ = padded_batch()
  state = jax.eval_shape(
    lambda rng: trained.init(rng, tiny.batch_spec(), None),
    jax.random.PRNGKey(0),
  )
  after, _ = jax.eval_shape(trained.train_step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
