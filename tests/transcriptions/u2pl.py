"""Numpy transcription of U2PL and U2PL+ (float64), the reference of the tests.

Written from the specification alone, for the semi-supervised setting; the
section signs are those of the specification. Slow and plain: loops over pixels
where they read best. Random draws are arguments. §3.4-3.6 (contrastive loss,
prototypes, denoising) are in `u2pl_contrast`.

Symbols: B images, H W pixels of the crop, h w pixels of the quarter grid, C
classes. Labels are integers, negative = ignored. Entropies and losses are in
nats. The mean of an empty set is 0.

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
      labeled_entries(labeled, unlabeled, order)       int [unlabeled]
§6    poly_learning_rate(base, step, steps, power)

      uniform_to_index(u, count)                       [0,1) -> 0 .. count-1
      numeric_gradient(f, x, step)                     central differences
"""

import math

import numpy as np

# §3.1 Supervised


def log_softmax(logits):
  """Computes the logarithm of the softmax over the last axis."""
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
  """Computes the softmax over the last axis, [..., C] -> [..., C]."""
  return np.exp(log_softmax(logits))


def cross_entropy(logits, labels):
  """Computes the mean cross entropy of the valid pixels (§3.1)."""
  log_probs = log_softmax(logits)
  total, count = 0.0, 0
  for pixel in np.ndindex(labels.shape):
    if labels[pixel] >= 0:
      total -= log_probs[pixel][labels[pixel]]
      count += 1
  return total / max(count, 1)


def ohem_kept(logits, labels, min_kept=100_000, threshold=0.7):
  """Selects pixels by online hard example mining, [B,H,W] bool (§3.1)."""
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
  """Computes the mean cross entropy of the pixels of `ohem_kept` (§3.1)."""
  kept = ohem_kept(logits, labels, min_kept, threshold)
  return cross_entropy(logits, np.where(kept, labels, -1))


def with_auxiliary(main, auxiliary, weight=0.4):
  """Computes the supervised loss of two heads (§3.1)."""
  return main + weight * auxiliary


# §3.2 Pseudo-labels and the unsupervised loss


def entropy(probs):
  """Computes -sum p log(p + 1e-10) of each pixel, [..., C] -> [...] (§3.2)."""
  probs = np.asarray(probs, np.float64)
  return -(probs * np.log(probs + 1e-10)).sum(axis=-1)


def percentile(values, valid, q):
  """Computes the q-th percentile of the valid values; nan without any (§3.2).

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
  """Computes alpha_t as a fraction; the epoch counts from 0 (§3.2)."""
  return alpha_0 * (1 - epoch / epochs)


def adaptive_weight(kept):
  """Computes lambda_u of Eq. 14 (eta = 1), all over kept (§3.2, §3.7)."""
  return kept.size / max(int(kept.sum()), 1)


def reliability_masks(entropies, labels, alpha, anchor_entropy='paper'):
  """Selects reliable and unreliable pixels, [B,H,W] (§3.2, §3.4, §0 row 3).

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
  """Computes lambda_u (xi1 CE + xi2 RCE) over reliable pixels (§3.2, §3.3).

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
  """Computes the mean of -sum_c p_c log(label_c), labels in [floor, 1]."""
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
  """Computes xi1 CE + xi2 RCE, both means over the valid pixels (§3.3)."""
  forward = cross_entropy(logits, labels)
  return xi[0] * forward + xi[1] * reverse_cross_entropy(logits, labels)


# §3.8 Total


def total_loss(supervised, unsupervised, contrastive, lambda_c=0.1):
  """Computes L_s + L_u + lambda_c L_c; lambda_u is inside L_u (§3.8)."""
  return supervised + unsupervised + lambda_c * contrastive


# §4 The teacher


def ema_decay(k, limit=0.99):
  """Computes min(1 - 1/(k + 1), limit), k from 0 (§4)."""
  return min(1 - 1 / (k + 1), limit)


def ema(teacher, student, decay):
  """Computes the teacher's parameters after a step (§4)."""
  return decay * teacher + (1 - decay) * student


def teacher_decay(step, steps_per_epoch, sup_only_epoch=1, limit=0.99):
  """Computes the decay after optimizer step `step`, counted from 0 (§4).

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
  """Lists the source index of each target index, floor(dst in / out) (§1)."""
  return [index * size // target for index in range(target)]


def nearest(array, size):
  """Reads [B,H,W,...] at the rows and columns of `nearest_indices` (§1)."""
  rows = nearest_indices(array.shape[1], size[0])
  columns = nearest_indices(array.shape[2], size[1])
  result = np.zeros((array.shape[0], *size, *array.shape[3:]), array.dtype)
  for y, row in enumerate(rows):
    for x, column in enumerate(columns):
      result[:, y, x] = array[:, row, column]
  return result


def _between(index, size, target):
  """Returns the source neighbors of an index, and the weight of the second."""
  position = index * (size - 1) / (target - 1) if target > 1 else 0.0
  first = min(math.floor(position), size - 1)
  return first, min(first + 1, size - 1), position - first


def bilinear(array, size):
  """Resizes [B,h,w,C] to [B,H,W,C] with aligned corners (§1)."""
  array = np.asarray(array, np.float64)
  result = np.zeros((array.shape[0], *size, array.shape[3]))
  for y in range(size[0]):
    top, bottom, down = _between(y, array.shape[1], size[0])
    for x in range(size[1]):
      left, right, across = _between(x, array.shape[2], size[1])
      result[:, y, x] = (
        (1 - down) * (1 - across) * array[:, top, left]
        + (1 - down) * across * array[:, top, right]
        + down * (1 - across) * array[:, bottom, left]
        + down * across * array[:, bottom, right]
      )
  return result


# §5 Strong mixing; the partner is the next image, cyclically


def box_from_uniform(u, size):
  """Computes a box (top, left, rows, columns) of about half the area (§5).

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
  """Replaces pixels and labels in image b's box by those of image b+1 (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, (top, left, rows, columns) in enumerate(boxes):
    partner = (b + 1) % len(images)
    for y in range(top, top + rows):
      for x in range(left, left + columns):
        mixed[b, y, x] = images[partner, y, x]
        targets[b, y, x] = labels[partner, y, x]
  return mixed, targets


def cutout(images, labels, boxes):
  """Sets the image to 0 and the label to -1 in image b's box (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, (top, left, rows, columns) in enumerate(boxes):
    for y in range(top, top + rows):
      for x in range(left, left + columns):
        mixed[b, y, x] = 0
        targets[b, y, x] = -1
  return mixed, targets


def classmix_count(labels):
  """Counts the classes of an image's labels [H,W] to keep, floor(n/2) (§5)."""
  return len({int(label) for label in labels.ravel() if label >= 0}) // 2


def classmix(images, labels, chosen):
  """Replaces all but the classes chosen[b] of image b by image b+1 (§5)."""
  mixed, targets = images.copy(), labels.copy()
  for b, y, x in np.ndindex(labels.shape):
    if labels[b, y, x] not in chosen[b]:
      partner = (b + 1) % len(images)
      mixed[b, y, x] = images[partner, y, x]
      targets[b, y, x] = labels[partner, y, x]
  return mixed, targets


# §5.2 and §6 Epochs and the learning rate


def steps_per_epoch(unlabeled, batch):
  """Counts the steps of an epoch; drops the last partial batch (§5.2)."""
  return unlabeled // batch


def labeled_only_steps_per_epoch(labeled, batch):
  """Counts the steps of an epoch of SupOnly, with the partial batch (§5.2)."""
  return math.ceil(labeled / batch)


def labeled_entries(labeled, unlabeled, order):
  """Selects the labeled images of every epoch, int [unlabeled] (§5.2).

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
  """Computes base (1 - i/I)^power at step i from 0 (§6)."""
  return base * (1 - step / steps) ** power


# Draws and gradients


def uniform_to_index(u, count):
  """Computes a draw with replacement, floor(u count), from u in [0, 1)."""
  return np.minimum(np.floor(np.asarray(u) * count).astype(int), count - 1)


def numeric_gradient(f, x, step=1e-5):
  """Computes central differences of a scalar function of an array."""
  x = np.array(x, np.float64)
  gradient = np.zeros(x.shape)
  for index in np.ndindex(x.shape):
    above, below = x.copy(), x.copy()
    above[index] += step
    below[index] -= step
    gradient[index] = (f(above) - f(below)) / (2 * step)
  return gradient
