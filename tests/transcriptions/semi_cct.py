"""Numpy transcription of CCT (float64), for the tests.

Written from the specification of the baselines, §3. Random draws are arguments.
Labels are integers, negative = ignored.

§3.1  adaptive_mean(x, bins)                 torch's windows, [B,bins,bins,D]
      shuffle_decoder(x, weights)            1x1, then doublings
§3.2  dropped_channels(z, kept)
      dropped_cells(z, factor)
      noisy(z, noise)
      objects(foreground)                    bounding boxes by root
      cut_out(z, foreground, uniforms)
      masked(z, keep)
      adversarial(decode, z, d0, xi, eps)    by central differences
§3.3  ramp(step, steps)
      mse(logits, target_logits, known)
      threshold(step, steps, classes, end)
      bootstrapped_loss(logits, labels, threshold)
"""

import math

import numpy as np
from scipy import ndimage

from tests.transcriptions import u2pl


def adaptive_mean(x, bins):
  """Averages cells ⌊i n/bins⌋ to ⌈(i+1) n/bins⌉ - 1 of both axes."""
  height, width = x.shape[1:3]
  result = np.zeros((len(x), bins, bins, x.shape[-1]))
  for i in range(bins):
    for j in range(bins):
      rows = slice(i * height // bins, math.ceil((i + 1) * height / bins))
      columns = slice(j * width // bins, math.ceil((j + 1) * width / bins))
      result[:, i, j] = x[:, rows, columns].mean((1, 2))
  return result


def shuffle_decoder(x, first, doublings):
  """Computes a 1x1 without bias, then 1x1 to 4C, ReLU, 2x2 cells.

  Args:
    x: map [B,h,w,D].
    first: kernel [D,C].
    doublings: (kernel [C,4C], bias [4C]) each; the channels of the four cells
      (0,0), (0,1), (1,0), (1,1) follow each other.
  """
  x = x @ first
  for kernel, bias in doublings:
    y = np.maximum(x @ kernel + bias, 0)
    batch, height, width, classes = x.shape
    x = np.zeros((batch, 2 * height, 2 * width, classes))
    for i in range(2):
      for j in range(2):
        part = (2 * i + j) * classes
        x[:, i::2, j::2] = y[..., part : part + classes]
  return x


def dropped_channels(z, kept):
  """Applies channel dropout of one half."""
  return z * kept[:, None, None, :] * 2


def dropped_cells(z, factor):
  """Removes the most active region of each image."""
  result = z.copy()
  for image in result:
    mean = image.mean(-1)
    image[mean >= mean.max() * factor] = 0
  return result


def noisy(z, noise):
  """Multiplies by 1 + n, shared over the batch."""
  return np.stack([image * (1 + noise) for image in z])


def objects(foreground):
  """Lists first pixel, rows and columns of components of perimeter > 50."""
  labels, count = ndimage.label(foreground, np.ones((3, 3)))
  found = []
  for label in range(1, count + 1):
    pixels = list(zip(*np.nonzero(labels == label), strict=True))
    perimeter = 0
    for y, x in pixels:
      around = (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)
      perimeter += any(
        not (0 <= i < foreground.shape[0] and 0 <= j < foreground.shape[1])
        or not foreground[i, j]
        for i, j in around
      )
    if perimeter > 50:
      rows, columns = zip(*pixels, strict=True)
      found.append(
        (pixels[0], (min(rows), max(rows)), (min(columns), max(columns)))
      )
  return found


def object_boxes(foreground, uniforms):
  """Computes the mask of a box of 0.4 x 0.4 in each object's bounding box."""
  mask = np.zeros(foreground.shape, bool)
  for root, *extents in objects(foreground):
    spans = []
    for (first, last), uniform in zip(extents, uniforms[root], strict=True):
      side = last - first
      start = first + math.floor(uniform * (math.floor(0.6 * side + 1e-9) + 1))
      spans.append(slice(start, start + math.floor(0.4 * side + 1e-9)))
    mask[tuple(spans)] = True
  return mask


def cut_out(z, foreground, uniforms):
  """Zeroes the cells whose nearest pixel is in a box of an object."""
  boxes = [
    object_boxes(fg, u) for fg, u in zip(foreground, uniforms, strict=True)
  ]
  return masked(z, ~np.stack(boxes))


def masked(z, keep):
  """Multiplies by the mask, read at the nearest pixel of each cell."""
  return z * u2pl.nearest(keep, z.shape[1:3])[..., None]


def adversarial(decode, z, start, xi, eps):
  """Computes VAT's noise: one step, the gradient by central differences."""
  direction = start.copy()
  for image in direction:
    image /= math.sqrt((image**2).sum()) + 1e-8
  target = u2pl.log_softmax(decode(z))

  def divergence(d):
    predicted = u2pl.log_softmax(decode(z + xi * d))
    return (np.exp(target) * (target - predicted)).sum() / len(z)

  noise = u2pl.numeric_gradient(divergence, direction)
  for image in noise:
    image *= eps / (math.sqrt((image**2).sum()) + 1e-8)
  return noise


def ramp(step, steps):
  """Computes exp(-5 (1 - min(t/T, 1))^2)."""
  return math.exp(-5 * (1 - min(step / steps, 1)) ** 2)


def mse(logits, target_logits, known):
  """Computes the mean of squared differences of softmax, C included."""
  errors = (u2pl.softmax(logits) - u2pl.softmax(target_logits)) ** 2
  return errors[known].mean()


def threshold(step, steps, classes, end):
  """Computes the annealed threshold; steps are all of the training."""
  share = 1 - math.exp(-5 * min(step / (0.4 * steps), 1))
  return 1 / classes + (end - 1 / classes) * share


def bootstrapped_loss(logits, labels, limit):
  """Averages over pixels with p_y < limit, at least one an image."""
  log_probs = u2pl.log_softmax(logits)
  pixels = [i for i in np.ndindex(labels.shape) if labels[i] >= 0]
  losses = sorted((-log_probs[i][labels[i]] for i in pixels), reverse=True)
  least = math.exp(-losses[min(len(labels), len(losses) - 1)])
  kept = [x for x in losses if math.exp(-x) < max(least, limit)]
  return sum(kept) / max(len(kept), 1)
