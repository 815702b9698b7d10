"""PixPro, the other objective of PASS, in slow, obvious numpy.

See `pass_pretraining` for symbols and conventions.

§2.8  pixpro_total_loss(pixpro, swav, d2s, p2p, weights, combine)
§2.10 pixpro_projector(maps, weights)               [N,h,w,D]
      ppm(x, weight, bias, power, clamp)            [h,w,D], normalized
      pixpro_masks(box_a, box_b, flip_a, flip_b, size, source_size,
          threshold)                                bool [nn,nn]
      pixpro_loss(y_a, y_b, k_a, k_b, masks)
"""

import math

import numpy as np

from tests.transcriptions import pass_pretraining


def pixpro_total_loss(pixpro, swav, d2s, p2p, weights=None, combine='code'):
  """Computes L_pixpro + `total_loss` of the others (§2.10, assumed)."""
  return pixpro + pass_pretraining.total_loss(swav, d2s, p2p, weights, combine)


def pixpro_projector(maps, weights):
  """Applies PixPro's projector (§2.10): w1, b1, gamma, beta, w2, b2.

  Args:
    maps: [N,h,w,D], of one batch: the official model calls it with one view.
    weights: by name.
  """
  hidden = maps @ weights['w1'] + weights['b1']
  normed = pass_pretraining.batch_norm(
    hidden, weights['gamma'], weights['beta']
  )
  return np.maximum(normed, 0.0) @ weights['w2'] + weights['b2']


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
  normalized = pass_pretraining.normalize(rows)
  values = pass_pretraining.normalize(rows @ weight + bias)
  propagated = np.zeros(rows.shape)
  for i in range(len(rows)):
    for j in range(len(rows)):
      propagated[i] += (
        max(normalized[i] @ normalized[j], clamp) ** power * values[j]
      )
  return pass_pretraining.normalize(propagated).reshape(x.shape)


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
      keys = pass_pretraining.normalize(k[b]).reshape(-1, k.shape[-1])
      similarity, count = 0.0, 0
      for i, j in np.argwhere(pairs):
        similarity += queries[i] @ keys[j]
        count += 1
      total -= 2 * similarity / (count + 1e-6)
  return total / len(masks)
