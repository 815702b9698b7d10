"""One step of the contrastive branch in numpy, with the draws of its keys."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from segcore.ops import order_statistics
from segcore.train import update as update_lib
from tests.transcriptions import u2pl as reference
from tests.transcriptions import u2pl_contrast as contrast_reference


class StepResult(NamedTuple):
  """Contrastive loss, prototypes after the step, anchors of each class."""

  loss: float
  prototypes: contrast_reference.Prototypes
  anchor_counts: np.ndarray


def interleave(labeled_first):
  """Reorders the rows of masks from labeled first to alternating.

  The transcription takes labeled images first; rows of a batch alternate.
  """
  half = len(labeled_first.anchors) // 2
  return contrast_reference.ContrastMasks(
    *(interleave_pair(mask[:half], mask[half:]) for mask in labeled_first)
  )


def interleave_pair(first, second):
  """Returns rows of two arrays alternating, as those of a joined batch."""
  return np.stack([first, second], 1).reshape(-1, *first.shape[1:])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _priorities(rng, num_images, num_cells):
  return order_statistics.sample_pixel_priorities(
    update_lib.row_prng_keys(rng, num_images), num_cells
  )


def step(masks, features, student, prototypes, bank, rng, options, momentum):
  """Computes one step; changes the bank.

  Args:
    masks: candidates, as the rows of the features.
    features: of the teacher, [B,h,w,D].
    student: representations of the student, [B,h,w,D].
    prototypes: before the step.
    bank: before the step; no queue has overflowed yet.
    rng: key of the step's draws.
    options: `contrast.ContrastOptions`.
    momentum: of the prototypes.
  """
  num_images, *cells, num_classes = masks.negatives.shape
  means, counts = contrast_reference.class_means(features, masks.positives)
  updated = contrast_reference.update_prototypes(
    prototypes, means, counts, momentum
  )
  push_rng, anchor_rng, bank_rng = jax.random.split(rng, 3)
  priorities = np.asarray(
    _priorities(push_rng, num_images, cells[0] * cells[1])
  ).ravel()
  sample = {}
  for c in range(num_classes):
    at = np.flatnonzero(masks.negatives[..., c])
    order = np.argsort(-priorities[at], kind='stable')
    sample[c] = np.sort(order[: options.max_push])
  # Slots of the ring count from its start, rows of the queue from the oldest:
  # once a ring is full its oldest row is at the pointer.
  pushed = [bank.size(c) + len(sample[c]) for c in range(num_classes)]
  contrast_reference.push_negatives(bank, features, masks.negatives, sample)

  shape = (num_classes, options.num_anchors)
  anchor_uniforms = np.asarray(jax.random.uniform(anchor_rng, shape))
  bank_uniforms = np.asarray(
    jax.random.uniform(bank_rng, (*shape, options.num_negatives))
  )
  anchor_counts = masks.anchors.sum((0, 1, 2))
  anchor_draws, bank_draws = [], []
  for c, size in enumerate(bank.size(c) for c in range(num_classes)):
    anchor_draws.append(
      reference.uniform_to_index(anchor_uniforms[c], max(anchor_counts[c], 1))
    )
    slots = reference.uniform_to_index(bank_uniforms[c], size)
    bank_draws.append((slots - max(pushed[c] - size, 0)) % size)
  loss = contrast_reference.contrastive_loss(
    student, masks, updated.values, bank, anchor_draws, bank_draws
  )
  return StepResult(loss, updated, anchor_counts)
