"""Numpy transcription of semi-supervised baselines (float64), for the tests.

Written from the specification of the baselines (its sections are named), in
loops where they read best. Random draws are arguments. Labels are integers,
negative = ignored; losses are in nats.

§2.2  xor_mask(uniforms, height, width)         CPS+CutMix, [H,W] bool
      cps_loss(logits, weight)                  two networks, no threshold
      cps_cutmix_loss(logits, labels, weight)   on mixed images
§7.2  first_fitting_box(share, attempts,
          height, width)                        top, left, height, width or None
§7.3  pasted(own, partners, masks)              reversed pairs
      masked_loss(logits, labels, kept, known)  sum over kept / count of known
      unimatch_loss(supervised, strong, feature)
§8    complementary(kept, whole)                factors [B,2,D]
      unimatch_v2_loss(supervised, strong)
      ema_decay(step)                           of parameters and buffers
"""

import math

import numpy as np

from tests.transcriptions import u2pl


def xor_mask(uniforms, height, width):
  """Computes the mask of boxes [K, 4] by exclusive or; zero at the start."""
  mask = np.zeros((height, width), bool)
  for u_area, u_height, u_top, u_left in np.asarray(uniforms, np.float64):
    area = 0.25 + 0.25 * u_area
    tall = math.exp(u_height * math.log(area))
    wide = area / tall
    tall, wide = (side * math.sqrt(1 / len(uniforms)) for side in (tall, wide))
    rows, columns = round(tall * height), round(wide * width)
    top = round((height - rows) * u_top)
    left = round((width - columns) * u_left)
    for i in range(top, top + rows):
      for j in range(left, left + columns):
        mask[i, j] = not mask[i, j]
  return mask


def cps_loss(logits, weight):
  """Computes the cross pseudo supervision of two networks' logits."""
  first, second = logits
  return weight * (
    u2pl.cross_entropy(first, second.argmax(-1))
    + u2pl.cross_entropy(second, first.argmax(-1))
  )


def cps_cutmix_loss(logits, labels, weight):
  """Computes that of mixed images, with both networks' mixed labels."""
  return weight * (
    u2pl.cross_entropy(logits[0], labels[1])
    + u2pl.cross_entropy(logits[1], labels[0])
  )


def first_fitting_box(share, attempts, height, width):
  """Computes UniMatch's CutMix box from its draws; None if none fits."""
  size = (0.02 + 0.38 * share) * height * width
  for u_ratio, u_left, u_top in attempts:
    ratio = 0.3 + (1 / 0.3 - 0.3) * u_ratio
    w, h = int(math.sqrt(size / ratio)), int(math.sqrt(size * ratio))
    x, y = int(u_left * width), int(u_top * height)
    if x + w <= width and y + h <= height:
      return y, x, h, w
  return None


def pasted(own, others, masks, group):
  """Replaces pixels by those of the partner, mirrored in its group."""
  result = own.copy()
  for i in range(len(own)):
    start = i // group * group
    partner = start + group - 1 - (i - start)
    result[i][masks[i]] = others[partner][masks[i]]
  return result


def masked_loss(logits, labels, kept, known):
  """Divides by the pixels that are known, not by the confident ones."""
  log_probs = u2pl.log_softmax(logits)
  total = 0.0
  for pixel in np.ndindex(labels.shape):
    if known[pixel] and kept[pixel]:
      total -= log_probs[pixel][labels[pixel]]
  return total / known.sum()


def unimatch_loss(supervised, strong, feature):
  """Computes the total of UniMatch from its four losses."""
  return (supervised + 0.25 * strong[0] + 0.25 * strong[1] + 0.5 * feature) / 2


def complementary(kept, whole):
  """Computes the factors of the channels of both views, [B,2,D]."""
  factors = np.ones((*kept.shape[:1], 2, kept.shape[1]))
  for i, row in enumerate(kept):
    if not whole[i]:
      factors[i, 0] = 2 * row
      factors[i, 1] = 2 - 2 * row
  return factors


def unimatch_v2_loss(supervised, strong):
  """Computes the total of UniMatch V2 from its three losses."""
  return (supervised + (strong[0] + strong[1]) / 2) / 2


def ema_decay(step):
  """Computes the decay after the update of a step that counts from 0."""
  return min(1 - 1 / (step + 1), 0.996)
