"""Protocols and scores of LUSS in slow, obvious numpy.

See `pass_pretraining` for symbols and conventions.

§5.2  matching_matrix(predictions, truths, num_categories)  int [C,C]
      matched_total(matrix, matching)
      hungarian(matrix)                             {generated: category}
      apply_matching(labels, matching)
§5.3  bank_entries(features, mask)                  [m,D], ids [m]
      knn_label_map(features, bank, bank_labels, k, temperature, num_classes)
§5.4  cam_labels(logits, size, threshold, scaling)  [h,w,C] -> int [H,W]
§6.1  ious(predictions, truths, num_categories), miou(..., other)
§6.2  boundary_map(labels, ratio)                   id + 1 on boundaries, else 0
      boundary_miou(predictions, truths, num_categories, other, ratio)
§6.3  image_accuracy(predictions, truths, num_categories)
      f_beta(predictions, truths)
§6.4  size_groups(truth, num_categories)            {group: categories}
      miou_by_size(predictions, truths, num_categories, other)
      boundary_miou_by_size(predictions, truths, num_categories, other, ratio)
"""

import itertools
import math

import numpy as np

from tests.transcriptions import pass_labels, pass_pretraining

GROUPS = ('S', 'MS', 'ML', 'L')


# §5.2 Matching


def matching_matrix(predictions, truths, num_categories):
  """Counts images with generated g + 1 and category c + 1, [C,C] (§5.2)."""
  matrix = np.zeros((num_categories, num_categories), int)
  for predicted, truth in zip(predictions, truths, strict=True):
    for g in set(predicted.ravel().tolist()) - {0, pass_labels.IGNORE}:
      for c in set(truth.ravel().tolist()) - {0, pass_labels.IGNORE}:
        matrix[g - 1, c - 1] += 1
  return matrix


def matched_total(matrix, matching):
  """Sums the matrix over the pairs of a matching (§5.2)."""
  return sum(matrix[g - 1, c - 1] for g, c in matching.items() if g > 0)


def hungarian(matrix):
  """Finds a best bijection {generated: category} by trying all (§5.2).

  Several may be best: compare `matched_total`. Of them this is the first in
  the order of the permutations.
  """
  best, most = None, -math.inf
  for permutation in itertools.permutations(range(1, len(matrix) + 1)):
    matching = {0: 0}
    matching.update((g + 1, c) for g, c in enumerate(permutation))
    total = matched_total(matrix, matching)
    if total > most:
      best, most = matching, total
  return best


def apply_matching(labels, matching):
  """Replaces ids by matched ones; unmatched ids become 0 (§5.2, §5.6)."""
  matched = np.zeros(labels.shape, int)
  for pixel in np.ndindex(labels.shape):
    matched[pixel] = matching.get(int(labels[pixel]), 0)
  return matched


# §5.3 Distance matching


def bank_entries(features, mask):
  """Computes embeddings [m,D] and ids [m], ascending, of an image (§5.3).

  Args:
    features: upsampled features, [h,w,D].
    mask: [H,W]; reduced to (h, w), where its distinct ids are taken.
  """
  reduced = pass_labels.floor_nearest(mask, features.shape[:2])
  ids = sorted(set(reduced.ravel().tolist()) - {pass_labels.IGNORE})
  entries = [
    pass_pretraining.gap(features * (reduced == i)[..., None]) for i in ids
  ]
  return np.array(entries), np.array(ids, int)


def knn_label_map(features, bank, bank_labels, k, temperature, num_classes):
  """Votes by the k nearest entries at every position, [h,w] (§5.3).

  Args:
    features: upsampled features, [h,w,D].
    bank: [M,D]; of equal neighbors the first, of equal sums the lowest id.
    bank_labels: [M].
    k: neighbors (10).
    temperature: of their weights (0.07).
    num_classes: C + 1.
  """
  normalized, queries = (
    pass_pretraining.normalize(bank),
    pass_pretraining.normalize(features),
  )
  labels = np.zeros(features.shape[:2], int)
  for pixel in np.ndindex(labels.shape):
    similarities = normalized @ queries[pixel]
    nearest = sorted(range(len(normalized)), key=lambda m: -similarities[m])[:k]
    votes = np.zeros(num_classes)
    for m in nearest:
      votes[bank_labels[m]] += math.exp(similarities[m] / temperature)
    labels[pixel] = votes.argmax()
  return labels


# §5.4 CAM


def cam_labels(logits, size, threshold, scaling='max'):
  """Assigns the image's category where its CAM exceeds the threshold (§5.4).

  The CAM is scaled first, then upsampled to `size`. One that is 0 after scaling
  gives 'other' everywhere.

  Args:
    logits: of the categories alone (category c is channel c - 1), [h,w,C].
    size: (H, W).
    threshold: in 0 .. 1.
    scaling: 'max' is max(CAM,0) / max(CAM); 'min-max'.
  """
  category = int(pass_pretraining.gap(logits).argmax())
  cam = np.array(logits[..., category], np.float64)
  if scaling == 'max':
    cam = pass_pretraining._relu(cam)
  elif scaling == 'min-max':
    cam = cam - cam.min()
  else:
    raise ValueError(f"scaling {scaling!r}: 'max' or 'min-max'")
  if cam.max() > 0:
    cam = cam / cam.max()
  upsampled = pass_labels.bilinear(cam[..., None], size)[..., 0]
  return np.where(upsampled > threshold, category + 1, 0)


# §6 Metrics


class _Counts:
  """Counts of TP, predicted and true pixels of each value 0 .. size - 1."""

  def __init__(self, size):
    self.hits, self.predicted, self.true = np.zeros((3, size), int)

  def add(self, predicted, truth):
    """Adds pixels, two int [N]."""
    for c in range(len(self.hits)):
      self.hits[c] += ((predicted == c) & (truth == c)).sum()
      self.predicted[c] += (predicted == c).sum()
      self.true[c] += (truth == c).sum()

  def ious(self):
    """Computes TP / (predicted + true - TP + 1e-10)."""
    union = self.predicted + self.true - self.hits
    return self.hits / (union + 1e-10)


def ious(predictions, truths, num_categories):
  """Computes the IoU of classes 0 .. C over all images, in 0 .. 1 (§6.1).

  Args:
    predictions: int [H,W] of each image, matched.
    truths: int [H,W] of each image; pixels of 1000 do not count.
    num_categories: C.
  """
  counts = _Counts(num_categories + 1)
  for predicted, truth in zip(predictions, truths, strict=True):
    valid = truth != pass_labels.IGNORE
    counts.add(predicted[valid], truth[valid])
  return counts.ious()


def miou(predictions, truths, num_categories, other=True):
  """Averages `ious` in percent, over 0 .. C or 1 .. C (§6.1)."""
  values = ious(predictions, truths, num_categories)
  return 100 * values[0 if other else 1 :].mean()


def _eroded(mask):
  """Erodes once by a 3x3 square; the array's outside does not erode."""
  eroded = mask.copy()
  for y, x in np.ndindex(mask.shape):
    eroded[y, x] = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].all()
  return eroded


def boundary_map(labels, ratio=0.03):
  """Marks each id's boundary by id + 1, its interior by 0, [H,W] (§6.2)."""
  height, width = labels.shape
  depth = max(1, round(ratio * math.sqrt(height**2 + width**2)))
  boundaries = np.zeros(labels.shape, int)
  for i in sorted(set(labels.ravel().tolist())):
    mask = np.pad(labels == i, 1)
    eroded = mask
    for _ in range(depth):
      eroded = _eroded(eroded)
    boundary = (mask & ~eroded)[1:-1, 1:-1]
    boundaries[boundary] = i + 1
  return boundaries


def boundary_miou(predictions, truths, num_categories, other=True, ratio=0.03):
  """Computes the mIoU of the boundaries in percent (§6.2)."""
  counts = _Counts(num_categories + 2)
  for predicted, truth in zip(predictions, truths, strict=True):
    valid = (
      truth != pass_labels.IGNORE
    )  # the boundaries are those of the full maps
    counts.add(
      boundary_map(predicted, ratio)[valid], boundary_map(truth, ratio)[valid]
    )
  return 100 * counts.ious()[1 if other else 2 :].mean()


def image_accuracy(predictions, truths, num_categories):
  """Counts images whose largest predicted category occurs, percent (§6.3)."""
  correct = 0
  for predicted, truth in zip(predictions, truths, strict=True):
    predicted_ids = predicted[truth != pass_labels.IGNORE]
    areas = [(predicted_ids == c).sum() for c in range(1, num_categories + 1)]
    largest = 1 + int(np.argmax(areas))
    correct += areas[largest - 1] > 0 and (truth == largest).any()
  return 100 * correct / len(truths)


def f_beta(predictions, truths):
  """Averages F of the foreground over images, beta^2 = 0.3, percent (§6.3)."""
  total = 0.0
  for predicted, truth in zip(predictions, truths, strict=True):
    valid = truth != pass_labels.IGNORE
    foreground, true = predicted[valid] > 0, truth[valid] > 0
    hits = (foreground & true).sum()
    if hits > 0:  # without a hit F is 0 or undefined
      p, r = hits / foreground.sum(), hits / true.sum()
      total += 1.3 * p * r / (0.3 * p + r)
  return 100 * total / len(truths)


def size_groups(truth, num_categories):
  """Groups the categories of an image by size (§6.4)."""
  groups = {name: [] for name in GROUPS}
  pixels = int((truth != pass_labels.IGNORE).sum())
  for c in range(1, num_categories + 1):
    count = int((truth == c).sum())
    if count > 0:
      share = -(-100 * count // pixels)  # ceil
      if share <= 5:
        groups['S'].append(c)
      elif share <= 25:
        groups['MS'].append(c)
      elif share <= 50:
        groups['ML'].append(c)
      else:
        groups['L'].append(c)
  return groups


def _by_size(predictions, truths, num_categories, other, values_of):
  """Averages in percent over the classes 0 .. C that occur in each group.

  Args:
    predictions: int [H,W] of each image.
    truths: int [H,W] of each image.
    num_categories: C.
    other: whether class 0 is in the mean.
    values_of: from labels [H,W] to the values counted, -1 where none is.
  """
  counts = {name: _Counts(num_categories + 1) for name in GROUPS}
  present = {name: set() for name in GROUPS}
  for predicted, truth in zip(predictions, truths, strict=True):
    predicted_values, truth_values = values_of(predicted), values_of(truth)
    for name, members in size_groups(truth, num_categories).items():
      if members:
        chosen = np.isin(truth, [0, *members])
        counts[name].add(predicted_values[chosen], truth_values[chosen])
        present[name] |= set(truth[chosen].tolist())
  scores = {}
  for name in GROUPS:
    classes = sorted(present[name] if other else present[name] - {0})
    values = counts[name].ious()[classes]
    scores[name] = 100 * values.mean() if classes else math.nan
  return scores


def miou_by_size(predictions, truths, num_categories, other=True):
  """Computes the mIoU of S, MS, ML, L in percent; nan for none (§6.4)."""
  return _by_size(predictions, truths, num_categories, other, lambda x: x)


def boundary_miou_by_size(
  predictions, truths, num_categories, other=True, ratio=0.03
):
  """Computes the boundary mIoU of S, MS, ML, L in percent (§6.4)."""

  def values_of(labels):
    return boundary_map(labels, ratio) - 1

  return _by_size(predictions, truths, num_categories, other, values_of)
