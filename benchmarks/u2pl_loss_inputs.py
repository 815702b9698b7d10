"""Random inputs of the contrastive term of U2PL, in the shapes of a step."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from u2pl import contrast


class Shape(NamedTuple):
  """Sizes of a step: images and side in cells, C, D."""

  images: int
  side: int
  classes: int
  dim: int


class Inputs(NamedTuple):
  """Inputs of the term; rows alternate between labeled and mixed images.

  Attributes:
    student: [B, h, w, D].
    teacher: [B, h, w, D].
    scores: [B, h, w, C], logits of the teacher.
    labels: int32 [B, h, w], ground truth and pseudo-labels.
    reliable: bool [B, h, w]; False on labeled images.
    unreliable: bool [B, h, w]; False on labeled images.
  """

  student: Any
  teacher: Any
  scores: Any
  labels: Any
  reliable: Any
  unreliable: Any


def make_inputs(shape: Shape) -> Inputs:
  """Draws regions with smooth borders, and noisy teacher scores of them."""
  rng = np.random.default_rng(0)
  cells = (shape.images, shape.side, shape.side)
  size = (shape.side, shape.side)
  scores = np.empty((*cells, shape.classes), np.float32)
  labels = np.empty(cells, np.int32)
  for i in range(shape.images):
    fields = rng.standard_normal((shape.classes, 5, 5)).astype(np.float32)
    fields_resized = [
      cv2.resize(field, size, interpolation=3) for field in fields
    ]
    truth = 3 * np.stack(fields_resized, axis=-1)
    labels[i] = np.argmax(truth, axis=-1)
    noise = rng.standard_normal(truth.shape, np.float32)
    scores[i] = truth + noise
    # Annotators ignore the borders of objects.
    first, second = np.partition(truth, -2, axis=-1)[..., :-3:-1].T
    labels[i][(first - second).T < 0.2] = -1
  mixed = np.arange(shape.images) % 2 == 1
  labels[mixed] = np.argmax(scores[mixed], axis=-1)
  probs = np.exp(scores[mixed] - scores[mixed].max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  entropy = -np.sum(probs * np.log(probs + 1e-10), axis=-1)
  below = entropy < np.percentile(entropy, 80)
  reliable, unreliable = np.zeros(cells, bool), np.zeros(cells, bool)
  reliable[mixed], unreliable[mixed] = below, ~below
  centers = rng.standard_normal((shape.classes, shape.dim), np.float32)

  def features() -> np.ndarray:
    drawn = np.empty((*cells, shape.dim), np.float32)
    for i in range(shape.images):
      rng.standard_normal(dtype=np.float32, out=drawn[i])
      drawn[i] += centers[labels[i]]
    return drawn

  return Inputs(features(), features(), scores, labels, reliable, unreliable)


def make_bank(shape: Shape, options: contrast.ContrastOptions) -> np.ndarray:
  """Draws the rows of a full bank, [C, K, D]."""
  rng = np.random.default_rng(1)
  most = max(options.capacities(shape.classes))
  return rng.standard_normal((shape.classes, most, shape.dim), np.float32)
