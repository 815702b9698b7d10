"""Numpy transcription of U2PL's contrastive branch (spec §3.4-3.6), in float64.

As `u2pl`, of which it is a part. Symbols: h w pixels of the quarter grid, C
classes, D features, M anchors, N negatives of an anchor.

§3.4  ranks(probs)                                     [..., C] -> int [..., C]
      positive_masks(labels, usable, classes)          [B,h,w,C] bool
      anchor_masks(probs, labels, usable, threshold)   [B,h,w,C] bool
      labeled_negative_masks(probs, labels, r_l)       [B,h,w,C] bool
      unlabeled_negative_masks(probs, labels,
          unreliable, r_l, r_h)                        [B,h,w,C] bool
      contrast_masks(probs_l, labels_l, probs_u,
          labels_u, reliable, unreliable, ...)         ContrastMasks
      class_means(features, masks)                     [C,D], counts [C]
      cosine(a, b)                                     eps 1e-8 on each norm
      info_nce(anchors, positive, negatives, tau)      mean over M
      bank_capacities(classes)                         50000, then 30000
      Bank(capacities): push, rows, size               FIFO of each class
      push_negatives(bank, features, masks, draws)     changes the bank
      contrastive_loss(student, masks, positives,
          bank, anchor_draws, bank_draws, tau)         L_c, divided by V
      contrastive_step(student, teacher, masks, bank,
          anchor_draws, bank_draws, positives,
          push_draws, tau)                             push, then L_c
§3.5  Prototypes(values, updates)                      [C,D], int [C]
      no_prototypes(classes, dims)                     without any update
      update_prototypes(old, means, counts,
          momentum, ramp)                              Prototypes
§3.6  denoising_weights(features, prototypes,
          similarity)                                  [B,h,w,C]; sum 1
      denoised_labels(probs, features, prototypes,
          similarity)                                  int [B,H,W], p* [B,H,W,C]
"""

import collections
import math
from typing import NamedTuple

import numpy as np

from tests.transcriptions import u2pl

# §3.4 The contrastive loss


class ContrastMasks(NamedTuple):
  """Masks [B,h,w,C] bool; the labeled images come before the unlabeled."""

  anchors: np.ndarray
  positives: np.ndarray
  negatives: np.ndarray


def ranks(probs):
  """Computes the rank of each class, 0 = most probable; ties by class id."""
  probs = np.asarray(probs, np.float64)
  rank_of = np.zeros(probs.shape, int)
  for pixel in np.ndindex(probs.shape[:-1]):
    row = probs[pixel]
    order = sorted(range(len(row)), key=lambda category: -row[category])
    for rank, category in enumerate(order):
      rank_of[pixel][category] = rank
  return rank_of


def positive_masks(labels, usable, classes):
  """Selects the usable pixels of each label, [B,h,w,C] (§3.4)."""
  mask = np.zeros((*labels.shape, classes), bool)
  for pixel in np.ndindex(labels.shape):
    if usable[pixel] and labels[pixel] >= 0:
      mask[pixel][labels[pixel]] = True
  return mask


def anchor_masks(probs, labels, usable, threshold=0.3):
  """Selects usable pixels of label c with p_c > threshold, [B,h,w,C] (§3.4)."""
  mask = positive_masks(labels, usable, probs.shape[-1])
  return mask & (probs > threshold)


def labeled_negative_masks(probs, labels, r_l=3):
  """Selects valid pixels not of class c, rank of c < r_l (§3.4, §0 row 2)."""
  rank = ranks(probs)
  mask = np.zeros(probs.shape, bool)
  for index in np.ndindex(probs.shape):
    label, category = labels[index[:-1]], index[-1]
    mask[index] = label >= 0 and label != category and rank[index] < r_l
  return mask


def unlabeled_negative_masks(probs, labels, unreliable, r_l=3, r_h=20):
  """Selects unreliable pixels with r_l <= rank of c < r_h (§3.4, §0 row 2)."""
  rank = ranks(probs)
  mask = np.zeros(probs.shape, bool)
  for index in np.ndindex(probs.shape):
    pixel = index[:-1]
    usable = labels[pixel] >= 0 and unreliable[pixel]
    mask[index] = usable and r_l <= rank[index] < r_h
  return mask


def contrast_masks(
  probs_l,
  labels_l,
  probs_u,
  labels_u,
  reliable,
  unreliable,
  threshold=0.3,
  r_l=3,
  r_h=20,
):
  """Selects the paper's anchors, positives and negatives (§3.4).

  Args:
    probs_l: of the teacher on the labeled images, [B_l,h,w,C].
    labels_l: [B_l,h,w], nearest-resized.
    probs_u: of the teacher on the mixed images, [B_u,h,w,C].
    labels_u: pseudo-labels of the mixed images, [B_u,h,w], nearest-resized.
    reliable: [B_u,h,w] bool, of `reliability_masks`, nearest-resized.
    unreliable: likewise.
    threshold: of the anchors' probability.
    r_l: first rank of an unlabeled negative; end of a labeled one's.
    r_h: end of an unlabeled negative's ranks.
  """
  probs = np.concatenate([probs_l, probs_u])
  labels = np.concatenate([labels_l, labels_u])
  usable = np.concatenate([labels_l >= 0, reliable])
  return ContrastMasks(
    anchors=anchor_masks(probs, labels, usable, threshold),
    positives=positive_masks(labels, usable, probs.shape[-1]),
    negatives=np.concatenate(
      [
        labeled_negative_masks(probs_l, labels_l, r_l),
        unlabeled_negative_masks(probs_u, labels_u, unreliable, r_l, r_h),
      ]
    ),
  )


def class_means(features, masks):
  """Computes mean features [C,D] (0 if absent) and pixel counts [C]."""
  classes = masks.shape[-1]
  sums = np.zeros((classes, features.shape[-1]))
  counts = np.zeros(classes, int)
  for index in np.ndindex(masks.shape):
    if masks[index]:
      sums[index[-1]] += features[index[:-1]]
      counts[index[-1]] += 1
  return sums / np.maximum(counts, 1)[:, None], counts


def cosine(a, b):
  """Computes the cosine of two [D] vectors, each norm at least 1e-8 (§3.4)."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  norm_a, norm_b = math.sqrt(a @ a), math.sqrt(b @ b)
  return (a @ b) / (max(norm_a, 1e-8) * max(norm_b, 1e-8))


def info_nce(anchors, positive, negatives, tau=0.5):
  """Computes the mean cross entropy of anchors with the positive as target.

  Args:
    anchors: [M,D].
    positive: [D], the same for all anchors.
    negatives: [M,N,D].
    tau: temperature that divides the cosines.
  """
  total = 0.0
  for anchor, others in zip(anchors, negatives, strict=True):
    keys = [positive, *others]
    logits = np.array([cosine(anchor, key) / tau for key in keys])
    total -= u2pl.log_softmax(logits)[0]
  return total / len(anchors)


def bank_capacities(classes, first=50_000, others=30_000):
  """Lists the capacities of the queues: class 0, then the others (§3.4)."""
  return [first] + [others] * (classes - 1)


class Bank:
  """A first-in, first-out queue of feature rows for each class (§3.4)."""

  def __init__(self, capacities):
    self._queues = [collections.deque(maxlen=size) for size in capacities]

  def push(self, category, rows):
    """Appends the rows [n,D] in order; the oldest beyond capacity drop out."""
    for row in rows:
      self._queues[category].append(np.array(row, np.float64))

  def size(self, category):
    """Returns the number of rows of the class."""
    return len(self._queues[category])

  def rows(self, category):
    """Returns the rows of the class, [size,D], the oldest first."""
    return np.array(list(self._queues[category]))


def push_negatives(bank, features, masks, draws=None):
  """Pushes each class's keys in raster order, images in order (§3.4).

  Args:
    bank: changed in place.
    features: of the teacher, [B,h,w,D].
    masks: negatives, [B,h,w,C] bool.
    draws: None, or by class the numbers of the keys to push, in that order
      (the subsample before the push); a class without an entry pushes all.
  """
  for category in range(masks.shape[-1]):
    keys = features[masks[..., category]]
    if draws is not None and category in draws:
      keys = keys[draws[category]]
    bank.push(category, keys)


def contrastive_loss(
  student, masks, positives, bank, anchor_draws, bank_draws, tau=0.5
):
  """Computes L_c, the sum of InfoNCE over contributing classes, over V (§3.4).

  V counts the classes with a usable pixel; the loss is 0 if V <= 1. A class
  contributes if it has an anchor and its queue holds a row.

  Args:
    student: features of the labeled and mixed images, [B,h,w,D].
    masks: `ContrastMasks`.
    positives: [C,D].
    bank: with this step's keys.
    anchor_draws: by class, M numbers of anchors in raster order.
    bank_draws: by class, [M,N] numbers of rows in the queue, 0 the oldest.
    tau: temperature.
  """
  present = [
    category
    for category in range(masks.positives.shape[-1])
    if masks.positives[..., category].any()
  ]
  if len(present) <= 1:
    return 0.0
  total = 0.0
  for category in present:
    anchors = student[masks.anchors[..., category]]
    if len(anchors) == 0 or bank.size(category) == 0:
      continue
    total += info_nce(
      anchors[anchor_draws[category]],
      positives[category],
      bank.rows(category)[bank_draws[category]],
      tau,
    )
  return total / len(present)


def contrastive_step(
  student,
  teacher,
  masks,
  bank,
  anchor_draws,
  bank_draws,
  positives=None,
  push_draws=None,
  tau=0.5,
):
  """Pushes the keys of all classes, then computes L_c (§3.4).

  Without positives they are the batch's class means of the teacher (U2PL).
  """
  push_negatives(bank, teacher, masks.negatives, push_draws)
  if positives is None:
    positives, _ = class_means(teacher, masks.positives)
  return contrastive_loss(
    student, masks, positives, bank, anchor_draws, bank_draws, tau
  )


# §3.5 Momentum prototypes


class Prototypes(NamedTuple):
  """Prototypes [C,D] and the number of updates of each [C]."""

  values: np.ndarray
  updates: np.ndarray


def no_prototypes(classes, dims):
  """Returns prototypes without any update (§3.5)."""
  return Prototypes(np.zeros((classes, dims)), np.zeros(classes, int))


def update_prototypes(old, means, counts, momentum=0.999, ramp=False):
  """Applies Eq. 18 to the classes present; a first mean is taken as is (§3.5).

  Args:
    old: `Prototypes`; not changed.
    means: of this batch, [C,D].
    counts: pixels of this batch, [C]; 0 leaves a class as it is.
    momentum: m.
    ramp: whether m is min(1 - 1/(n + 1), momentum) after n updates.
  """
  values, updates = old.values.copy(), old.updates.copy()
  for category, count in enumerate(counts):
    if count == 0:
      continue
    if updates[category] == 0:
      values[category] = means[category]
    else:
      m = u2pl.ema_decay(updates[category], momentum) if ramp else momentum
      values[category] = m * values[category] + (1 - m) * means[category]
    updates[category] += 1
  return Prototypes(values, updates)


# §3.6 Prototypical denoising


def denoising_weights(features, prototypes, similarity='raw'):
  """Computes softmax_c(-distance to prototype c), -> [B,h,w,C] (§3.6).

  A class without an update gets the mean distance of the others; without any
  update the weights are equal. 'l2' L2-normalizes both vectors first.
  """
  if similarity not in ('raw', 'l2'):
    raise ValueError(f"similarity {similarity!r}: 'raw' or 'l2'")
  classes = len(prototypes.values)
  known = [c for c in range(classes) if prototypes.updates[c] > 0]
  weights = np.zeros((*features.shape[:-1], classes))
  for pixel in np.ndindex(features.shape[:-1]):
    distances = {}
    for category in known:
      feature = np.asarray(features[pixel], np.float64)
      prototype = prototypes.values[category]
      if similarity == 'l2':
        feature = feature / max(np.linalg.norm(feature), 1e-8)
        prototype = prototype / max(np.linalg.norm(prototype), 1e-8)
      distances[category] = np.linalg.norm(feature - prototype)
    mean = sum(distances.values()) / max(len(known), 1)
    row = [distances.get(category, mean) for category in range(classes)]
    weights[pixel] = u2pl.softmax(-np.array(row))
  return weights


def denoised_labels(probs, features, prototypes, similarity='raw'):
  """Computes argmax and value of p* = w p, weights upsampled (§3.6).

  Args:
    probs: of the teacher on the clean images, [B,H,W,C].
    features: of the same pass, [B,h,w,D].
    prototypes: from before this step's update.
    similarity: of `denoising_weights`.
  """
  weights = denoising_weights(features, prototypes, similarity)
  weighted = u2pl.bilinear(weights, probs.shape[1:3]) * probs
  return weighted.argmax(axis=-1), weighted
