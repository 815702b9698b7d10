"""A whole step of U2PL on AEL against the transcription."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transcriptions import ael as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import inputs, numpy_contrast
from tests.u2pl.semi import ael_draws, tiny
from tests.u2pl.semi.ael_draws import B, C, S
from u2pl.semi import equalization_options, u2pl_ael

CONTRAST = equalization_options.U2plAelOptions(
  paste=ael_draws.PASTE,
  contrast=inputs.CONTRAST,
  contrast_start=0,
  reverse=0.1,
)


def test_entropies_are_split_by_image():
  entropies = np.random.default_rng(4).random((2, 9, 11)).astype(np.float32)
  entropies[1] *= 0.1  # Percentiles are those of an image.
  valid = np.ones(entropies.shape, bool)

  @functools.partial(jax.jit, static_argnums=3)
  def compute(entropies, valid, percent, drop):
    options = equalization_options.U2plAelOptions(entropy_drop=drop)
    return u2pl_ael.split_by_entropy(entropies, valid, percent, options)

  split = functools.partial(compute, entropies, valid)

  for percent in (20.0, 12.0, 0.0):
    dropped, low, high = split(np.float32(percent), 'lowest_released')
    for i, image in enumerate(entropies):
      expected = reference.released_sets(image, percent / 100)
      for actual, mask in zip((dropped, low, high), expected, strict=True):
        np.testing.assert_array_equal(actual[i], mask)
    assert np.asarray(low).mean() == pytest.approx(
      (20 - percent) / 100, abs=0.02
    )
    dropped, low, high = map(
      np.asarray, split(np.float32(percent), 'highest_paper')
    )
    np.testing.assert_array_equal(dropped, high)
    for i, image in enumerate(entropies):
      reliable, _ = u2pl_reference.reliability_masks(
        image, np.zeros(image.shape, int), percent / 100
      )
      np.testing.assert_array_equal(low[i], reliable)


class Passes(NamedTuple):
  """Images of a step, and outputs of the networks for them.

  Attributes:
    labels: of the labeled images.
    teacher: outputs for labeled and for mixed images, in training mode.
    student: the same of the student.
    scores: pasted logits of the teacher in evaluation mode.
    draw_rng: key of the contrastive branch.
    keep_rngs: keys of equalization sampling.
  """

  labels: np.ndarray
  teacher: tuple[dict, dict]
  student: tuple[dict, dict]
  scores: np.ndarray
  draw_rng: jax.Array
  keep_rngs: list


def upsampled(outputs):
  return u2pl_reference.bilinear(outputs['logits'], (S, S))


def run_networks(trained, state, batch):
  """Mixes images in numpy and applies both networks."""
  rng = jax.random.fold_in(state.rng, state.step)
  teacher_rng, student_rng = ael_draws.split_keys(rng, 2)
  paste_rng, box_rng, _, _, draw_rng = ael_draws.split_keys(teacher_rng, 5)

  @jax.jit
  def forward(params, stats, images):
    outputs, stats = trained.forward(params, stats, images, rng)
    return {name: outputs[name] for name in ('logits', 'rep')}, stats

  def apply(params, stats, images):
    return jax.device_get(forward(params, stats, images))

  labeled, labels = ael_draws.numpy_pasted(state, batch, paste_rng)
  _, unlabeled = tiny.symmetric_images(batch)
  params = state.teacher_params
  of_labeled, stats = apply(params, state.teacher_batch_stats, labeled)
  # Pseudo-labels in evaluation mode, with the statistics of that pass.
  evaluated = jax.jit(
    lambda v, x: trained.segmenter.apply(v, x, heads=('logits',))
  )({'params': params, 'batch_stats': stats}, unlabeled)
  scores = upsampled(jax.device_get(evaluated))
  mixed, scores = ael_draws.numpy_mixed(
    batch, scores.argmax(-1), box_rng, unlabeled, scores
  )
  of_mixed, _ = apply(params, stats, mixed)
  first, stats = apply(state.params, state.batch_stats, labeled)
  second, _ = apply(state.params, stats, mixed)
  return Passes(
    *(labels, (of_labeled, of_mixed), (first, second), scores, draw_rng),
    ael_draws.split_keys(student_rng, 4)[2:],
  )


def numpy_sets(scores, pseudo, drop):
  """Returns dropped, low and high pixels, after 2 of 10 epochs."""
  entropies = u2pl_reference.entropy(u2pl_reference.softmax(scores))
  alpha = u2pl_reference.unreliable_share(2, 10)
  sets = []
  for image, labels in zip(entropies, pseudo, strict=True):
    if drop == 'highest_paper':
      low, high = u2pl_reference.reliability_masks(image, labels, alpha)
      sets.append((high, low, high))
    else:
      sets.append(reference.released_sets(image, alpha))
  return [np.stack(x) for x in zip(*sets, strict=True)]


def numpy_contrast_step(passes, pseudo, low, high):
  """Computes the contrastive loss, and the prototypes after the step."""
  of_labeled, of_mixed = passes.teacher
  cells = of_mixed['rep'].shape[1:3]
  nearest = functools.partial(u2pl_reference.nearest, size=cells)
  masks = contrast_reference.contrast_masks(
    reference.resized_probabilities(of_labeled['logits'], (S, S), cells),
    nearest(passes.labels),
    u2pl_reference.bilinear(u2pl_reference.softmax(passes.scores), cells),
    nearest(pseudo),
    nearest(low),
    nearest(high),
    threshold=0.1,
    r_l=2,
    r_h=5,
  )
  features = (
    join(*(x['rep'] for x in outputs)).astype(np.float64)
    for outputs in (passes.teacher, passes.student)
  )
  loss, prototypes, _ = numpy_contrast.step(
    contrast_reference.ContrastMasks(*(join(m[:B], m[B:]) for m in masks)),
    *features,
    contrast_reference.no_prototypes(C, 8),
    contrast_reference.Bank([60, 40, 40, 40, 40]),
    passes.draw_rng,
    inputs.CONTRAST,
    0.0,
  )
  return loss, prototypes.values


def join(labeled, mixed):
  """Returns the two labeled images of each pair, then its mixed one."""
  rows = []
  for i, image in enumerate(mixed):
    rows += [labeled[2 * i], labeled[2 * i + 1], image]
  return np.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize('drop', ['highest_paper', 'lowest_released'])
def test_a_whole_step_equals_the_reference(drop):
  options = dataclasses.replace(CONTRAST, entropy_drop=drop)
  trained, batch = tiny.make_method(options), tiny.draw_batch()
  # After 2 of 10 epochs.
  state = ael_draws.prepared(trained).replace(step=np.int32(8))
  after, scalars = jax.jit(trained.train_step)(state, batch)
  passes = run_networks(trained, state, batch)
  labels = passes.labels
  pseudo, v = reference.targets(passes.scores)
  dropped, low, high = numpy_sets(passes.scores, pseudo, drop)
  logits = [upsampled(x) for x in passes.student]
  confidence = reference.confidence_after(
    state.confidence,
    reference.mean_probabilities(u2pl_reference.softmax(logits[0]), labels, 2),
  )
  targets = [
    reference.targets(upsampled(passes.teacher[0])),
    (np.where(dropped, -1, pseudo), v),
  ]
  consistencies = [
    reference.consistency(
      x, *ael_draws.weighted_targets(x, *rest, confidence), 0.1
    )
    for x, *rest in zip(logits, targets, passes.keep_rngs, (2, 1), strict=True)
  ]
  supervised = u2pl_reference.cross_entropy(logits[0], labels)
  contrast, prototypes = numpy_contrast_step(passes, pseudo, low, high)
  assert contrast > 0
  np.testing.assert_allclose(
    after.prototypes.vectors, prototypes, rtol=1e-3, atol=1e-5
  )
  for name, expected in (
    ('loss_supervised', supervised),
    ('loss_labeled', consistencies[0]),
    ('loss_unsupervised', consistencies[1]),
    ('loss_contrast', contrast),
    ('loss', reference.contrast_total(supervised, consistencies, contrast)),
  ):
    np.testing.assert_allclose(scalars[name], expected, rtol=2e-3, err_msg=name)


@pytest.mark.slow
def test_contrast_and_images_wait_for_their_epoch():
  options = dataclasses.replace(CONTRAST, warmup_epochs=1, contrast_start=2)
  trained = tiny.make_method(options)
  step, state = jax.jit(trained.train_step), tiny.init_state(trained)
  state, scalars = step(state, tiny.draw_batch())
  assert scalars['loss_labeled'] == scalars['loss_unsupervised'] == 0
  assert scalars['loss_supervised'] > 0 and not np.any(state.shown)
  state, scalars = step(state.replace(step=jnp.int32(7)), tiny.draw_batch())
  assert min(scalars['loss_labeled'], scalars['loss_unsupervised']) > 0
  assert np.any(state.shown) and scalars['loss_contrast'] == 0
  assert not np.any(state.bank.count) and not np.any(state.prototypes.updates)
  state, scalars = step(state, tiny.draw_batch())
  assert scalars['loss_contrast'] > 0 and np.all(state.bank.count > 0)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: equalization_options.AelOptions(confidence=1.0),
      r'confidence: expected \[0, 1\)',
    ),
    (
      lambda: equalization_options.AelOptions(momentum=1.0),
      r'momentum: expected \[0, 1\)',
    ),
    (
      lambda: equalization_options.PasteOptions(scales=(1.5, 2.0)),
      'scales: expected 0 < low <= 1 <= high',
    ),
    (
      lambda: equalization_options.AelOptions().check_batch_size(5),
      'recipe.batch_size=5',
    ),
    (
      lambda: equalization_options.AelOptions().check_num_classes(1),
      'paste.excluded: expected',
    ),
    (
      lambda: dataclasses.replace(
        CONTRAST,
        contrast=dataclasses.replace(
          inputs.CONTRAST, anchor_entropy='released'
        ),
      ),
      'as entropy_drop chooses',
    ),
    (
      lambda: dataclasses.replace(CONTRAST, contrast_start=-1),
      'contrast_start: expected 0 or more',
    ),
    (lambda: CONTRAST.check_num_classes(2), 'contrast: low_rank: expected'),
  ],
)
def test_options_that_do_not_fit_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
