"""A whole step of U2PL+ against the numpy transcription."""

from typing import NamedTuple

import jax
import numpy as np

from input_pipeline import batch as batch_lib
from segcore.models import segmenter
from segcore.train import method
from segcore.train import update as update_lib
from tests.transcriptions import u2pl as reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import numpy_contrast
from tests.u2pl.semi import tiny
from u2pl import mixing

PLUS = tiny.PLUS
SHAPE = (tiny.SIZE, tiny.SIZE)


def network_outputs(trained, params, stats, images, train, rng=None):
  @jax.jit
  def forward(params, stats, images):
    if train:
      return method.training_forward_pass(
        trained.segmenter,
        params,
        stats,
        images,
        heads=('logits', 'rep'),
        train=segmenter.SUBMODULES,
        rng=rng,
      )[0]
    return trained.segmenter.apply(
      {'params': params, 'batch_stats': stats},
      images,
      heads=('logits', 'rep'),
    )

  outputs = forward(params, stats, images)
  return {k: np.asarray(v, np.float64) for k, v in outputs.items()}


class NumpyTargets(NamedTuple):
  """Targets of the student, from the teacher's network outputs on in numpy."""

  images: np.ndarray
  labels: np.ndarray
  entropies: np.ndarray
  alpha: float
  reliable: np.ndarray
  unreliable: np.ndarray
  outputs: dict[str, np.ndarray]
  prototypes: contrast_reference.Prototypes


@jax.jit
def sample_draws(mixing_rng, row_rng):
  return mixing.sample_mixing_draws(
    mixing_rng,
    update_lib.row_prng_keys(row_rng, tiny.BATCH),
    PLUS.consistency.mixing,
    (tiny.BATCH, *SHAPE),
    tiny.CLASSES,
  )


def numpy_targets(trained, state, batch, rng):
  """Computes targets with the draws of the same keys; `images` are joined."""
  mixing_rng, row_rng, teacher_rng = jax.random.split(rng, 3)
  draws = jax.device_get(sample_draws(mixing_rng, row_rng))
  to_symmetric = jax.jit(batch_lib.batch_images_to_symmetric)
  labeled, unlabeled = (
    np.asarray(to_symmetric(batch[name]['image']))
    for name in ('labeled', 'unlabeled')
  )
  # Clean images: labels denoised with the prototypes before the step.
  teacher = state.teacher_params, state.teacher_batch_stats
  clean = network_outputs(trained, *teacher, unlabeled, train=False)
  known = contrast_reference.Prototypes(
    np.asarray(state.prototypes.vectors, np.float64),
    np.asarray(state.prototypes.updates),
  )
  assert (known.updates > 0).all()
  probs = reference.softmax(reference.bilinear(clean['logits'], SHAPE))
  labels, _ = contrast_reference.denoised_labels(probs, clean['rep'], known)
  # Mixing, in pairs.
  mixed, mixed_labels = unlabeled.copy(), labels.copy()
  for g in np.flatnonzero(draws.mixed):
    rows = slice(2 * g, 2 * g + 2)
    mixed[rows], mixed_labels[rows] = reference.cutmix(
      unlabeled[rows], labels[rows], np.asarray(draws.boxes[rows])
    )
  assert 0 < np.sum(draws.mixed) < tiny.BATCH // 2
  # Reliability of the mixed images, after 8 of 40 steps.
  joined = np.stack([labeled, mixed], 1).reshape(-1, *SHAPE, 3)
  outputs = network_outputs(trained, *teacher, joined, True, teacher_rng)
  entropies = reference.entropy(
    reference.softmax(reference.bilinear(outputs['logits'][1::2], SHAPE))
  )
  alpha = reference.unreliable_share(2, 10)
  reliable, unreliable = reference.reliability_masks(
    entropies, mixed_labels, alpha
  )
  return NumpyTargets(
    joined,
    mixed_labels,
    entropies,
    alpha,
    reliable,
    unreliable,
    outputs,
    known,
  )


def candidates(targets, labels):
  """Computes the candidates of the step on the cells of the features.

  Args:
    targets: of the step.
    labels: of the labeled images.
  """
  cells = targets.outputs['rep'].shape[1:3]
  probs = reference.softmax(targets.outputs['logits'])
  return numpy_contrast.interleave(
    contrast_reference.contrast_masks(
      probs[0::2],
      reference.nearest(labels, cells),
      probs[1::2],
      reference.nearest(targets.labels, cells),
      reference.nearest(targets.reliable, cells),
      reference.nearest(targets.unreliable, cells),
      threshold=0.1,
      r_l=2,
      r_h=5,
    )
  )


def test_a_whole_step_equals_the_reference(trained, late, jitted):
  """Computes in numpy all that follows network outputs and draws."""
  batch = tiny.draw_batch(11)
  after, scalars = jitted(late, batch)
  targets_rng, student_rng = jax.random.split(
    jax.random.fold_in(late.rng, late.step)
  )
  output_rng, draw_rng = jax.random.split(targets_rng)
  targets = numpy_targets(trained, late, batch, output_rng)
  student = network_outputs(
    trained, late.params, late.batch_stats, targets.images, True, student_rng
  )
  logits = reference.bilinear(student['logits'], SHAPE)
  labels = batch['labeled']['label'].astype(int)
  supervised = reference.cross_entropy(logits[0::2], labels)
  unsupervised = reference.unsupervised_loss(
    logits[1::2], targets.labels, targets.entropies, targets.alpha, (1.0, 0.1)
  )
  bank = contrast_reference.Bank([60, 40, 40, 40, 40])
  contrastive, updated, _ = numpy_contrast.step(
    candidates(targets, labels),
    targets.outputs['rep'],
    student['rep'],
    targets.prototypes,
    bank,
    draw_rng,
    PLUS.contrast,
    PLUS.prototype_momentum,
  )
  np.testing.assert_allclose(
    scalars['reliable_share'], targets.reliable.mean(), atol=2e-4
  )
  np.testing.assert_allclose(
    after.prototypes.vectors, updated.values, rtol=1e-3, atol=1e-5
  )
  for c in range(tiny.CLASSES):
    count = int(after.bank.count[c])
    assert count == bank.size(c) == 16
    np.testing.assert_allclose(
      after.bank.rows[after.bank.starts[c] :][:count],
      bank.rows(c),
      rtol=1e-4,
      atol=1e-5,
    )
  assert contrastive > 0
  total = reference.total_loss(supervised, unsupervised, contrastive)
  for name, expected, rtol in (
    ('loss_supervised', supervised, 1e-4),
    ('loss_unsupervised', unsupervised, 1e-3),
    ('loss_contrast', contrastive, 1e-3),
    ('loss', total, 1e-3),
  ):
    np.testing.assert_allclose(scalars[name], expected, rtol=rtol)
