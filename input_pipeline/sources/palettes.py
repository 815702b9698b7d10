"""Colors of classes that have none of their own."""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.sources import masks

# Names of classes that are drawn black.
_BACKGROUNDS = ('background', '_background_', '__background__', 'bg', 'void')
# Of more classes, the others have the colors of Pascal VOC.
_MAX_DISTINCT = 64
# Values of a channel among which colors are chosen.
_LEVELS = np.linspace(0, 255, 9).round().astype(np.uint8)
# No color is near black, white, or the gray of ignored pixels.
_AVOIDED = ((0, 0, 0), (255, 255, 255), (224, 224, 224), (128, 128, 128))


def class_palette(names: Sequence[str]) -> tuple[masks.Color, ...]:
  """Returns colors for classes: black for a background, else far apart.

  Args:
    names: names of the classes; a color depends on the position of the class.
  """
  colors = (*_distinct_colors()[: len(names)],)
  if len(names) > len(colors):
    colors += masks.voc_palette(len(names))[len(colors) :]
  return tuple(
    (0, 0, 0) if name.lower() in _BACKGROUNDS else color
    for name, color in zip(names, colors, strict=True)
  )


@functools.cache
def _distinct_colors() -> tuple[masks.Color, ...]:
  """Returns colors, each as far as possible from all before it in CIELAB."""
  grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing='ij'), -1)
  candidates = grid.reshape(-1, 3)
  lab = _to_lab(candidates)
  avoided = _to_lab(np.array(_AVOIDED, np.uint8))
  distances = np.linalg.norm(lab[:, None] - avoided, axis=-1).min(axis=1)
  colors = []
  for _ in range(_MAX_DISTINCT):
    index = int(distances.argmax())
    colors.append(tuple(candidates[index].tolist()))
    to_chosen = np.linalg.norm(lab - lab[index], axis=-1)
    distances = np.minimum(distances, to_chosen)
  return tuple(colors)


def _to_lab(colors: np.ndarray) -> np.ndarray:
  """Converts RGB colors [N, 3] to CIELAB."""
  pixels = (colors[None] / 255).astype(np.float32)
  return cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0]
