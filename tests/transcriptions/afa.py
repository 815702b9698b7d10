"""Numpy transcription of AFA's labels and losses (float64).

Written from the specification of weak supervision alone, whose section signs
these are; plain and slow. Images of labels are integers, negative = unknown;
boxes are (top, bottom, left, right).

§4.1  classify(c4, kernel), affinities(scores, weights, bias)
§4.3  multi_scale_cam(maps, size)
§4.4  threshold_labels(cam, tags, box, low, high)
§4.5  par(image, masks), refined_labels(cam, tags, images, boxes, low, high)
§4.6  affinity_targets(labels, radius), affinity_loss(affinity, labels, radius)
§4.7  random_walk(scores, affinity, radius)
      propagated_labels(cam, tags, affinity, grid, …)
§4.8  segmentation_loss(logits, labels), class_loss(logits, tags)
      energy(probs, image, box, labels, …)
§4.9  rate_factor(n)
§5    crf(probs, image)
§6.1  candidates(cam, tags, inside, beta)
"""

import math

import numpy as np

from tests.transcriptions import daformer

DILATIONS = (1, 2, 4, 8, 12, 24)


def softmax(x, axis=-1):
  """Computes the softmax over an axis."""
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def sigmoid(x):
  """Computes the logistic function."""
  return 1 / (1 + np.exp(-x))


def resize(x, size):
  """Resizes [H, W, C] bilinearly, of half-pixel centers."""
  return daformer.half_pixel(np.asarray(x)[None], size)[0]


def resize_aligned(x, size):
  """Resizes [H, W, C] bilinearly, corners on corners."""
  result = np.zeros((*size, x.shape[2]))
  for i, j in np.ndindex(*size):
    at = []
    for k, old, new in ((i, x.shape[0], size[0]), (j, x.shape[1], size[1])):
      source = k * (old - 1) / (new - 1) if new > 1 else 0.0
      low = min(math.floor(source), old - 1)
      at.append((low, min(low + 1, old - 1), source - low))
    (r0, r1, a), (c0, c1, b) = at
    result[i, j] = (1 - a) * ((1 - b) * x[r0, c0] + b * x[r0, c1]) + a * (
      (1 - b) * x[r1, c0] + b * x[r1, c1]
    )
  return result


# §4.1


def classify(c4, kernel):
  """Computes class logits of a map [h, w, D], by its maximum."""
  return c4.max((0, 1)) @ kernel


def affinities(scores, weights, bias):
  """Computes A of scores [heads, N, N] of all blocks."""
  return sigmoid(
    np.einsum('kij,k->ij', scores + scores.transpose(0, 2, 1), weights) + bias
  )


# §4.3


def multi_scale_cam(maps, size):
  """Computes CAMs [H, W, C] from (map, map of the flipped image) by scale."""
  total = 0.0
  for plain, flipped in maps:
    pair = resize(plain, size), resize(flipped, size)[:, ::-1]
    total = total + np.maximum(np.maximum(*pair), 0.0)
  result = np.empty_like(total)
  for c in range(total.shape[2]):
    shifted = total[..., c] - total[..., c].min()
    result[..., c] = shifted / (shifted.max() + 1e-5)
  return result


# §4.4


def threshold_labels(cam, tags, box, low=0.35, high=0.55):
  """Computes the label of each pixel; -1 between the thresholds."""
  valid = cam * tags
  labels = np.full(cam.shape[:2], -1)
  for i in range(box[0], box[1]):
    for j in range(box[2], box[3]):
      value, best = valid[i, j].max(), int(valid[i, j].argmax()) + 1
      if value <= low:
        labels[i, j] = 0
      elif value > high:
        labels[i, j] = best
  return labels


# §4.5


def par(image, masks, dilations=DILATIONS, iterations=10):
  """Refines masks [H, W, K] by an image [H, W, 3] of 0 to 1."""
  if masks.shape[:2] != image.shape[:2]:
    masks = resize_aligned(masks, image.shape[:2])
  height, width = image.shape[:2]
  offsets, radii = [], []
  for dilation in dilations:
    for down in (-1, 0, 1):
      for right in (-1, 0, 1):
        if (down, right) != (0, 0):
          offsets.append((dilation * down, dilation * right))
          diagonal = down != 0 and right != 0
          radii.append(dilation * (math.sqrt(2) if diagonal else 1.0))

  def neighbors(x, i, j):
    return np.array(
      [
        x[min(max(i + d, 0), height - 1), min(max(j + r, 0), width - 1)]
        for d, r in offsets
      ]
    )

  sigma_r = np.std(radii, ddof=1)
  g = (np.array(radii) / (sigma_r + 1e-8) / 0.3) ** 2
  weights = np.empty((height, width, len(offsets)))
  for i, j in np.ndindex(height, width):
    around = neighbors(image, i, j)
    sigma = around.std(0, ddof=1)
    e = ((np.abs(around - image[i, j]) / (sigma + 1e-8) / 0.3) ** 2).mean(1)
    weights[i, j] = softmax(-e) + 0.01 * softmax(-g)
  for _ in range(iterations):
    masks = np.array(
      [
        [weights[i, j] @ neighbors(masks, i, j) for j in range(width)]
        for i in range(height)
      ]
    )
  return masks


def combine(label_low, label_high):
  """Combines the labels of both thresholds."""
  result = label_high.copy()
  result[label_high == 0] = -1
  result[(label_high == 0) & (label_low == 0)] = 0
  return result


def refined_labels(cam, tags, image, box, low, high, dilations=DILATIONS):
  """Computes the PAR label of one image.

  Args:
    cam: multi-scale CAM [H, W, C].
    tags: bool [C].
    image: uint8 [H, W, 3].
    box: valid box.
    low: T_l.
    high: T_h.
    dilations: of PAR.
  """
  size = cam.shape[:2]
  half = (size[0] // 2, size[1] // 2)
  present = [0, *(np.flatnonzero(tags) + 1)]
  small = resize(image / 255.0, half)
  labels = []
  for threshold in (low, high):
    scores = np.concatenate(
      [np.full((*size, 1), float(threshold)), cam], axis=2
    )
    scores = resize(scores, half)[..., present]
    refined = resize(par(small, softmax(scores), dilations), size)
    best = np.array(present)[refined.argmax(2)]
    label = np.full(size, -1)
    inside = np.s_[box[0] : box[1], box[2] : box[3]]
    label[inside] = best[inside]
    labels.append(label)
  return combine(*labels)


# §4.6


def affinity_targets(labels, radius):
  """Returns T of labels [h, w]: 1, 0, or -1 where a pair does not count."""
  h, w = labels.shape
  targets = np.full((h * w, h * w), -1)
  for i in range(h * w):
    for j in range(h * w):
      a, b = labels[i // w, i % w], labels[j // w, j % w]
      near = abs(i // w - j // w) <= radius and abs(i % w - j % w) <= radius
      if near and a >= 0 and b >= 0:
        targets[i, j] = int(a == b)
  return targets


def affinity_loss(affinity, labels, radius):
  """Computes L_aff of [B, N, N] and labels [B, h, w]; and its gradient."""
  targets = np.stack([affinity_targets(each, radius) for each in labels])
  positive, negative = targets == 1, targets == 0
  n_pos, n_neg = positive.sum(), negative.sum()
  loss = 0.5 * (1 - affinity)[positive].sum() / (n_pos + 1)
  loss += 0.5 * affinity[negative].sum() / (n_neg + 1)
  gradient = -0.5 * positive / (n_pos + 1) + 0.5 * negative / (n_neg + 1)
  return loss, gradient


# §4.7


def random_walk(scores, affinity, radius):
  """Propagates scores [h, w, K] by one step."""
  h, w, _ = scores.shape
  b = np.zeros_like(affinity)
  for i in range(h * w):
    for j in range(h * w):
      if abs(i // w - j // w) <= radius and abs(i % w - j % w) <= radius:
        b[i, j] = affinity[i, j] ** 2
  b = b / (b.sum(0) + 0.1)
  flat = scores.reshape(h * w, -1)
  result = np.array(
    [sum(flat[i] * b[i, j] for i in range(h * w)) for j in range(h * w)]
  )
  return result.reshape(scores.shape)


def propagated_labels(
  cam, tags, affinity, grid, image, box, low, high, radius, dilations=DILATIONS
):
  """Computes the propagated label of one image; arguments as above.

  Args:
    cam: multi-scale CAM [H, W, C].
    tags: bool [C].
    affinity: A of the largest scale, [N, N].
    grid: its cells (h, w).
    image: uint8 [H, W, 3].
    box: valid box.
    low: T_l.
    high: T_h.
    radius: of the walk.
    dilations: of PAR.
  """
  size = cam.shape[:2]
  top, bottom, left, right = box
  present = [0, *(np.flatnonzero(tags) + 1)]
  valid = resize(cam * tags, grid)
  crop = image[top:bottom, left:right] / 255.0
  half = (max(crop.shape[0] // 2, 1), max(crop.shape[1] // 2, 1))
  labels = []
  for threshold in (low, high):
    scores = np.concatenate(
      [np.full((*grid, 1), float(threshold)), valid], axis=2
    )
    walked = random_walk(softmax(scores[..., present]), affinity, radius)
    inside = resize(walked, size)[top:bottom, left:right]
    refined = par(resize(crop, half), inside, dilations)
    refined = resize(refined, crop.shape[:2])
    whole = np.zeros((*size, cam.shape[2] + 1))
    whole[top:bottom, left:right, present] = refined
    label = whole.argmax(2)
    outside = np.ones(size, bool)
    outside[top:bottom, left:right] = False
    label[outside] = -1
    labels.append(label)
  return combine(*labels)


# §4.8


def segmentation_loss(logits, labels):
  """Computes L_seg of logits [B, H, W, C] at full size; and its gradient."""
  log_probs = daformer.log_softmax(logits)
  gradient, loss = np.zeros_like(logits), 0.0
  for group in (labels == 0, labels > 0):
    count = max(group.sum(), 1)
    for at in zip(*np.nonzero(group), strict=True):
      loss -= 0.5 * log_probs[at][labels[at]] / count
      gradient[at] = 0.5 * np.exp(log_probs[at]) / count
      gradient[at][labels[at]] -= 0.5 / count
  return loss, gradient


def class_loss(logits, tags):
  """Computes L_cls of logits [B, C]; and its gradient."""
  p = sigmoid(logits)
  loss = -np.where(tags, np.log(p), np.log(1 - p)).mean()
  return loss, (p - tags) / p.size


def energy(probs, image, box, labels, deviation_xy=50.0, deviation_rgb=15.0):
  """Computes E of one image at half size, and its gradient to `probs`.

  Args:
    probs: S, [h, w, C].
    image: [h, w, 3], 0 to 255.
    box: bool [h, w].
    labels: [h, w], negative where unknown.
    deviation_xy: of the positions, in cells.
    deviation_rgb: of the colors.
  """
  h, w, num_classes = probs.shape
  s = (probs * box[..., None]).reshape(-1, num_classes)
  gate = np.maximum(box - (probs * box[..., None]).max(2), 0.0)
  gate = np.where(labels < 0, 1.0, gate).ravel()
  points = np.array(list(np.ndindex(h, w)), float)
  colors = image.reshape(-1, 3).astype(float)
  kernel = np.empty((h * w, h * w))
  for i in range(h * w):
    for j in range(h * w):
      kernel[i, j] = math.exp(
        -((points[i] - points[j]) ** 2).sum() / (2 * deviation_xy**2)
        - ((colors[i] - colors[j]) ** 2).sum() / (2 * deviation_rgb**2)
      )
  filtered = kernel @ s
  value = -(s * gate[:, None] * filtered).sum()
  gradient = -2 * gate[:, None] * filtered * box.reshape(-1, 1)
  return value, gradient.reshape(probs.shape)


# §4.9


def rate_factor(n, warmup=1500, steps=20000, start=1e-6):
  """Computes the factor of the learning rate at iteration n."""
  if n < warmup:
    return 1 - (1 - n / warmup) * (1 - start)
  return 1 - n / steps


# §5


def crf(probs, image, iterations=10):
  """Computes the mean field of [H, W, C] exactly, of all pairs of pixels."""
  h, w, num_classes = probs.shape
  unary = -np.log(np.clip(probs, 1e-5, 1)).reshape(-1, num_classes)
  points = np.array(list(np.ndindex(h, w)), float)
  colors = image.reshape(-1, 3).astype(float)

  def squared(x):
    return ((x[:, None] - x[None]) ** 2).sum(-1)

  kernels = []
  for exponent in (
    squared(points) / (2 * 3**2),
    squared(points) / (2 * 64**2) + squared(colors) / (2 * 5**2),
  ):
    kernel = np.exp(-exponent)
    root = np.sqrt(kernel.sum(1))
    kernels.append(kernel / root[:, None] / root[None])
  q = softmax(-unary)
  for _ in range(iterations):
    q = softmax(-unary + 3 * kernels[0] @ q + 4 * kernels[1] @ q)
  return q.reshape(probs.shape)


# §6.1, §6.2


def propagated_cam(cam, affinity, grid, radius):
  """Computes M^c after a random walk, each class between 0 and 1 again."""
  walked = random_walk(resize(cam, grid), affinity, radius)
  for c in range(walked.shape[2]):
    shifted = walked[..., c] - walked[..., c].min()
    walked[..., c] = shifted / (shifted.max() + 1e-5)
  return walked


def candidates(cam, tags, inside, beta):
  """Returns anchors and negatives of CAMs [h, w, C], bool of the same shape."""
  anchors = np.zeros(cam.shape, bool)
  negatives = np.zeros(cam.shape, bool)
  for i, j, c in np.ndindex(cam.shape):
    if inside[i, j]:
      anchors[i, j, c] = tags[c] and cam[i, j, c] > beta
      negatives[i, j, c] = not tags[c] or cam[i, j, c] < beta
  return anchors, negatives
