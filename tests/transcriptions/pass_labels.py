"""Pseudo-labels and label maps of PASS in slow, obvious numpy.

See `pass_pretraining` for symbols and conventions.

§1.4  encode_ids(ids), decode_ids(picture)          [H,W] <-> uint8 [H,W,3]
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
"""

import math

import numpy as np

from tests.transcriptions import pass_pretraining

IGNORE = 1000

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
      return pass_pretraining.batch_norm(x, gamma, beta)
    mean, variance = weights[f'mean{layer}'], weights[f'variance{layer}']
    return pass_pretraining.batch_norm_eval(x, gamma, beta, mean, variance)

  hidden = pass_pretraining._relu(norm(maps @ weights['w1'] + weights['b1'], 1))
  logits = norm(hidden @ weights['w2'] + weights['b2'], 2) + weights['theta']
  return 1 / (1 + np.exp(-logits))


def pixel_attention_embeddings(
  c4, attention_weights, projection_weights, factor=4
):
  """Computes embeddings of step 2a's training, [B,h,w,D] -> [B,E] (§3.1)."""
  normalized = pass_pretraining.normalize(upsample(c4, factor))
  attended = normalized * attention(normalized, attention_weights)
  return pass_pretraining.image_projection(
    pass_pretraining.gap(attended), projection_weights
  )


# §3.2 k-means


def cluster_features(c4, weights, factor=4):
  """Computes f of each image, [B,h,w,D] -> [B,D]; evaluation (§3.2)."""
  x = upsample(c4, factor)
  f = pass_pretraining.gap(
    x * attention(pass_pretraining.normalize(x), weights, training=False)
  )
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
  normalized = pass_pretraining.normalize(upsample(c4, factor))
  a = attention(normalized, weights, training=False).mean(axis=-1)
  return bilinear(a[..., None], size)[..., 0]


def category_map(c4, centroids, size, factor=4):
  """Finds 1 + the centroid of the largest cosine, [h,w,D] -> [H,W] (§3.3)."""
  normalized = pass_pretraining.normalize(upsample(c4, factor))
  labels = 1 + (normalized @ pass_pretraining.normalize(centroids).T).argmax(
    axis=-1
  )
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
  log_probs = pass_pretraining._log_softmax(bilinear(logits, size))
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
