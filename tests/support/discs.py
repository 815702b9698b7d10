"""Discs with a known outline, and where pictures and label maps have them."""

from typing import NamedTuple

import numpy as np

from tests.support import images

# Samples a side of a pixel, where the outline crosses it.
_SAMPLES = 16


class Outline(NamedTuple):
  """The center of a disc, and the radius of the circle of its area; pixels."""

  y: float
  x: float
  radius: float


def draw(size, disc):
  """Draws an anti-aliased disc: its share of each pixel, float [H, W].

  Args:
    size: (height, width).
    disc: its outline; the center of the first pixel is at (0.5, 0.5).
  """
  y, x = np.ogrid[: size[0], : size[1]]
  distance = np.hypot(y + 0.5 - disc.y, x + 0.5 - disc.x)
  share = (distance < disc.radius).astype(float)
  offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
  for i, j in np.argwhere(np.abs(distance - disc.radius) < 1):
    samples = np.hypot(
      i + offsets[:, None] - disc.y, j + offsets[None] - disc.x
    )
    share[i, j] = np.mean(samples < disc.radius)
  return share


def example(size, disc):
  """Builds an example: white disc on black, the class at pixel centers."""
  y, x = np.ogrid[: size[0], : size[1]]
  inside = np.hypot(y + 0.5 - disc.y, x + 0.5 - disc.x) < disc.radius
  return {
    'image': images.rgb(np.rint(255 * draw(size, disc))),
    'label': inside.astype(np.int16),
    'size': np.array(size, np.int32),
    'id': np.bytes_(b'disc'),
  }


def outline(share):
  """Estimates the outline from the share of the disc in each pixel."""
  share = np.asarray(share, float)
  y, x = np.ogrid[: share.shape[0], : share.shape[1]]
  area = share.sum()
  return Outline(
    (share * (y + 0.5)).sum() / area,
    (share * (x + 0.5)).sum() / area,
    np.sqrt(area / np.pi),
  )


def whole(share):
  """Returns whether no border of a picture cuts the disc."""
  edges = share[0], share[-1], share[:, 0], share[:, -1]
  return share.any() and not any(edge.any() for edge in edges)
