"""Pretraining of PASS in slow, obvious numpy (float64) for the tests.

Written from the specification alone (the section signs below are its own).
Nothing is drawn here and nothing is differentiated: a stopped gradient is a
value that the caller passes as a constant.

Symbols: B images, V views, K prototypes, L rows of a queue, D features, h w
pixels of a feature map, n points a side of a grid, H W pixels of an image, C
categories. Maps have channels last, kernels are [in,out], prototypes [D,K], a
box is (left, top, width, height) in pixels of the source image. Labels: 0 is
'other', 1..C the categories, 1000 ignored. Scores of §6 are in percent.

§2.4  normalize(x)                                  [...,D]; n of the notation
      batch_norm(x, gamma, beta, eps)               training; None: no affine
      batch_norm_eval(x, gamma, beta, mean, variance, eps)
      gap(maps)                                     [...,h,w,D] -> [...,D]
      image_projection(pooled, weights)             [N,D] -> [N,E], normalized
      pixel_mlp(maps, weights)                      g_s and P2P's p
      d2s_embedding(maps, pixel_weights, image_weights)
      predictor(maps, weights)                      P2P's q
§2.5  normalize_prototypes(prototypes)                   [D,K]
      prototypes_frozen(step, steps)
      sinkhorn(scores, epsilon, num_iterations)     [N,K] -> [N,K]
      swav_targets(logits, queue_scores, ...)       [2,B,K] -> [2,B,K]
      crop_weights(views)                           [2,V]
      swav_loss(logits, queue_scores, ...)          loss, targets [2,B,K]
      scores_of_queue(queue, prototypes)            [2,L,K]; None: not yet full
      queue_push(queue, embeddings)                 [2,L,D], [2,B,D]
§2.6  overlaps(box_a, box_b)
      overlap_grids(box_a, box_b, flip_a, flip_b,
          size)                                     two [n,n,2] of (x,y)
      grid_sample(features, grid)                   [h,w,D], [n,n,2] -> [n,n,D]
      sample_pairs(projected_a, projected_b, ...)   two [B,n,n,D]
      cosine(a, b)                                  eps 1e-8 on each norm
      p2p_cosine_loss(predicted_a, predicted_b, z_a, z_b)
      p2p_loss(projected_a, projected_b, boxes_a, boxes_b, flips_a, flips_b,
          predict, size, statistics)
      contrastive_p2p_loss(predicted_a, predicted_b, z_a, z_b, overlapping,
          temperature)
      clustering_p2p_loss(logits_a, logits_b, overlapping, ...)
§2.7  d2s_loss(shallow_logits, targets, temperature, same_view)
§2.8  total_loss(swav, d2s, p2p, weights, combine)
"""

import math

import numpy as np

# §2.4 Norms and heads


def normalize(x):
  """Computes x / max(|x|, 1e-12) over the last axis (the notation's n)."""
  x = np.asarray(x, np.float64)
  norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
  return x / np.maximum(norm, 1e-12)


def batch_norm_eval(x, gamma, beta, mean, variance, eps=1e-5):
  """Normalizes by given statistics [D]; gamma and beta None: no affine."""
  normed = (np.asarray(x, np.float64) - mean) / np.sqrt(variance + eps)
  if gamma is None and beta is None:
    return normed
  return gamma * normed + beta


def batch_norm(x, gamma=None, beta=None, eps=1e-5):
  """Normalizes by the batch's mean and biased variance, as in training.

  The statistics are over every axis but the last.
  """
  rows = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
  mean = rows.mean(axis=0)
  variance = ((rows - mean) ** 2).mean(axis=0)
  return batch_norm_eval(x, gamma, beta, mean, variance, eps)


def _relu(x):
  return np.maximum(x, 0.0)


def gap(maps):
  """Averages over the positions, [...,h,w,D] -> [...,D]."""
  return np.asarray(maps, np.float64).mean(axis=(-3, -2))


def image_projection(pooled, weights):
  """Applies P4 to pooled features of all crops, [N,D] -> [N,E] (§2.4).

  Args:
    pooled: [N,D].
    weights: w1 [D,h], b1, gamma, beta [h], w2 [h,E], b2 [E].
  """
  hidden = pooled @ weights['w1'] + weights['b1']
  hidden = _relu(batch_norm(hidden, weights['gamma'], weights['beta']))
  return normalize(batch_norm(hidden @ weights['w2'] + weights['b2']))


def pixel_mlp(maps, weights):
  """Applies three convs without bias, the last norm without affine (§2.4).

  Args:
    maps: [B,h,w,D].
    weights: w1, gamma1, beta1, w2, gamma2, beta2, w3; kernels [in,out].
  """
  hidden = maps @ weights['w1']
  hidden = _relu(batch_norm(hidden, weights['gamma1'], weights['beta1']))
  hidden = hidden @ weights['w2']
  hidden = _relu(batch_norm(hidden, weights['gamma2'], weights['beta2']))
  return batch_norm(hidden @ weights['w3'])


def d2s_embedding(maps, pixel_weights, image_weights):
  """Computes e_s = P_s(GAP(g_s(c_s))), [B,h,w,D] -> [B,E] (§2.4, §2.7)."""
  return image_projection(gap(pixel_mlp(maps, pixel_weights)), image_weights)


def predictor(maps, weights):
  """Applies P2P's q (§2.4): w1 without bias, gamma, beta, w2, b2."""
  hidden = maps @ weights['w1']
  hidden = _relu(batch_norm(hidden, weights['gamma'], weights['beta']))
  return hidden @ weights['w2'] + weights['b2']


# §2.5 SwAV


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def normalize_prototypes(prototypes):
  """L2-normalizes each prototype, a column of [D,K] (§2.5)."""
  return normalize(np.asarray(prototypes).T).T


def prototypes_frozen(step, steps):
  """Returns whether prototypes are frozen at `step`, from 0 (§2.5)."""
  return step < steps


def sinkhorn(scores, epsilon=0.05, num_iterations=3):
  """Computes the targets of scores [N,K]; rows sum to 1 (§2.5)."""
  q = np.exp(np.asarray(scores, np.float64) / epsilon).T
  prototypes, samples = q.shape
  q = q / q.sum()
  for _ in range(num_iterations):
    for k in range(prototypes):
      q[k] = q[k] / q[k].sum() / prototypes
    for i in range(samples):
      q[:, i] = q[:, i] / q[:, i].sum() / samples
  return (q * samples).T


def swav_targets(logits, queue_scores=None, epsilon=0.05, num_iterations=3):
  """Computes the targets of the two large views, [2,B,K] (§2.5).

  Args:
    logits: of the two large views, [2,B,K], or of all views.
    queue_scores: [2,L,K], put before the batch's; None if the queue is unused.
    epsilon: of Sinkhorn.
    num_iterations: of Sinkhorn.
  """
  targets = []
  for i in range(2):
    scores = np.asarray(logits[i], np.float64)
    batch = len(scores)
    if queue_scores is not None:
      scores = np.concatenate([queue_scores[i], scores])
    targets.append(sinkhorn(scores, epsilon, num_iterations)[-batch:])
  return np.array(targets)


def crop_weights(views):
  """Computes the weight of target i with crop v, [2,V]; sum 1 (§2.5)."""
  weights = np.zeros((2, views))
  for i in range(2):
    for v in range(views):
      if v != i:
        weights[i, v] = 1 / 2 / (views - 1)
  return weights


def _target_cross_entropy(targets, logits, temperature):
  """Averages -sum_k q_k log softmax(logits / temperature)_k over the rows."""
  log_probs = _log_softmax(np.asarray(logits, np.float64) / temperature)
  return -(targets * log_probs).sum(axis=-1).mean()


def swav_loss(
  logits, queue_scores=None, temperature=0.1, epsilon=0.05, num_iterations=3
):
  """Computes L_swav and its targets [2,B,K] (§2.5).

  Args:
    logits: V arrays [B,K], embeddings times prototypes; the large views first.
    queue_scores: [2,L,K], or None.
    temperature: of the predictions.
    epsilon: of Sinkhorn.
    num_iterations: of Sinkhorn.
  """
  targets = swav_targets(logits, queue_scores, epsilon, num_iterations)
  total, weights = 0.0, crop_weights(len(logits))
  for i in range(2):
    for v in range(len(logits)):
      if v != i:
        loss = _target_cross_entropy(targets[i], logits[v], temperature)
        total += weights[i, v] * loss
  return total, targets


def scores_of_queue(queue, prototypes):
  """Scores the queued embeddings; None while a last row is 0 (§2.5)."""
  if any((queue[i, -1] == 0).all() for i in range(2)):
    return None
  return np.asarray(queue, np.float64) @ prototypes


def queue_push(queue, embeddings):
  """Puts [2,B,D] in front of [2,L,D] and drops the oldest rows (§2.5)."""
  length = queue.shape[1]
  return np.array(
    [[*embeddings[i], *queue[i]][:length] for i in range(2)], np.float64
  )


# §2.6 P2P


def _overlap(box_a, box_b):
  """Computes left, top, right, bottom of the intersection, maybe empty."""
  left, top = max(box_a[0], box_b[0]), max(box_a[1], box_b[1])
  right = min(box_a[0] + box_a[2], box_b[0] + box_b[2])
  bottom = min(box_a[1] + box_a[3], box_b[1] + box_b[3])
  return left, top, right, bottom


def overlaps(box_a, box_b):
  """Returns whether the boxes' intersection has a positive area (§2.6)."""
  left, top, right, bottom = _overlap(box_a, box_b)
  return bool(right > left and bottom > top)


def overlap_grids(box_a, box_b, flip_a, flip_b, size=7):
  """Computes image points in both views' coordinates, two [n,n,2] (§2.6).

  Entry [row, column] is (x, y) in -1 .. 1; without overlap all are -2.
  """
  grids = np.full((2, size, size, 2), -2.0)
  if not overlaps(box_a, box_b):
    return grids[0], grids[1]
  left, top, right, bottom = _overlap(box_a, box_b)
  xs, ys = np.linspace(left, right, size), np.linspace(top, bottom, size)
  for view, (box, flip) in enumerate([(box_a, flip_a), (box_b, flip_b)]):
    for row, column in np.ndindex(size, size):
      u = (xs[column] - box[0]) / box[2]
      v = (ys[row] - box[1]) / box[3]
      if flip:
        u = 1 - u
      grids[view, row, column] = (2 * u - 1, 2 * v - 1)
  return grids[0], grids[1]


def grid_sample(features, grid):
  """Samples bilinearly, zeros outside, half-pixel centers (§2.6).

  Args:
    features: [h,w,D].
    grid: [n,m,2] of (x, y).
  """
  height, width, dims = features.shape
  sampled = np.zeros((*grid.shape[:-1], dims))
  for point in np.ndindex(grid.shape[:-1]):
    x = ((grid[point][0] + 1) * width - 1) / 2
    y = ((grid[point][1] + 1) * height - 1) / 2
    for row in (math.floor(y), math.floor(y) + 1):
      for column in (math.floor(x), math.floor(x) + 1):
        if 0 <= row < height and 0 <= column < width:
          weight = (1 - abs(y - row)) * (1 - abs(x - column))
          sampled[point] += weight * features[row, column]
  return sampled


def sample_pairs(
  projected_a, projected_b, boxes_a, boxes_b, flips_a, flips_b, size=7
):
  """Samples z of both views, [B,h,w,D] twice -> [B,n,n,D] twice (§2.6)."""
  z_a, z_b = [], []
  for b in range(len(projected_a)):
    grid_a, grid_b = overlap_grids(
      boxes_a[b], boxes_b[b], flips_a[b], flips_b[b], size
    )
    z_a.append(grid_sample(projected_a[b], grid_a))
    z_b.append(grid_sample(projected_b[b], grid_b))
  return np.array(z_a), np.array(z_b)


def cosine(a, b):
  """Computes the cosine of [D] vectors, each norm at least 1e-8 (§2.6)."""
  norm_a, norm_b = math.sqrt(a @ a), math.sqrt(b @ b)
  return (a @ b) / (max(norm_a, 1e-8) * max(norm_b, 1e-8))


def p2p_cosine_loss(predicted_a, predicted_b, z_a, z_b):
  """Computes L_p2p of predictions p and targets sg z, [B,n,n,D] (§2.6)."""
  total = 0.0
  for point in np.ndindex(z_a.shape[:-1]):
    total += cosine(predicted_a[point], z_b[point])
    total += cosine(predicted_b[point], z_a[point])
  return -total / 2 / z_a[..., 0].size


def p2p_loss(
  projected_a,
  projected_b,
  boxes_a,
  boxes_b,
  flips_a,
  flips_b,
  predict,
  size=7,
  statistics='joint',
):
  """Computes L_p2p: sampling, prediction, cosines (§2.6).

  Args:
    projected_a: p of the first view's whole map, [B,h,w,D].
    projected_b: of the second.
    boxes_a: B boxes.
    boxes_b: B boxes.
    flips_a: B bools.
    flips_b: B bools.
    predict: from [N,n,n,D] to [N,n,n,D].
    size: n.
    statistics: 'joint': both views are one batch of the predictor, as in the
      released code; 'per_view': it is called for one view at a time.
  """
  z_a, z_b = sample_pairs(
    projected_a, projected_b, boxes_a, boxes_b, flips_a, flips_b, size
  )
  if statistics == 'joint':
    predicted = predict(np.concatenate([z_a, z_b]))
    predicted_a, predicted_b = predicted[: len(z_a)], predicted[len(z_a) :]
  else:
    predicted_a, predicted_b = predict(z_a), predict(z_b)
  return p2p_cosine_loss(predicted_a, predicted_b, z_a, z_b)


def contrastive_p2p_loss(
  predicted_a, predicted_b, z_a, z_b, overlapping, temperature
):
  """Computes InfoNCE among the positions of one image (§2.6).

  The paper says no more than this. Here the logits of position i of one view
  are its cosines over the temperature with all positions j of the same image's
  other view; j = i is the positive, the others are negatives. The mean is over
  images and positions, and over the two directions. An image without overlap
  is 0 and counts in the mean.

  Args:
    predicted_a: [B,n,n,D]; z_a where there is no predictor.
    predicted_b: likewise.
    z_a: [B,n,n,D], a constant.
    z_b: likewise.
    overlapping: [B] bool.
    temperature: divides the cosines.
  """
  batch, dims = len(z_a), z_a.shape[-1]
  total = 0.0
  for predicted, z in [(predicted_a, z_b), (predicted_b, z_a)]:
    for b in range(batch):
      anchors, keys = predicted[b].reshape(-1, dims), z[b].reshape(-1, dims)
      for i, anchor in enumerate(anchors):
        logits = [cosine(anchor, key) / temperature for key in keys]
        if overlapping[b]:
          total -= _log_softmax(logits)[i] / len(anchors)
  return total / 2 / batch


def clustering_p2p_loss(
  logits_a,
  logits_b,
  overlapping,
  temperature=0.1,
  epsilon=0.05,
  num_iterations=3,
):
  """Computes SwAV's loss on positions in place of images (§2.6).

  The paper says no more than this. Here logits are n(z) times normalized
  prototypes. Of each view one
  Sinkhorn runs over all positions of all images with overlap; its targets
  supervise the other view at the same position. Mean over all images (without
  overlap: 0) and positions, and over the two directions. There is no queue.

  Args:
    logits_a: [B,n,n,K].
    logits_b: [B,n,n,K].
    overlapping: [B] bool.
    temperature: of the predictions.
    epsilon: of Sinkhorn.
    num_iterations: of Sinkhorn.
  """
  classes = logits_a.shape[-1]
  kept = [b for b in range(len(logits_a)) if overlapping[b]]
  if not kept:
    return 0.0
  a, b = (
    logits_a[kept].reshape(-1, classes),
    logits_b[kept].reshape(-1, classes),
  )
  loss = 0.0
  for scores, logits in [(a, b), (b, a)]:
    targets = sinkhorn(scores, epsilon, num_iterations)
    loss += _target_cross_entropy(targets, logits, temperature) / 2
  return loss * len(kept) / len(logits_a)


# §2.7 D2S and §2.8 the total


def d2s_loss(shallow_logits, targets, temperature=0.1, same_view=False):
  """Computes L_s: targets of one view, shallow logits of the other (§2.7).

  Same-stage targets are `swav_targets(shallow_logits)`.

  Args:
    shallow_logits: [2,B,K].
    targets: [2,B,K], those of L_swav.
    temperature: of the predictions.
    same_view: whether targets are compared with their own view.
  """
  total = 0.0
  for i in range(2):
    logits = shallow_logits[i if same_view else 1 - i]
    total += _target_cross_entropy(targets[i], logits, temperature)
  return total / 2


def total_loss(swav, d2s, p2p, weights=None, combine='code'):
  """Combines the losses (§2.8).

  'code': the weighted mean of SwAV and D2S, plus P2P; 'paper': the sum.

  Args:
    swav: L_swav.
    d2s: L_s of each stage.
    p2p: L_p2p.
    weights: w_0 of SwAV, then one of each stage; None is all 1.
    combine: 'code' or 'paper'.
  """
  weights = [1.0] * (1 + len(d2s)) if weights is None else weights
  parts = zip(weights, [swav, *d2s], strict=True)
  weighted = sum(weight * loss for weight, loss in parts)
  if combine == 'code':
    return weighted / sum(weights) + p2p
  if combine == 'paper':
    return weighted + p2p
  raise ValueError(f"combine {combine!r}: 'code' or 'paper'")
