"""PASS (LUSS on ImageNet-S) in slow, obvious numpy (float64) for the tests.

Written from the specification alone (the section signs below are its own).
Nothing is drawn here and nothing is differentiated: a stopped gradient is a
value that the caller passes as a constant.

Symbols: B images, V views, K prototypes, L rows of a queue, D features, h w
pixels of a feature map, n points a side of a grid, H W pixels of an image, C
categories. Maps have channels last, kernels are [in,out], prototypes [D,K], a
box is (left, top, width, height) in pixels of the source image. Labels: 0 is
'other', 1..C the categories, 1000 ignored. Scores of §6 are in percent.

§1.4  encode_ids(ids), decode_ids(picture)          [H,W] <-> uint8 [H,W,3]
§2.1  swav_learning_rate(step, steps, base, final)
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
      pixpro_total_loss(pixpro, swav, d2s, p2p, weights, combine)
§2.9  larc(w, g, weight_decay, trust)               g
      sgd_momentum(w, m, g, lr, momentum)           w, m
      larc_sgd_steps(weights, gradients, learning_rates, ...)
§2.10 lars(w, g, weight_decay, trust)               g
      pixpro_learning_rate(step, steps, warmup_steps, base, final)
      momentum(k, total, base), ema(target, online, m)
      pixpro_projector(maps, weights)               [N,h,w,D]
      ppm(x, weight, bias, power, clamp)            [h,w,D], normalized
      pixpro_masks(box_a, box_b, flip_a, flip_b, size, source_size,
          threshold)                                bool [nn,nn]
      pixpro_loss(y_a, y_b, k_a, k_b, masks)
§3.1  bilinear(maps, size)                          half-pixel, [...,h,w,D]
      attention(maps, weights, training)            [...,h,w,D], or 1 if shared
      pixel_attention_embeddings(c4, attention_weights, projection_weights,
          factor)                                   [B,E]
§3.2  cluster_features(c4, weights, factor)         [B,D]
      nearest_centroids(x, centroids)               int [N]
      kmeans_objective(x, centroids)
      lloyd_iteration(x, centroids)                 [C,D]
§3.3  floor_nearest(labels, size)                   [h,w] -> [H,W]
      attention_map(c4, weights, size, factor)      [H,W]
      category_map(c4, centroids, size, factor)     int [H,W] of 1..C
      threshold_labels(categories, foreground, tau)
      pseudo_labels(c4, weights, centroids, tau, size, factor)
§4    finetune_loss(logits, labels, size, ignore)
§5.1  inference_size(height, width, short)          (h, w)
      label_map(logits, size, limit, longer)        [h,w,C+1] -> int [H,W]
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

IGNORE = 1000
GROUPS = ('S', 'MS', 'ML', 'L')

# §1.4 PNG encoding


def encode_ids(ids):
  """Encodes ids [H,W] as RGB: R = id mod 256, G = id div 256 (§1.4)."""
  picture = np.zeros((*np.shape(ids), 3), np.uint8)
  for pixel in np.ndindex(np.shape(ids)):
    value = int(ids[pixel])
    picture[pixel] = (value % 256, value // 256, 0)
  return picture


def decode_ids(picture):
  """Decodes R + 256 G in a wide type, uint8 [H,W,3] -> int [H,W] (§1.4)."""
  ids = np.zeros(picture.shape[:2], int)
  for pixel in np.ndindex(ids.shape):
    red, green, _ = picture[pixel]
    ids[pixel] = int(red) + 256 * int(green)
  return ids


# §2.1 Learning rate


def swav_learning_rate(step, steps, base=0.6, final=0.0006):
  """Decays by a cosine from base at step 0 to final at `steps` (§2.1)."""
  return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / steps))


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


def pixpro_total_loss(pixpro, swav, d2s, p2p, weights=None, combine='code'):
  """Computes L_pixpro + `total_loss` of the others (§2.10, assumed)."""
  return pixpro + total_loss(swav, d2s, p2p, weights, combine)


# §2.9 LARC


def _norm(x):
  return math.sqrt((np.asarray(x, np.float64) ** 2).sum())


def larc(w, g, weight_decay=1e-6, trust=0.001):
  """Scales a gradient; it stays raw if |w| or |g| is 0 (§2.9)."""
  w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
  norm_w, norm_g = _norm(w), _norm(g)
  if norm_w == 0 or norm_g == 0:
    return g
  scale = trust * norm_w / (norm_g + weight_decay * norm_w + 1e-8)
  return (g + weight_decay * w) * scale


def sgd_momentum(w, m, g, lr, momentum=0.9):
  """Computes the new w and m; m is None before the first step (§2.9)."""
  m = g if m is None else momentum * m + g
  return w - lr * m, m


def larc_sgd_steps(
  weights,
  gradients,
  learning_rates,
  weight_decay=1e-6,
  trust=0.001,
  momentum=0.9,
):
  """Takes steps of `larc` and `sgd_momentum`; weights and momenta (§2.9).

  Args:
    weights: arrays by name; not changed.
    gradients: of each step, arrays by name; a name left out is frozen, its
      weights and its momentum stay as they are.
    learning_rates: of each step.
    weight_decay: of all tensors.
    trust: of LARC.
    momentum: of SGD.
  """
  weights = {name: np.array(w, np.float64) for name, w in weights.items()}
  momenta = {}
  for step, lr in zip(gradients, learning_rates, strict=True):
    for name, g in step.items():
      weights[name], momenta[name] = sgd_momentum(
        weights[name],
        momenta.get(name),
        larc(weights[name], g, weight_decay, trust),
        lr,
        momentum,
      )
  return weights, momenta


# §2.10 PixPro


def lars(w, g, weight_decay=1e-5, trust=0.001):
  """Scales a gradient of two axes or more, as PixPro does (§2.10)."""
  w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
  if w.ndim <= 1:
    return g
  g = g + weight_decay * w
  if _norm(w) == 0 or _norm(g) == 0:
    return g
  return g * trust * _norm(w) / (_norm(g) + 1e-8)


def pixpro_learning_rate(step, steps, warmup_steps, base=1.0, final=1e-6):
  """Warms up from base / 100 to base, then decays by a cosine (§2.10)."""
  if step < warmup_steps:
    first = base / 100
    return first + (base - first) * step / warmup_steps
  return swav_learning_rate(
    step - warmup_steps, steps - warmup_steps, base, final
  )


def momentum(k, total, base=0.99):
  """Computes m(k) of the key network, from base to 1 (§2.10)."""
  return 1 - (1 - base) * (math.cos(math.pi * k / total) + 1) / 2


def ema(target, online, m):
  """Computes m target + (1 - m) online, the key network (§2.10)."""
  return m * target + (1 - m) * online


def pixpro_projector(maps, weights):
  """Applies PixPro's projector (§2.10): w1, b1, gamma, beta, w2, b2.

  Args:
    maps: [N,h,w,D], of one batch: the official model calls it with one view.
    weights: by name.
  """
  hidden = maps @ weights['w1'] + weights['b1']
  hidden = _relu(batch_norm(hidden, weights['gamma'], weights['beta']))
  return hidden @ weights['w2'] + weights['b2']


def ppm(x, weight, bias, power=2, clamp=0):
  """Propagates the pixels of a map, [h,w,D] -> [h,w,D], normalized (§2.10).

  Args:
    x: projector's output.
    weight: [D,D], in by out.
    bias: [D].
    power: of the similarity.
    clamp: least similarity before the power.
  """
  rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  normalized = normalize(rows)
  values = normalize(rows @ weight + bias)
  propagated = np.zeros(rows.shape)
  for i in range(len(rows)):
    for j in range(len(rows)):
      propagated[i] += (
        max(normalized[i] @ normalized[j], clamp) ** power * values[j]
      )
  return normalize(propagated).reshape(x.shape)


def pixpro_masks(
  box_a, box_b, flip_a, flip_b, size, source_size, threshold=0.7
):
  """Finds positive pairs of cells in raster order, bool [nn,nn] (§2.10).

  A crop's first and last pixel are its end points, over (W-1, H-1).

  Args:
    box_a: (left, top, width, height) in pixels of the source image.
    box_b: likewise.
    flip_a: whether the crop was flipped.
    flip_b: likewise.
    size: n, cells a side (7).
    source_size: (H, W) of the source image.
    threshold: of the distance in bin diagonals.
  """
  height, width = source_size
  centers, diagonals = [], []
  for box, flip in [(box_a, flip_a), (box_b, flip_b)]:
    x0, x1 = box[0] / (width - 1), (box[0] + box[2] - 1) / (width - 1)
    y0, y1 = box[1] / (height - 1), (box[1] + box[3] - 1) / (height - 1)
    if flip:
      x0, x1 = x1, x0
    bin_x, bin_y = (x1 - x0) / size, (y1 - y0) / size
    diagonals.append(math.hypot(bin_x, bin_y))
    centers.append(
      [
        (x0 + (column + 0.5) * bin_x, y0 + (row + 0.5) * bin_y)
        for row, column in np.ndindex(size, size)
      ]
    )
  masks = np.zeros((size * size, size * size), bool)
  for i, j in np.ndindex(masks.shape):
    distance = math.dist(centers[0][i], centers[1][j]) / max(diagonals)
    masks[i, j] = distance < threshold
  return masks


def pixpro_loss(y_a, y_b, k_a, k_b, masks):
  """Computes l(1,2) + l(2,1), both over positive pairs (§2.10).

  Args:
    y_a: PPM's output of the first view, [B,n,n,D].
    y_b: of the second.
    k_a: momentum projector's output; scaled to normalized vectors here.
    k_b: of the second view.
    masks: [B,nn,nn]; rows are cells of view a, columns of view b.
  """
  total = 0.0
  for b, mask in enumerate(masks):
    for y, k, pairs in [(y_a, k_b, mask), (y_b, k_a, mask.T)]:
      queries = y[b].reshape(-1, y.shape[-1])
      keys = normalize(k[b]).reshape(-1, k.shape[-1])
      similarity, count = 0.0, 0
      for i, j in np.argwhere(pairs):
        similarity += queries[i] @ keys[j]
        count += 1
      total -= 2 * similarity / (count + 1e-6)
  return total / len(masks)


# §3.1 Pixel attention


def _between(index, size, target):
  """Computes a target index's source neighbors, and the second's weight."""
  position = max((index + 0.5) * size / target - 0.5, 0.0)
  first = min(math.floor(position), size - 1)
  return first, min(first + 1, size - 1), position - first


def bilinear(maps, size):
  """Resizes [...,h,w,D], half-pixel centers, no antialiasing (§11)."""
  maps = np.asarray(maps, np.float64)
  height, width = maps.shape[-3:-1]
  resized = np.zeros((*maps.shape[:-3], *size, maps.shape[-1]))
  for y in range(size[0]):
    top, bottom, down = _between(y, height, size[0])
    for x in range(size[1]):
      left, right, across = _between(x, width, size[1])
      resized[..., y, x, :] = (
        (1 - down) * (1 - across) * maps[..., top, left, :]
        + (1 - down) * across * maps[..., top, right, :]
        + down * (1 - across) * maps[..., bottom, left, :]
        + down * across * maps[..., bottom, right, :]
      )
  return resized


def upsample(maps, factor):
  height, width = maps.shape[-3:-1]
  return bilinear(maps, (factor * height, factor * width))


def attention(maps, weights, training=True):
  """Computes sigmoid(MLP(F) + theta), [...,h,w,D] -> [...,h,w,D] (§3.1).

  In the shared form the second conv has one output, and so has the result.

  Args:
    maps: F, [...,h,w,D]; already normalized by the caller.
    weights: w1 [D,D], b1, gamma1, beta1 [D], w2 [D,D], b2, gamma2, beta2,
      theta [D] (shared: [D,1] and [1]); in evaluation also mean1, variance1,
      mean2, variance2.
    training: whether the norms use the batch's statistics.
  """

  def norm(x, layer):
    gamma, beta = weights[f'gamma{layer}'], weights[f'beta{layer}']
    if training:
      return batch_norm(x, gamma, beta)
    mean, variance = weights[f'mean{layer}'], weights[f'variance{layer}']
    return batch_norm_eval(x, gamma, beta, mean, variance)

  hidden = _relu(norm(maps @ weights['w1'] + weights['b1'], 1))
  logits = norm(hidden @ weights['w2'] + weights['b2'], 2) + weights['theta']
  return 1 / (1 + np.exp(-logits))


def pixel_attention_embeddings(
  c4, attention_weights, projection_weights, factor=4
):
  """Computes embeddings of step 2a's training, [B,h,w,D] -> [B,E] (§3.1)."""
  normalized = normalize(upsample(c4, factor))
  attended = normalized * attention(normalized, attention_weights)
  return image_projection(gap(attended), projection_weights)


# §3.2 k-means


def cluster_features(c4, weights, factor=4):
  """Computes f of each image, [B,h,w,D] -> [B,D]; evaluation (§3.2)."""
  x = upsample(c4, factor)
  f = gap(x * attention(normalize(x), weights, training=False))
  return f / (np.sqrt((f * f).sum(axis=-1, keepdims=True)) + 1e-8)


def _squared_distances(x, centroids):
  """Computes squared distances of [N,D] to [C,D], [N,C]."""
  distances = np.zeros((len(x), len(centroids)))
  for i, c in np.ndindex(distances.shape):
    difference = np.asarray(x[i], np.float64) - centroids[c]
    distances[i, c] = difference @ difference
  return distances


def nearest_centroids(x, centroids):
  """Finds the nearest centroids, int [N]; the first of equals (§3.2)."""
  return _squared_distances(x, centroids).argmin(axis=1)


def kmeans_objective(x, centroids):
  """Sums the squared distances to the nearest centroid (§3.2)."""
  return _squared_distances(x, centroids).min(axis=1).sum()


def lloyd_iteration(x, centroids):
  """Averages the points of each centroid, [C,D]; an empty one stays (§3.2)."""
  nearest = nearest_centroids(x, centroids)
  means = np.array(centroids, np.float64)
  for c in range(len(centroids)):
    if (nearest == c).any():
      means[c] = np.asarray(x, np.float64)[nearest == c].mean(axis=0)
  return means


# §3.3 Pseudo-labels


def floor_nearest(labels, size):
  """Resizes [h,w] -> [H,W], source index floor(i in / out) (§3.3)."""
  height, width = labels.shape
  resized = np.zeros(size, labels.dtype)
  for y, x in np.ndindex(*size):
    resized[y, x] = labels[y * height // size[0], x * width // size[1]]
  return resized


def attention_map(c4, weights, size, factor=4):
  """Computes a of one image at full size, [h,w,D] -> [H,W] (§3.3)."""
  normalized = normalize(upsample(c4, factor))
  a = attention(normalized, weights, training=False).mean(axis=-1)
  return bilinear(a[..., None], size)[..., 0]


def category_map(c4, centroids, size, factor=4):
  """Finds 1 + the centroid of the largest cosine, [h,w,D] -> [H,W] (§3.3)."""
  normalized = normalize(upsample(c4, factor))
  labels = 1 + (normalized @ normalize(centroids).T).argmax(axis=-1)
  return floor_nearest(labels, size)


def threshold_labels(categories, foreground, tau):
  """Sets categories [H,W] to 0 where the foreground's value < tau (§3.3)."""
  return np.where(np.asarray(foreground) < tau, 0, categories)


def pseudo_labels(c4, weights, centroids, tau, size, factor=4):
  """Computes pseudo-labels of one image, [h,w,D] -> int [H,W] (§3.3)."""
  return threshold_labels(
    category_map(c4, centroids, size, factor),
    attention_map(c4, weights, size, factor),
    tau,
  )


# §4 Fine-tuning


def finetune_loss(logits, labels, size=(112, 112), ignore=None):
  """Averages the cross entropy at `size`, [B,h,w,C+1], [B,H,W] (§4, §5.5).

  The mean is over the pixels whose label is not `ignore`; 0 if there is none.
  """
  log_probs = _log_softmax(bilinear(logits, size))
  total, count = 0.0, 0
  for b in range(len(labels)):
    reduced = floor_nearest(labels[b], size)
    for y, x in np.ndindex(*size):
      if ignore is None or reduced[y, x] != ignore:
        total -= log_probs[b, y, x, reduced[y, x]]
        count += 1
  return total / max(count, 1)


# §5.1 Inference


def inference_size(height, width, short=256):
  """Computes (h, w) with the given short side, the long one floored (§5.1)."""
  if height <= width:
    return short, int(short * width / height)
  return int(short * height / width), short


def label_map(logits, size, limit=1000, longer=False):
  """Computes labels at full size, [h,w,C+1] -> int [H,W] (§5.1).

  Above limit^2 pixels the argmax is taken at (limit, int(limit W / H)) and
  upsampled by `floor_nearest`.

  Args:
    logits: [h,w,C+1].
    size: (H, W).
    limit: 1000.
    longer: whether the longer side is `limit`, in place of the height.
  """
  height, width = size
  if height * width <= limit**2:
    return bilinear(logits, size).argmax(axis=-1)
  smaller = (limit, int(limit * width / height))
  if longer and width > height:
    smaller = (int(limit * height / width), limit)
  return floor_nearest(bilinear(logits, smaller).argmax(axis=-1), size)


# §5.2 Matching


def matching_matrix(predictions, truths, num_categories):
  """Counts images with generated g + 1 and category c + 1, [C,C] (§5.2)."""
  matrix = np.zeros((num_categories, num_categories), int)
  for predicted, truth in zip(predictions, truths, strict=True):
    for g in set(predicted.ravel().tolist()) - {0, IGNORE}:
      for c in set(truth.ravel().tolist()) - {0, IGNORE}:
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
  reduced = floor_nearest(mask, features.shape[:2])
  ids = sorted(set(reduced.ravel().tolist()) - {IGNORE})
  entries = [gap(features * (reduced == i)[..., None]) for i in ids]
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
  normalized, queries = normalize(bank), normalize(features)
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
  category = int(gap(logits).argmax())
  cam = np.array(logits[..., category], np.float64)
  if scaling == 'max':
    cam = _relu(cam)
  elif scaling == 'min-max':
    cam = cam - cam.min()
  else:
    raise ValueError(f"scaling {scaling!r}: 'max' or 'min-max'")
  if cam.max() > 0:
    cam = cam / cam.max()
  upsampled = bilinear(cam[..., None], size)[..., 0]
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
    valid = truth != IGNORE
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
    valid = truth != IGNORE  # the boundaries are those of the full maps
    counts.add(
      boundary_map(predicted, ratio)[valid], boundary_map(truth, ratio)[valid]
    )
  return 100 * counts.ious()[1 if other else 2 :].mean()


def image_accuracy(predictions, truths, num_categories):
  """Counts images whose largest predicted category occurs, percent (§6.3)."""
  correct = 0
  for predicted, truth in zip(predictions, truths, strict=True):
    predicted_ids = predicted[truth != IGNORE]
    areas = [(predicted_ids == c).sum() for c in range(1, num_categories + 1)]
    largest = 1 + int(np.argmax(areas))
    correct += areas[largest - 1] > 0 and (truth == largest).any()
  return 100 * correct / len(truths)


def f_beta(predictions, truths):
  """Averages F of the foreground over images, beta^2 = 0.3, percent (§6.3)."""
  total = 0.0
  for predicted, truth in zip(predictions, truths, strict=True):
    valid = truth != IGNORE
    foreground, true = predicted[valid] > 0, truth[valid] > 0
    hits = (foreground & true).sum()
    if hits > 0:  # without a hit F is 0 or undefined
      p, r = hits / foreground.sum(), hits / true.sum()
      total += 1.3 * p * r / (0.3 * p + r)
  return 100 * total / len(truths)


def size_groups(truth, num_categories):
  """Groups the categories of an image by size (§6.4)."""
  groups = {name: [] for name in GROUPS}
  pixels = int((truth != IGNORE).sum())
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
