"""Numpy transcription of AEL and U2PL on AEL (float64), for the tests.

Written from §1 of the specification of the baselines, in loops where they read
best. Random draws are arguments. Labels are integers, negative = ignored;
losses and entropies are in nats.

§1.2  mean_probabilities(probs, labels, group)     a [C], mean over groups
      confidence_after(confidence, a)
§1.3  pasting_probabilities(confidence, excluded)
      class_of(probabilities, u)
      pasted(images, labels, seconds, chosen)
§1.4  mixing_probabilities(confidence)
      class_box(of_class, uniforms, share)         top, left, height, width, and
                                                   whether of a component
      shows(labels, classes, share)                [C] bool
      shown_after(shown, index, labels, share)
      with_box(own, other, box)
§1.5  keep_rates(confidence, gamma)
      kept(predictions, uniforms, rates)           [B,H,W] bool
      targets(logits, threshold)                   labels, v
      consistency(logits, labels, weights, reverse)
§1.7  released_sets(entropies, alpha)              dropped, low, high
      resized_probabilities(logits, size, cells)
      contrast_total(supervised, consistency, contrast)

Gradients with respect to logits at the resolution of the images:

      consistency_gradient(logits, labels, weights)
      cross_entropy_gradient(logits, labels, kept)
"""

import math

import numpy as np
from scipy import ndimage

from tests.transcriptions import u2pl


def mean_probabilities(probs, labels, group):
  """Computes a_c of §1.2 on each GPU's images, 0 if absent; then the mean."""
  num_classes = probs.shape[-1]
  rows = []
  for start in range(0, len(labels), group):
    row = np.zeros(num_classes)
    for c in range(num_classes):
      found = [
        probs[pixel][c]
        for pixel in np.ndindex(labels.shape)
        if start <= pixel[0] < start + group and labels[pixel] == c
      ]
      if found:
        row[c] = sum(found) / len(found)
    rows.append(row)
  return np.mean(rows, axis=0)


def confidence_after(confidence, a, momentum=0.999):
  """Computes 0.999 conf + 0.001 a."""
  return momentum * np.asarray(confidence, np.float64) + (1 - momentum) * a


def pasting_probabilities(confidence, excluded):
  """Computes softmax(sqrt(1 - conf)) over the classes not excluded."""
  weights = [
    0.0 if c in excluded else math.exp(math.sqrt(1 - value))
    for c, value in enumerate(np.asarray(confidence, np.float64))
  ]
  return np.array(weights) / sum(weights)


def mixing_probabilities(confidence):
  """Computes softmax(1 - conf) over all classes."""
  return u2pl.softmax(1 - np.asarray(confidence, np.float64))


def class_of(probabilities, u):
  """Returns the class at u of the cumulative distribution."""
  total = 0.0
  for c, probability in enumerate(probabilities):
    total += probability
    if u < total:
      return c
  return len(probabilities) - 1


def pasted(images, labels, seconds, second_labels, chosen):
  """Replaces pixels by those of the second image with a chosen class.

  Args:
    images: labeled images.
    labels: their labels.
    seconds: second images.
    second_labels: their labels, all ignored for an image without a second one.
    chosen: by image, the set of the classes that are pasted.
  """
  images, labels = images.copy(), labels.copy()
  for pixel in np.ndindex(labels.shape):
    if second_labels[pixel] in chosen[pixel[0]]:
      images[pixel] = seconds[pixel]
      labels[pixel] = second_labels[pixel]
  return images, labels


def class_box(of_class, uniforms, share):
  """Computes the box of §1.4, of a component or a random one."""
  height, width = of_class.shape
  parts, count = ndimage.label(of_class, structure=np.ones((3, 3)))
  areas = ndimage.sum(of_class, parts, range(1, count + 1)) if count else []
  # In the order of their first pixel.
  first = {
    part: min(np.flatnonzero(parts.ravel() == part))
    for part in range(1, count + 1)
    if areas[part - 1] > share * height * width
  }
  large = sorted(first, key=first.get)
  if large:
    rows, columns = np.nonzero(parts == large[int(uniforms[0] * len(large))])
    top, left = rows.min(), columns.min()
    return (top, left, rows.max() - top + 1, columns.max() - left + 1), True
  tall = 2.0 ** -uniforms[1]
  h, w = round(height * tall), round(width / 2 / tall)
  top = round((height - h) * uniforms[2])
  left = round((width - w) * uniforms[3])
  return (top, left, h, w), False


def with_box(own, other, box):
  """Returns `own` [H,W,...] with the box of `other`."""
  top, left, height, width = box
  result = own.copy()
  for y in range(top, top + height):
    for x in range(left, left + width):
      result[y, x] = other[y, x]
  return result


def shows(labels, num_classes, share):
  """Returns the classes of at least a share of an image's pixels, [C]."""
  return np.array(
    [(labels == c).sum() >= share * labels.size for c in range(num_classes)]
  )


def shown_after(shown, index, labels, share):
  """Refreshes the rows of a batch; crops of one image count together."""
  shown = shown.copy()
  for image in set(index.tolist()):
    crops = [
      shows(label, len(shown), share)
      for label, i in zip(labels, index, strict=True)
      if i == image
    ]
    shown[:, image] = np.any(crops, axis=0)
  return shown


def keep_rates(confidence, gamma=1.0):
  """Computes s_c of §1.5."""
  missing = 1 - np.asarray(confidence, np.float64)
  return (missing / (missing.max() + 1e-12)) ** gamma


def kept(predictions, uniforms, rates):
  """Keeps pixels of predicted class c where u > 1 - s_c.

  Args:
    predictions: [B,H,W], of the student.
    uniforms: [G,H,W,C], a map for each of G groups of images.
    rates: [C].
  """
  result = np.zeros(predictions.shape, bool)
  group = len(predictions) // len(uniforms)
  for b, y, x in np.ndindex(predictions.shape):
    c = predictions[b, y, x]
    result[b, y, x] = uniforms[b // group, y, x, c] > 1 - rates[c]
  return result


def targets(logits, threshold=0.0):
  """Returns pseudo-labels, ignored below the threshold, and v = max prob."""
  probs = u2pl.softmax(logits)
  v = probs.max(-1)
  return np.where(v >= threshold, probs.argmax(-1), -1), v


def consistency(logits, labels, weights, reverse=0.0):
  """Computes sum(w L) / (sum(w) + 1e-12); L is 0 where ignored."""
  log_probs = u2pl.log_softmax(logits)
  total, mass = 0.0, 0.0
  for pixel in np.ndindex(labels.shape):
    mass += weights[pixel]
    if labels[pixel] >= 0:
      log_prob = log_probs[pixel][labels[pixel]]
      loss = -log_prob
      loss += reverse * -math.log(1e-4) * (1 - math.exp(log_prob))
      total += weights[pixel] * loss
  return total / (mass + 1e-12)


def consistency_gradient(logits, labels, weights):
  """Computes the gradient of `consistency` without the reverse loss."""
  gradient = u2pl.softmax(logits)
  for pixel in np.ndindex(labels.shape):
    if labels[pixel] >= 0:
      gradient[pixel][labels[pixel]] -= 1
      gradient[pixel] *= weights[pixel]
    else:
      gradient[pixel] = 0
  return gradient / (weights.sum() + 1e-12)


def cross_entropy_gradient(logits, labels, counted):
  """Computes the gradient of the mean cross entropy of some pixels."""
  weights = counted.astype(np.float64)
  return consistency_gradient(logits, np.where(counted, labels, -1), weights)


def released_sets(entropies, alpha):
  """Returns dropped, low and high pixels of one image [H,W] (§1.7).

  Args:
    entropies: of the pasted logits.
    alpha: 0.2 (1 - t/T).
  """
  every = np.ones(entropies.shape, bool)
  dropped = entropies < u2pl.percentile(entropies, every, 100 * alpha)
  low = entropies <= u2pl.percentile(entropies, every, 20)
  high = entropies >= u2pl.percentile(entropies, every, 80)
  return dropped, low & ~dropped, high


def resized_probabilities(logits, size, cells):
  """Resizes probabilities of the logits at `size` to the cells (§1.7)."""
  return u2pl.bilinear(u2pl.softmax(u2pl.bilinear(logits, size)), cells)


def contrast_total(supervised, consistencies, contrast):
  """Computes L_s + L_cons,l + L_cons,u + 0.1 L_c (§1.7)."""
  return supervised + sum(consistencies) + 0.1 * contrast
