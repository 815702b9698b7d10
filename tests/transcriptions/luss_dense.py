"""MDC, PiCIE and MaskContrast in slow, obvious numpy (float64).

Written from §3 of the specification of the comparators alone. Symbols: pixels P
as rows, features D, clusters K, images B.

§3.1 fpn(maps, kernels, biases)                      [h,w,D] of strides 4, 8, …
§3.2 crop(map, scale, row, column, flip, side)       [H,W,D] -> [side,side,D]
§3.3 nearest(f, c), mini_batch_kmeans(batches, c, n), weighted_ce(...)
§3.4 mdc_loss(f, kernel, bias, labels, weights)
§3.5 picie_loss(f1, f2, c1, c2, y1, y2, w1, w2, mse), over_weights(k1, k2)
§3.6 prototypes(e, t), mask_loss(q, t, prototypes, ring), saliency_loss(o, t)
     descriptors(e, s)
"""

import math

import numpy as np


def normalize(x):
  """n(x) over the last axis."""
  norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
  return x / np.maximum(norm, 1e-12)


def differences(function, x, step=1e-6):
  """The gradient of a function of an array by central differences."""
  gradient = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    values = []
    for sign in (1, -1):
      moved = x.copy()
      moved[index] += sign * step
      values.append(function(moved))
    gradient[index] = (values[0] - values[1]) / (2 * step)
  return gradient


def resize(map_, size):
  """Bilinear resizing of [H,W,D], half-pixel centers, without antialiasing."""
  height, width = map_.shape[:2]
  result = np.zeros((*size, map_.shape[2]))
  for i in range(size[0]):
    y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
    top = int(y)
    below = min(top + 1, height - 1)
    for j in range(size[1]):
      x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
      left = int(x)
      right = min(left + 1, width - 1)
      upper = map_[top, left] * (1 - x + left) + map_[top, right] * (x - left)
      lower = map_[below, left] * (1 - x + left) + map_[below, right] * (
        x - left
      )
      result[i, j] = upper * (1 - y + top) + lower * (y - top)
  return result


# §3.1 The decoder


def fpn(maps, kernels, biases):
  """o = up(o) + lateral, from the deepest map to that of stride 4."""
  total = None
  for map_, kernel, bias in reversed(
    [*zip(maps, kernels, biases, strict=True)]
  ):
    lateral = map_ @ kernel + bias
    if total is not None:
      lateral = resize(total, lateral.shape[:2]) + lateral
    total = lateral
  return total


# §3.2 Views


def crop(map_, scale, row, column, flip, side):
  """The box of a square map, resized and flipped."""
  whole = len(map_)
  length = int(scale * whole)
  top = round((whole - length) * row)
  left = round((whole - length) * column)
  cut = map_[top : top + length, left : left + length]
  result = resize(cut, (side, side))
  return result[:, ::-1] if flip else result


# §3.3 Clusters


def nearest(f, c):
  """argmax of -(1 - 2 f.c + |c|^2), for rows f of unit length."""
  return np.array(
    [
      np.argmax([-(1 - 2 * row @ each + each @ each) for each in c])
      for row in f
    ]
  )


def mini_batch_kmeans(batches, c, n):
  """Centroids and counts after batches of rows."""
  c, n = c.copy(), n.copy()
  for batch in batches:
    labels = nearest(batch, c)
    for k in range(len(c)):
      rows = batch[labels == k]
      if len(rows):
        n[k] += len(rows)
        rate = len(rows) / (n[k] + 1e-6)
        c[k] = (1 - rate) * c[k] + rate * rows.mean(axis=0)
  return c, n


def weighted_ce(logits, labels, weights):
  """PyTorch's weighted mean of the cross entropy of rows."""
  total = weight = 0.0
  for row, label in zip(logits, labels, strict=True):
    log_sum = math.log(np.exp(row - row.max()).sum()) + row.max()
    total += weights[label] * (log_sum - row[label])
    weight += weights[label]
  return total / weight


# §3.4 MDC


def mdc_loss(f, kernel, bias, labels, weights):
  """The loss of features that are not normalized yet."""
  return weighted_ce(normalize(f) @ kernel + bias, labels, weights)


# §3.5 PiCIE


def picie_terms(f1, f2, c1, c2, y1, y2, w1, w2):
  """The terms within and across views, of L2-normalized features."""
  within = weighted_ce(f1 @ c1.T, y1, w1) + weighted_ce(f2 @ c2.T, y2, w2)
  across = weighted_ce(f1 @ c2.T, y2, w2) + weighted_ce(f2 @ c1.T, y1, w1)
  return within / 2, across / 2


def picie_loss(f1, f2, c1, c2, y1, y2, w1, w2, mse=False):
  """The mean of the terms; with mse, the mean of that and of MSE(f1, f2)."""
  loss = sum(picie_terms(f1, f2, c1, c2, y1, y2, w1, w2)) / 2
  return (loss + ((f1 - f2) ** 2).mean()) / 2 if mse else loss


def over_weights(k1, k2):
  """The weights of the losses of K1 and of K2 clusters."""
  a, b = math.log(k1), math.log(k2)
  return b / (a + b), a / (a + b)


# §3.6 MaskContrast


def prototypes(e, t):
  """n of the sum of n(e) over the salient pixels; [B,H,W,D], [B,H,W]."""
  rows = [normalize(a)[mask].sum(axis=0) for a, mask in zip(e, t, strict=True)]
  return normalize(np.array(rows))


def mask_loss(q, t, positives, ring, temperature=0.5):
  """The weighted CE of all salient pixels of a batch."""
  columns = np.concatenate([positives, ring])
  rows, labels = [], []
  for b in range(len(q)):
    for pixel in normalize(q[b])[t[b]]:
      rows.append(columns @ pixel / temperature)
      labels.append(b)
  weights = np.zeros(len(columns))
  for c in set(labels):
    weights[c] = 1 / math.log(1.02 + labels.count(c) / len(labels))
  return weighted_ce(np.array(rows), labels, weights)


def softplus(x):
  return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def saliency_loss(o, t):
  """The balanced BCE of logits and a map of 0 and 1."""
  w = (t == 0).mean()
  positive = w * (t * softplus(-o)).sum()
  negative = (1 - w) * ((1 - t) * softplus(o)).sum()
  return (positive + negative) / t.size


def descriptors(e, s):
  """n of the sum of e s 1[s > 0.5]; [B,H,W,D], [B,H,W]."""
  weights = s * (s > 0.5)
  return normalize((e * weights[..., None]).sum(axis=(1, 2)))
