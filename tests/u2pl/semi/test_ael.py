"""A whole step of AEL against the transcription, with the update by it."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.distributed import sharding
from segcore.train import loop
from tests.transcriptions import ael as reference
from tests.transcriptions import semi as semi_reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import ael_draws, tiny
from tests.u2pl.semi.ael_draws import C, S
from u2pl.semi import equalization_options

# About the median of the initial network.
LEAST = 0.245
OPTIONS = equalization_options.AelOptions(
  confidence=LEAST, paste=ael_draws.PASTE
)


@pytest.fixture(scope='module')
def stepped():
  """Returns method, step, states before and after it, and its scalars."""
  trained = tiny.make_method(OPTIONS)
  step = jax.jit(trained.train_step)
  state = ael_draws.prepared(trained)
  return trained, step, state, *step(state, tiny.draw_batch())


class Expected(NamedTuple):
  """What numpy computes from the network's outputs.

  Attributes:
    images: labeled and mixed images.
    labels: of the labeled images.
    targets: labels and probabilities of both, by the teacher.
    predicted: classes of the unlabeled images.
    teacher_stats: batch statistics of the teacher.
    keep_rngs: keys of equalization sampling.
  """

  images: tuple[np.ndarray, np.ndarray]
  labels: np.ndarray
  targets: list[tuple[np.ndarray, np.ndarray]]
  predicted: np.ndarray
  teacher_stats: dict
  keep_rngs: list


def numpy_targets(trained, state, batch):
  """Runs both mixings and the teacher, in training mode."""
  rng = jax.random.fold_in(state.rng, state.step)
  teacher_rng, student_rng = ael_draws.split_keys(rng, 2)
  paste_rng, box_rng, *_ = ael_draws.split_keys(teacher_rng, 4)
  labeled, labels = ael_draws.numpy_pasted(state, batch, paste_rng)
  _, unlabeled = tiny.symmetric_images(batch)

  @jax.jit
  def forward(stats, images):
    outputs, stats = trained.forward(state.teacher_params, stats, images, rng)
    return outputs['logits'], stats

  def teacher(stats, images):
    logits, stats = jax.device_get(forward(stats, images))
    return u2pl_reference.bilinear(logits, (S, S)), stats

  # Its statistics go on from pass to pass.
  scores, stats = teacher(state.teacher_batch_stats, labeled)
  targets = [reference.targets(scores, LEAST)]
  scores, stats = teacher(stats, unlabeled)
  predicted = scores.argmax(-1)
  mixed, scores = ael_draws.numpy_mixed(
    batch, predicted, box_rng, unlabeled, scores
  )
  targets.append(reference.targets(scores, LEAST))
  assert 0 < (targets[1][0] < 0).mean() < 0.9
  return Expected(
    *((labeled, mixed), labels, targets, predicted, stats),
    ael_draws.split_keys(student_rng, 4)[2:],
  )


@pytest.fixture(scope='module')
def expected(stepped):
  trained, _, state, *_ = stepped
  return numpy_targets(trained, state, tiny.draw_batch())


def make_student(trained, state, images):
  """Returns a function that pulls gradients of logits back to parameters."""

  def student(images, params):
    both, stats = [], state.batch_stats
    for each in images:
      outputs, stats = trained.forward(
        params, stats, each, jax.random.PRNGKey(0)
      )
      both.append(aligned(outputs['logits']))
    return tuple(both), stats

  @jax.jit
  def pull_back(images, params, cotangents):
    logits, pull, stats = jax.vjp(
      functools.partial(student, images), params, has_aux=True
    )
    return logits, stats, pull(cotangents)[0]

  return functools.partial(pull_back, images)


def aligned(logits):
  """Upsamples with aligned corners, by another routine than the method's."""
  scale = (S - 1) / (logits.shape[1] - 1)
  return jax.image.scale_and_translate(
    logits,
    (len(logits), S, S, C),
    (1, 2),
    scale=jnp.full(2, scale),
    translation=jnp.full(2, 0.5 - 0.5 * scale),
    method='linear',
    antialias=False,
  )


def test_a_whole_step_equals_the_reference(stepped, expected):
  """Computes losses in numpy, and the update from numpy's gradients."""
  trained, _, state, after, scalars = stepped
  labels = expected.labels
  assert tiny.difference(after.teacher_batch_stats, expected.teacher_stats) < (
    1e-5
  )
  pull_back = make_student(trained, state, expected.images)
  zeros = tuple(
    np.zeros((*x.shape[:3], C), np.float32) for x in expected.images
  )
  logits, stats, _ = jax.device_get(pull_back(state.params, zeros))
  logits = [x.astype(np.float64) for x in logits]
  assert tiny.difference(after.batch_stats, stats) < 1e-5
  confidence = reference.confidence_after(
    state.confidence,
    reference.mean_probabilities(u2pl_reference.softmax(logits[0]), labels, 2),
  )
  np.testing.assert_allclose(after.confidence, confidence, rtol=1e-5)
  parts = [
    ael_draws.weighted_targets(x, *rest, confidence)
    for x, *rest in zip(
      logits, expected.targets, expected.keep_rngs, (2, 1), strict=True
    )
  ]
  losses = {
    'loss_supervised': u2pl_reference.cross_entropy(logits[0], labels),
    'loss_labeled': reference.consistency(logits[0], *parts[0]),
    'loss_unsupervised': reference.consistency(logits[1], *parts[1]),
  }
  for name, value in {**losses, 'loss': sum(losses.values())}.items():
    np.testing.assert_allclose(scalars[name], value, rtol=1e-3, err_msg=name)
  # Update by the gradient of numpy with respect to the logits.
  cotangents = [
    reference.consistency_gradient(x, *y)
    for x, y in zip(logits, parts, strict=True)
  ]
  cotangents[0] += reference.cross_entropy_gradient(
    logits[0], labels, labels >= 0
  )
  cotangents = tuple(x.astype(np.float32) for x in cotangents)
  *_, gradient = pull_back(state.params, cotangents)
  params = jax.jit(trained.update.apply_gradients)(
    state, gradient, state.batch_stats
  ).params
  moved = tiny.difference(state.params, params)
  assert tiny.difference(after.params, params) < 2e-3 * moved


def test_the_teacher_follows_and_sees_the_classes(stepped, expected):
  _, _, state, after, _ = stepped
  batch = tiny.draw_batch()
  decay = semi_reference.ema_decay(3)
  assert decay < 0.99
  followed = jax.tree.map(
    lambda t, s: decay * np.asarray(t) + (1 - decay) * np.asarray(s),
    state.teacher_params,
    after.params,
  )
  assert tiny.difference(after.teacher_params, followed) < 1e-5
  index = batch['unlabeled']['index']
  shown = reference.shown_after(state.shown, index, expected.predicted, 0.01)
  np.testing.assert_array_equal(after.shown, shown)
  assert 0 < shown.mean() < 0.6


def test_images_are_drawn_by_what_is_known_at_an_epochs_start(stepped):
  trained, step, state, after, _ = stepped
  assert int(after.step) == trained.steps_per_epoch
  np.testing.assert_array_equal(after.sampling.shown, after.shown)
  np.testing.assert_allclose(
    after.sampling.probabilities,
    reference.mixing_probabilities(after.confidence),
    rtol=1e-5,
  )
  # Not before.
  earlier, _ = step(state.replace(step=np.int32(1)), tiny.draw_batch())
  assert not np.any(earlier.sampling.shown) and np.any(earlier.shown)
  np.testing.assert_array_equal(
    earlier.sampling.probabilities, state.sampling.probabilities
  )


def test_hosts_have_the_whole_table_of_the_classes_that_images_show(
  monkeypatch,
):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)
  trained = dataclasses.replace(tiny.make_method(OPTIONS), num_unlabeled=64)
  mesh = sharding.make_mesh(fsdp=4)
  spec = loop.train_state_spec(trained, mesh, tiny.batch_spec())
  assert spec.shown.shape == spec.sampling.shown.shape == (C, 64)
  for leaf in jax.tree.leaves((spec.shown, spec.sampling)):
    assert leaf.sharding.is_fully_replicated
  # Parameters of as many elements are split.
  split = [
    not x.sharding.is_fully_replicated for x in jax.tree.leaves(spec.params)
  ]
  assert any(split)
