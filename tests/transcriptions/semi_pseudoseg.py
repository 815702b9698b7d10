"""Numpy transcription of PseudoSeg and PC2Seg (float64), for the tests.

Written from the specification of the baselines, §5 and §6. Random draws are
arguments. Labels are integers, negative = ignored.

§5  jittered(image, order, factors)           image in [0, 1]
    cut_out(shape, center, side)              pixels that stay, [H,W] bool
    tags(labels, classes), cams(features, kernel, tags)
    attention(cells, params, cams, valid)     logits on the cells
    fused(decoder, attention, temperature, scale)
    soft_cross_entropy(logits, targets, counted)
    tag_loss(logits, tags)
§6  squared_error(weak, strong, counted)
    largest(uniforms, possible, number)       indices, by falling number
    info_nce(anchors, positives, images, labels, negatives, tau)
"""

import colorsys
import math

import numpy as np

from tests.transcriptions import u2pl


def jittered(image, order, factors):
  """Applies the four operations in their order, clipping after each.

  Args:
    image: [H,W,3] in [0, 1].
    order: brightness (0), contrast (1), saturation (2) and hue (3).
    factors: 1 + shift of brightness, factors of contrast and saturation, shift
      of the hue.
  """
  x = np.array(image, np.float64)
  for kind in order:
    if kind == 0:
      x = x + factors[0] - 1
    elif kind == 1:
      mean = x.mean((0, 1))
      x = (x - mean) * factors[1] + mean
    else:
      for pixel in np.ndindex(x.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[pixel])
        if kind == 2:
          saturation = min(saturation * factors[2], 1)
        else:
          hue = (hue + factors[3]) % 1
        x[pixel] = colorsys.hsv_to_rgb(hue, saturation, value)
    x = np.clip(x, 0, 1)
  return x


def cut_out(shape, center, side):
  """Computes where pixels stay, outside of a square clipped to the image."""
  stay = np.ones(shape, bool)
  row, column = (int(u * n) for u, n in zip(center, shape, strict=True))
  half = side // 2
  stay[
    max(row - half, 0) : row + half, max(column - half, 0) : column + half
  ] = False
  return stay


def tags(labels, classes):
  """Lists which classes above 0 each image has, [B,C-1] bool."""
  return np.array(
    [[(image == c).any() for c in range(1, classes)] for image in labels]
  )


def cams(features, kernel, image_tags):
  """Computes Grad-CAM: relu of Σ g f, times the label, over its maximum.

  The logit is the kernel's column times the mean over cells, so its gradient is
  that column by the number of cells, at each cell.
  """
  batch, height, width, _ = features.shape
  result = np.zeros((batch, height, width, kernel.shape[1]))
  for b in range(batch):
    for c in range(kernel.shape[1]):
      weights = kernel[:, c] / (height * width)
      cam = np.maximum((features[b] * weights).sum(-1), 0) * image_tags[b, c]
      result[b, ..., c] = cam / cam.max() if cam.max() > 0 else 0
  return result


def attention(cells, params, values, valid):
  """Computes self-attention and its logits, with batch statistics.

  Args:
    cells: concatenated maps [B,h,w,D].
    params: kernels query, key and scores, scale and bias.
    values: class activation maps [B,h,w,C-1].
    valid: [B,h,w] bool.
  """
  spread = np.zeros(values.shape)
  for b in range(len(cells)):
    flat = cells[b].reshape(-1, cells.shape[-1])
    scores = (flat @ params['query']) @ (flat @ params['key']).T
    scores /= math.sqrt(params['key'].shape[1])
    mask = np.outer(valid[b].ravel(), valid[b].ravel())
    scores += (1 - mask) * -1e9
    own = values[b].reshape(-1, values.shape[-1])
    spread[b] = (u2pl.softmax(scores) @ own + own).reshape(values[b].shape)
  background = 2 - spread.max(-1, keepdims=True)
  x = np.concatenate([background, spread], -1) @ params['scores']
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias']


def fused(decoder, other, temperature=0.5, scale='batch'):
  """Computes the calibrated fusion of both logits, sharpened."""
  if scale == 'batch':
    both = np.concatenate([decoder, other])
    n = math.sqrt((both**2).mean() + 1e-8)
  else:
    n = np.sqrt(((decoder**2).sum(-1) + (other**2).sum(-1))[..., None] + 1e-8)
  probs = 0.5 * u2pl.softmax(decoder / n) + 0.5 * u2pl.softmax(other / n)
  probs = probs ** (1 / temperature)
  return probs / probs.sum(-1, keepdims=True)


def soft_cross_entropy(logits, targets, counted):
  """Sums over counted pixels, and divides by their number."""
  losses = -(targets * u2pl.log_softmax(logits)).sum(-1)
  return losses[counted].sum() / counted.sum()


def tag_loss(logits, image_tags):
  """Averages the sigmoid cross entropy over images and classes."""
  probs = 1 / (1 + np.exp(-logits))
  return -np.log(np.where(image_tags, probs, 1 - probs)).mean()


def squared_error(weak, strong, counted):
  """Averages over pixels the squared distance of both softmax."""
  error = (u2pl.softmax(strong) - u2pl.softmax(weak)) ** 2
  return error.sum(-1)[counted].mean()


def largest(uniforms, possible, number):
  """Lists the possible places of the largest numbers, largest first."""
  places = sorted(np.flatnonzero(possible), key=lambda i: -uniforms.flat[i])
  return places[:number]


def info_nce(anchor, positive, negatives, tau):
  """Computes the loss of one anchor [D], L2-normalized as the others."""
  own = math.exp(anchor @ positive / tau)
  others = sum(math.exp(anchor @ n / tau) for n in negatives)
  return -math.log(own / (own + others))
