"""Numpy transcription of DAFormer's training step (float64).

Written from the specification of U2PL for domain adaptation alone, whose
section signs these are; plain and slow. Random draws are arguments.

Images are in [-1, 1] unless stated, labels integers, negative = ignored.

§2.4  ema_decay(i)                                1: a, 0 at i = 0
      ema(teacher, student, i)
      source_loss(logits, labels)                 over B·H·W
      cell_labels(labels, side, classes, ratio)   [B,h,w], -1 = ignored
      feature_distance(f, f0, labels, …)          L_fd
      confident_share(probs, threshold)           q
      target_weights(shape, q, top, bottom)       w
      class_masks(labels, priorities)             m
      mix(m, source, target)
      mixed_loss(logits, labels, weights)         over B·H·W
§2.5  learning_rate(base, i, steps, warmup)
      adamw(theta, gradient, m, v, i, rate, decay)
§2.6  jitter(image, order, b, c, s, h)            image in [0, 1]
      kernel_size(side), blur(image, sigma)

      half_pixel(array, size)                     bilinear, not aligned
      half_pixel_transposed(array, size)
"""

import colorsys
import math

import numpy as np


def log_softmax(logits):
  """Computes the logarithm of the softmax over the last axis."""
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def one_axis(old, new):
  """Returns the weights of half-pixel bilinear resizing, [new, old]."""
  weights = np.zeros((new, old))
  for i in range(new):
    at = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
    low = math.floor(at)
    high = min(low + 1, old - 1)
    weights[i, low] += 1 - (at - low)
    weights[i, high] += at - low
  return weights


def half_pixel(array, size):
  """Resizes [B,h,w,C] to (H, W)."""
  rows = one_axis(array.shape[1], size[0])
  columns = one_axis(array.shape[2], size[1])
  return np.einsum('ih,jw,bhwc->bijc', rows, columns, array)


def half_pixel_transposed(array, size):
  """Applies the transpose of `half_pixel` from (h, w)=size, for gradients."""
  rows = one_axis(size[0], array.shape[1])
  columns = one_axis(size[1], array.shape[2])
  return np.einsum('ih,jw,bijc->bhwc', rows, columns, array)


# §2.4


def ema_decay(i):
  """Computes a of step i; 0 copies."""
  return 0.0 if i == 0 else min(1 - 1 / (i + 1), 0.999)


def ema(teacher, student, i):
  """Computes the teacher's parameter of step i."""
  decay = ema_decay(i)
  return decay * np.asarray(teacher) + (1 - decay) * np.asarray(student)


def weighted_cross_entropy(logits, labels, weights):
  """Computes the loss over B·H·W pixels, and its gradient to the logits."""
  log_probs = log_softmax(logits)
  total, gradient = 0.0, np.zeros_like(log_probs)
  for at in np.ndindex(labels.shape):
    if labels[at] < 0:
      continue
    total -= weights[at] * log_probs[at][labels[at]]
    gradient[at] = weights[at] * np.exp(log_probs[at])
    gradient[at][labels[at]] -= weights[at]
  return total / labels.size, gradient / labels.size


def cell_labels(labels, side, num_classes, min_share):
  """Computes the label of each block of side x side pixels."""
  batch, height, width = labels.shape
  cells = np.full((batch, height // side, width // side), -1)
  for b, i, j in np.ndindex(cells.shape):
    block = labels[b, i * side : (i + 1) * side, j * side : (j + 1) * side]
    of_class = np.where(block < 0, num_classes, block).ravel()
    counts = np.bincount(of_class, minlength=num_classes + 1)
    best = int(np.argmax(counts))  # The lowest index of equal ones.
    if best < num_classes and counts[best] / side**2 >= min_share:
      cells[b, i, j] = best
  return cells


def feature_distance(f, f0, cells, things, weight=0.005):
  """Computes L_fd and its gradient to f; `cells` are labels of cells."""
  kept = np.isin(cells, things)
  gradient = np.zeros_like(f)
  if not kept.any():
    return 0.0, gradient
  total = 0.0
  for at in zip(*np.nonzero(kept), strict=True):
    distance = math.sqrt(((f[at] - f0[at]) ** 2).sum())
    total += distance
    if distance > 0:
      gradient[at] = (f[at] - f0[at]) / distance
  scale = weight / kept.sum()
  return scale * total, scale * gradient


def confident_share(logits, threshold=0.968):
  """Computes q of all pixels of the batch."""
  probs = np.exp(log_softmax(logits)).max(-1)
  return (probs >= threshold).sum() / probs.size


def target_weights(shape, q, top, bottom):
  """Computes w: q, and 0 in the first and the last rows."""
  weights = np.full(shape, q)
  weights[:, :top] = 0
  weights[:, shape[1] - bottom :] = 0
  return weights


def class_masks(labels, priorities):
  """Computes m; `priorities` are [B, C + 1], ignored pixels are class C."""
  classes = priorities.shape[1] - 1
  labels = np.where(labels < 0, classes, labels)
  present = np.unique(labels)  # Of the whole batch.
  count = (len(present) + len(present) % 2) // 2
  masks = np.zeros(labels.shape, bool)
  for b, row in enumerate(priorities):
    chosen = present[np.argsort(-row[present])][:count]
    masks[b] = np.isin(labels[b], chosen)
  return masks


def mix(masks, source, target):
  """Computes m x_s + (1 - m) x_t."""
  m = masks.astype(float)
  if source.ndim > masks.ndim:
    m = m[..., None]
  return m * source + (1 - m) * target


# §2.5


def learning_rate(base, i, steps=40_000, warmup=1500):
  """Computes the rate of step i."""
  rate = base * (1 - i / steps)
  if i < warmup:
    rate *= 1 - (1 - i / warmup) * (1 - 1e-6)
  return rate


def adamw(theta, gradient, m, v, i, rate, decay):
  """Computes step i of AdamW; returns theta, m and v."""
  m = 0.9 * m + 0.1 * gradient
  v = 0.999 * v + 0.001 * gradient**2
  m_hat, v_hat = m / (1 - 0.9 ** (i + 1)), v / (1 - 0.999 ** (i + 1))
  step = m_hat / (np.sqrt(v_hat) + 1e-8)
  return theta - rate * (step + decay * theta), m, v


# §2.6


def jitter(image, order, b, c, s, h):
  """Applies the operations 0 brightness, 1 contrast, 2 saturation, 3 hue."""
  for kind in order:
    if kind == 0:
      image = np.clip(image + (b - 1), 0, 1)
    elif kind == 1:
      image = np.clip(image * c, 0, 1)
    else:
      image = image.copy()
      for at in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[at])
        if kind == 2:
          saturation = min(max(saturation * s, 0), 1)
        else:
          radians = math.fmod(2 * math.pi * (hue + h), 2 * math.pi)
          hue = (radians / (2 * math.pi)) % 1.0
        image[at] = colorsys.hsv_to_rgb(hue, saturation, value)
  return image


def kernel_size(side):
  """Computes the taps of the blur."""
  n = math.ceil(0.1 * side)
  return math.floor(n - 0.5 + n % 2)


def blur(image, sigma):
  """Blurs by a Gaussian with reflected borders, in two dimensions."""
  height, width, _ = image.shape
  taps = [kernel_size(side) for side in (height, width)]
  kernels = []
  for n in taps:
    x = np.arange(n) - n // 2
    g = np.exp(-(x**2) / (2 * sigma**2))
    kernels.append(g / g.sum())
  kernel = np.outer(*kernels)
  padded = np.pad(
    image, [(n // 2, n // 2) for n in taps] + [(0, 0)], mode='reflect'
  )
  out = np.zeros_like(image)
  for i, j in np.ndindex(height, width):
    window = padded[i : i + taps[0], j : j + taps[1]]
    out[i, j] = (kernel[..., None] * window).sum((0, 1))
  return out
