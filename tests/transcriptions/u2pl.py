"""U2PL and U2PL+ in slow, obvious numpy (float64): the reference of the tests.

Written from the specification alone (the section signs below are its own), for
the semi-supervised setting. Nothing is drawn here: draws are arguments.

Symbols: B images, H W pixels of the crop, h w pixels of the quarter grid, C
classes, D features, M anchors, N negatives of an anchor. Labels are integers,
negative = ignored. Entropies and losses are in nats. A mean over nothing is 0.

§3.1  log_softmax(logits), softmax(logits)             [..., C] -> [..., C]
      cross_entropy(logits, labels)                    mean over valid pixels
      ohem_kept(logits, labels, min_kept, threshold)   [B,H,W] bool
      ohem(logits, labels, min_kept, threshold)        mean over kept pixels
      with_auxiliary(main, auxiliary, weight)          main + 0.4 auxiliary
§3.2  entropy(probs)                                   [..., C] -> [...]
      percentile(values, valid, q)                     q in percent; linear
      unreliable_share(epoch, epochs, alpha_0)         alpha_t, a fraction
      adaptive_weight(kept)                            B H W / n
      reliability_masks(entropies, labels, alpha,
          anchor_entropy)                              reliable, unreliable
      unsupervised_loss(logits, labels, entropies,
          alpha, xi)                                   L_u of §3.2 and §3.3
§3.3  reverse_cross_entropy(logits, labels, floor)     mean over valid pixels
      symmetric_cross_entropy(logits, labels, xi)      xi1 CE + xi2 RCE
§3.4  ranks(probs)                                     [..., C] -> int [..., C]
      positive_masks(labels, usable, classes)          [B,h,w,C] bool
      anchor_masks(probs, labels, usable, threshold)   [B,h,w,C] bool
      labeled_negative_masks(probs, labels, r_l)      [B,h,w,C] bool
      unlabeled_negative_masks(probs, labels,
          unreliable, r_l, r_h)                        [B,h,w,C] bool
      contrast_masks(probs_l, labels_l, probs_u,
          labels_u, reliable, unreliable, ...)         ContrastMasks
      class_means(features, masks)                     [C,D], counts [C]
      cosine(a, b)                                     eps 1e-8 on each norm
      info_nce(anchors, positive, negatives, tau)      mean over M
      uniform_to_index(u, count)                       [0,1) -> 0 .. count-1
      bank_capacities(classes)                         50000, then 30000
      Bank(capacities): push, rows, size               FIFO of each class
      push_negatives(bank, features, masks, draws)     changes the bank
      contrastive_loss(student, masks, positives,
          bank, anchor_draws, bank_draws, tau)         L_c, divided by V
      contrastive_step(student, teacher, masks, bank,
          anchor_draws, bank_draws, positives,
          push_draws, tau)                             push, then L_c
§3.5  Prototypes(values, updates)                      [C,D], int [C]
      no_prototypes(classes, dims)                     nothing seen yet
      update_prototypes(old, means, counts,
          momentum, ramp)                              Prototypes
§3.6  denoising_weights(features, prototypes,
          similarity)                                  [B,h,w,C]; sum 1
      denoised_labels(probs, features, prototypes,
          similarity)                                  int [B,H,W], p* [B,H,W,C]
§3.8  total_loss(supervised, unsupervised,
          contrastive, lambda_c)
§4    ema_decay(k, limit), ema(teacher, student, decay)
      teacher_decay(step, steps_per_epoch,
          sup_only_epoch, limit)                       1 keep, 0 copy, else EMA
§1    nearest_indices(size, target)                    floor(dst in / out)
      nearest(array, size)                             [B,H,W,...], (h,w)
      bilinear(array, size)                            align_corners=True
§5    box_from_uniform(u, size)                        top, left, rows, columns
      cutmix(images, labels, boxes), cutout(...)       images, labels
      classmix_count(labels)                           floor(classes / 2)
      classmix(images, labels, chosen)                 images, labels
§5.2  steps_per_epoch(unlabeled, batch)
      labeled_only_steps_per_epoch(labeled, batch)
      labeled_entries(labeled, unlabeled, order)    int [unlabeled]
§6    poly_learning_rate(base, step, steps, power)

      numeric_gradient(f, x, step)                     central differences
"""

import collections
import math
from typing import NamedTuple

import numpy as np

# §3.1 Supervised


def log_softmax(logits):
  """Logarithm of the softmax over the last axis, [..., C] -> [..., C]."""
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
  """Softmax over the last axis, [..., C] -> [..., C]."""
  return np.exp(log_softmax(logits))


def cross_entropy(logits, labels):
  """Mean cross entropy of the valid pixels; [B,H,W,C], [B,H,W] (§3.1)."""
  log_probs = log_softmax(logits)
  total, count = 0.0, 0
  for pixel in np.ndindex(labels.shape):
    if labels[pixel] >= 0:
      total -= log_probs[pixel][labels[pixel]]
      count += 1
  return total / max(count, 1)


def ohem_kept(logits, labels, min_kept=100_000, threshold=0.7):
  """Pixels kept by online hard example mining, [B,H,W] bool (§3.1)."""
  valid = np.asarray(labels) >= 0
  if min_kept == 0 or valid.sum() < min_kept:
    return valid
  probs = softmax(logits)
  true_probs = np.ones(labels.shape)  # an invalid pixel counts as certain
  for pixel in np.ndindex(labels.shape):
    if valid[pixel]:
      true_probs[pixel] = probs[pixel][labels[pixel]]
  ascending = sorted(true_probs.ravel())
  value = ascending[min(len(ascending), min_kept) - 1]
  return valid & (true_probs <= max(threshold, value))


def ohem(logits, labels, min_kept=100_000, threshold=0.7):
  """Mean cross entropy of the pixels that `ohem_kept` keeps (§3.1)."""
  kept = ohem_kept(logits, labels, min_kept, threshold)
  return cross_entropy(logits, np.where(kept, labels, -1))


def with_auxiliary(main, auxiliary, weight=0.4):
  """The supervised loss of two heads (§3.1)."""
  return main + weight * auxiliary


# §3.2 Pseudo-labels and the unsupervised loss


def entropy(probs):
  """Entropy of each pixel, -sum p log(p + 1e-10), [..., C] -> [...] (§3.2)."""
  probs = np.asarray(probs, np.float64)
  return -(probs * np.log(probs + 1e-10)).sum(axis=-1)


def percentile(values, valid, q):
  """The q-th percentile (0 to 100) of the valid values; nan if none is (§3.2).

  Linear interpolation between the two nearest of the n sorted values, at
  position q/100 (n - 1).
  """
  ascending = sorted(np.asarray(values, np.float64)[valid])
  if not ascending:
    return math.nan
  position = q / 100 * (len(ascending) - 1)
  below = math.floor(position)
  above = min(below + 1, len(ascending) - 1)
  step = ascending[above] - ascending[below]
  return ascending[below] + (position - below) * step


def unreliable_share(epoch, epochs, alpha_0=0.2):
  """alpha_t as a fraction, falling linearly; the epoch counts from 0 (§3.2)."""
  return alpha_0 * (1 - epoch / epochs)


def adaptive_weight(kept):
  """lambda_u of Eq. 14 (eta = 1): all pixels over kept ones (§3.2, §3.7)."""
  return kept.size / max(int(kept.sum()), 1)


def reliability_masks(entropies, labels, alpha, anchor_entropy='paper'):
  """Reliable and unreliable pixels, two [B,H,W] bool (§3.2, §3.4, §0 row 3).

  Unreliable is E >= gamma, gamma the percentile 100 (1 - alpha) of E over the
  valid pixels. Reliable is E < gamma ('paper'), or E <= the percentile
  100 alpha ('released'). Invalid pixels are neither.
  """
  valid = np.asarray(labels) >= 0
  gamma = percentile(entropies, valid, 100 - 100 * alpha)
  unreliable = valid & (entropies >= gamma)
  if anchor_entropy == 'paper':
    reliable = valid & (entropies < gamma)
  elif anchor_entropy == 'released':
    reliable = valid & (entropies <= percentile(entropies, valid, 100 * alpha))
  else:
    raise ValueError(
      f"anchor_entropy {anchor_entropy!r}: 'paper' or 'released'"
    )
  return reliable, unreliable


def unsupervised_loss(logits, labels, entropies, alpha, xi=(1.0, 0.0)):
  """lambda_u (xi1 CE + xi2 RCE) over the reliable pixels (§3.2, §3.3).

  Args:
    logits: of the student on the mixed images, [B,H,W,C].
    labels: pseudo-labels, [B,H,W].
    entropies: of the teacher on the mixed images, [B,H,W].
    alpha: share of the pixels that is unreliable, in [0, 1].
    xi: (1, 0) is U2PL, (1, 0.1) is U2PL+.
  """
  reliable, _ = reliability_masks(entropies, labels, alpha)
  targets = np.where(reliable, labels, -1)
  return adaptive_weight(reliable) * symmetric_cross_entropy(
    logits, targets, xi
  )


# §3.3 Symmetric cross entropy


def reverse_cross_entropy(logits, labels, floor=1e-4):
  """Mean of -sum_c p_c log(label_c), the one-hot clipped to [floor, 1]."""
  probs = softmax(logits)
  total, count = 0.0, 0
  for pixel in np.ndindex(labels.shape):
    if labels[pixel] >= 0:
      for category in range(probs.shape[-1]):
        target = 1.0 if category == labels[pixel] else floor
        total -= probs[pixel][category] * math.log(target)
      count += 1
  return total / max(count, 1)


def symmetric_cross_entropy(logits, labels, xi=(1.0, 0.1)):
  """xi1 CE + xi2 RCE, both means over the valid pixels (§3.3)."""
  forward = cross_entropy(logits, labels)
  return xi[0] * forward + xi[1] * reverse_cross_entropy(logits, labels)


# §3.4 The contrastive loss


class ContrastMasks(NamedTuple):
  """Three [B,h,w,C] bool; the labeled images come before the unlabeled."""

  anchors: np.ndarray
  positives: np.ndarray
  negatives: np.ndarray


def ranks(probs):
  """Rank of every class, 0 = most probable; a tie goes to the lower class."""
  probs = np.asarray(probs, np.float64)
  found = np.zeros(probs.shape, int)
  for pixel in np.ndindex(probs.shape[:-1]):
    row = probs[pixel]
    order = sorted(range(len(row)), key=lambda category: -row[category])
    for rank, category in enumerate(order):
      found[pixel][category] = rank
  return found


def positive_masks(labels, usable, classes):
  """Usable pixels of each label, [B,h,w] twice -> [B,h,w,C] (§3.4)."""
  found = np.zeros((*labels.shape, classes), bool)
  for pixel in np.ndindex(labels.shape):
    if usable[pixel] and labels[pixel] >= 0:
      found[pixel][labels[pixel]] = True
  return found


def anchor_masks(probs, labels, usable, threshold=0.3):
  """Usable pixels of label c with p_c > threshold, [B,h,w,C] (§3.4)."""
  found = positive_masks(labels, usable, probs.shape[-1])
  return found & (probs > threshold)


def labeled_negative_masks(probs, labels, r_l=3):
  """Valid pixels not of class c, rank of c below r_l (§3.4, §0 row 2)."""
  rank = ranks(probs)
  found = np.zeros(probs.shape, bool)
  for index in np.ndindex(probs.shape):
    label, category = labels[index[:-1]], index[-1]
    found[index] = label >= 0 and label != category and rank[index] < r_l
  return found


def unlabeled_negative_masks(probs, labels, unreliable, r_l=3, r_h=20):
  """Valid unreliable pixels with r_l <= rank of c < r_h (§3.4, §0 row 2)."""
  rank = ranks(probs)
  found = np.zeros(probs.shape, bool)
  for index in np.ndindex(probs.shape):
    pixel = index[:-1]
    usable = labels[pixel] >= 0 and unreliable[pixel]
    found[index] = usable and r_l <= rank[index] < r_h
  return found


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
  """The paper's anchors, positives and negatives on the quarter grid (§3.4).

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
  """Mean feature of each class, [C,D] (0 if absent), and pixel counts [C]."""
  classes = masks.shape[-1]
  sums = np.zeros((classes, features.shape[-1]))
  counts = np.zeros(classes, int)
  for index in np.ndindex(masks.shape):
    if masks[index]:
      sums[index[-1]] += features[index[:-1]]
      counts[index[-1]] += 1
  return sums / np.maximum(counts, 1)[:, None], counts


def cosine(a, b):
  """Cosine of two [D] vectors, each norm at least 1e-8 (§3.4)."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  norm_a, norm_b = math.sqrt(a @ a), math.sqrt(b @ b)
  return (a @ b) / (max(norm_a, 1e-8) * max(norm_b, 1e-8))


def info_nce(anchors, positive, negatives, tau=0.5):
  """Mean over anchors of the cross entropy with the positive as the target.

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
    total -= log_softmax(logits)[0]
  return total / len(anchors)


def uniform_to_index(u, count):
  """A draw with replacement, floor(u count), from u in [0, 1)."""
  return np.minimum(np.floor(np.asarray(u) * count).astype(int), count - 1)


def bank_capacities(classes, first=50_000, others=30_000):
  """Capacity of each class's queue: class 0, then the others (§3.4)."""
  return [first] + [others] * (classes - 1)


class Bank:
  """A first-in first-out queue of feature rows for each class (§3.4)."""

  def __init__(self, capacities):
    self._queues = [collections.deque(maxlen=size) for size in capacities]

  def push(self, category, rows):
    """Appends the rows [n,D] in order; the oldest beyond capacity drop out."""
    for row in rows:
      self._queues[category].append(np.array(row, np.float64))

  def size(self, category):
    """Rows held for the class."""
    return len(self._queues[category])

  def rows(self, category):
    """Rows held for the class, [size,D], the oldest first."""
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
  """L_c: InfoNCE of the classes that contribute, summed, over V (§3.4).

  V counts the classes with a usable pixel; the loss is 0 if V <= 1. A class
  contributes if it has an anchor and its queue holds a row.

  Args:
    student: features of the labeled and mixed images, [B,h,w,D].
    masks: `ContrastMasks`.
    positives: [C,D].
    bank: this step's keys have been pushed already.
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
  """Pushes the keys of all classes, then gives L_c (§3.4).

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
  """Prototypes [C,D] and how often each was updated [C]; 0 is never seen."""

  values: np.ndarray
  updates: np.ndarray


def no_prototypes(classes, dims):
  """Prototypes of which none has been seen (§3.5)."""
  return Prototypes(np.zeros((classes, dims)), np.zeros(classes, int))


def update_prototypes(old, means, counts, momentum=0.999, ramp=False):
  """Eq. 18 for the classes present; the first sighting sets the mean (§3.5).

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
      m = ema_decay(updates[category], momentum) if ramp else momentum
      values[category] = m * values[category] + (1 - m) * means[category]
    updates[category] += 1
  return Prototypes(values, updates)


# §3.6 Prototypical denoising


def denoising_weights(features, prototypes, similarity='raw'):
  """softmax_c(-distance to prototype c), [B,h,w,D] -> [B,h,w,C] (§3.6).

  A class never seen is as far as the others are on average; if none has been
  seen the weights are equal. 'l2' first scales both vectors to length 1.
  """
  if similarity not in ('raw', 'l2'):
    raise ValueError(f"similarity {similarity!r}: 'raw' or 'l2'")
  classes = len(prototypes.values)
  seen = [c for c in range(classes) if prototypes.updates[c] > 0]
  weights = np.zeros((*features.shape[:-1], classes))
  for pixel in np.ndindex(features.shape[:-1]):
    distances = {}
    for category in seen:
      feature = np.asarray(features[pixel], np.float64)
      prototype = prototypes.values[category]
      if similarity == 'l2':
        feature = feature / max(np.linalg.norm(feature), 1e-8)
        prototype = prototype / max(np.linalg.norm(prototype), 1e-8)
      distances[category] = np.linalg.norm(feature - prototype)
    mean = sum(distances.values()) / max(len(seen), 1)
    row = [distances.get(category, mean) for category in range(classes)]
    weights[pixel] = softmax(-np.array(row))
  return weights


def denoised_labels(probs, features, prototypes, similarity='raw'):
  """argmax and value of p* = w p, the weights upsampled bilinearly (§3.6).

  Args:
    probs: of the teacher on the clean images, [B,H,W,C].
    features: of the same pass, [B,h,w,D].
    prototypes: from before this step's update.
    similarity: of `denoising_weights`.
  """
  weights = denoising_weights(features, prototypes, similarity)
  weighted = bilinear(weights, probs.shape[1:3]) * probs
  return weighted.argmax(axis=-1), weighted


# §3.8 Total


def total_loss(supervised, unsupervised, contrastive, lambda_c=0.1):
  """L = L_s + L_u + lambda_c L_c; lambda_u is inside L_u (§3.8)."""
  return supervised + unsupervised + lambda_c * contrastive


# §4 The teacher


def ema_decay(k, limit=0.99):
  """min(1 - 1/(k + 1), limit), k from 0 (§4)."""
  return min(1 - 1 / (k + 1), limit)


def ema(teacher, student, decay):
  """Teacher's parameters after a step, arrays of one shape (§4)."""
  return decay * teacher + (1 - decay) * student


def teacher_decay(step, steps_per_epoch, sup_only_epoch=1, limit=0.99):
  """Decay after optimizer step `step` (from 0) of the whole run (§4).

  1 in the warm-up epochs (parameters stay), 0 in the epoch after them (copied),
  then min(1 - 1/(k + 1), limit) with k the steps since the end of the warm-up.
  """
  epoch = step // steps_per_epoch
  if epoch < sup_only_epoch:
    return 1.0
  if epoch == sup_only_epoch:
    return 0.0
  return ema_decay(step - sup_only_epoch * steps_per_epoch, limit)


# §1 Grids


def nearest_indices(size, target):
  """Source index of every target index, floor(dst in / out) (§1)."""
  return [index * size // target for index in range(target)]


def nearest(array, size):
  """[B,H,W,...] at the rows and columns of `nearest_indices` (§1)."""
  rows = nearest_indices(array.shape[1], size[0])
  columns = nearest_indices(array.shape[2], size[1])
  found = np.zeros((array.shape[0], *size, *array.shape[3:]), array.dtype)
  for y, row in enumerate(rows):
    for x, column in enumerate(columns):
      found[:, y, x] = array[:, row, column]
  return found


def _between(index, size, target):
  """Source neighbors of a target index, and the weight of the second."""
  position = index * (size - 1) / (target - 1) if target > 1 else 0.0
  first = min(math.floor(position), size - 1)
  return first, min(first + 1, size - 1), position - first


def bilinear(array, size):
  """[B,h,w,C] -> [B,H,W,C], corners on corners (align_corners=True) (§1)."""
  array = np.asarray(array, np.float64)
  found = np.zeros((array.shape[0], *size, array.shape[3]))
  for y in range(size[0]):
    top, bottom, down = _between(y, array.shape[1], size[0])
    for x in range(size[1]):
      left, right, across = _between(x, array.shape[2], size[1])
      found[:, y, x] = (
        (1 - down) * (1 - across) * array[:, top, left]
        + (1 - down) * across * array[:, top, right]
        + down * (1 - across) * array[:, bottom, left]
        + down * across * array[:, bottom, right]
      )
  return found


# §5 Strong mixing; the partner is the next image, cyclically


def box_from_uniform(u, size):
  """Box (top, left, rows, columns) of about half the area (§5).

  Columns are uniform in floor(W/2 + 1) .. W-1, rows round(H W/2 / columns) with
  halves to even, the position uniform among all that fit.

  Args:
    u: three numbers in [0, 1): for the columns, the top, the left.
    size: (H, W), W at least 3.
  """
  height, width = size
  least = math.floor(width / 2 + 1)
  columns = least + int(uniform_to_index(u[0], width - least))
  rows = round(height * width / 2 / columns)
  top = int(uniform_to_index(u[1], height - rows + 1))
  left = int(uniform_to_index(u[2], width - columns + 1))
  return top, left, rows, columns


def cutmix(images, labels, boxes):
  """Pixels and labels inside image b's box come from image b+1 (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, (top, left, rows, columns) in enumerate(boxes):
    partner = (b + 1) % len(images)
    for y in range(top, top + rows):
      for x in range(left, left + columns):
        mixed[b, y, x] = images[partner, y, x]
        targets[b, y, x] = labels[partner, y, x]
  return mixed, targets


def cutout(images, labels, boxes):
  """Inside image b's box the image is 0 and the label -1 (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, (top, left, rows, columns) in enumerate(boxes):
    for y in range(top, top + rows):
      for x in range(left, left + columns):
        mixed[b, y, x] = 0
        targets[b, y, x] = -1
  return mixed, targets


def classmix_count(labels):
  """How many classes of one image's labels [H,W] are kept, floor(n/2) (§5)."""
  return len({int(label) for label in labels.ravel() if label >= 0}) // 2


def classmix(images, labels, chosen):
  """Image b keeps its classes chosen[b]; the rest is image b+1's (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, y, x in np.ndindex(labels.shape):
    if labels[b, y, x] not in chosen[b]:
      partner = (b + 1) % len(images)
      mixed[b, y, x] = images[partner, y, x]
      targets[b, y, x] = labels[partner, y, x]
  return mixed, targets


# §5.2 and §6 Epochs and the learning rate


def steps_per_epoch(unlabeled, batch):
  """Steps of an epoch, the last partial batch dropped (§5.2)."""
  return unlabeled // batch


def labeled_only_steps_per_epoch(labeled, batch):
  """Steps of an epoch of SupOnly, the last partial batch kept (§5.2)."""
  return math.ceil(labeled / batch)


def labeled_entries(labeled, unlabeled, order):
  """Labeled images of every epoch, int [unlabeled], drawn once (§5.2).

  Args:
    labeled: images in the labeled list.
    unlabeled: images in the unlabeled list.
    order: a permutation of the labeled list repeated ceil(N_u / N_l) times.
  """
  repeated = list(range(labeled)) * math.ceil(unlabeled / labeled)
  if sorted(order) != list(range(len(repeated))):
    raise ValueError(f'order is no permutation of {len(repeated)} entries')
  return np.array([repeated[place] for place in order[:unlabeled]])


def poly_learning_rate(base, step, steps, power=0.9):
  """base (1 - i/I)^power at step i from 0 (§6)."""
  return base * (1 - step / steps) ** power


# Gradients


def numeric_gradient(f, x, step=1e-5):
  """Central differences of a scalar function at an array of any shape."""
  x = np.array(x, np.float64)
  gradient = np.zeros(x.shape)
  for index in np.ndindex(x.shape):
    above, below = x.copy(), x.copy()
    above[index] += step
    below[index] -= step
    gradient[index] = (f(above) - f(below)) / (2 * step)
  return gradient
