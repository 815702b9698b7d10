"""Coordinates of the pixels of a drawn image."""

import functools

import numpy as np


@functools.cache
def _pixel_centers(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns x [1, size] and y [size, 1] of the centers of the pixels."""
  centers = np.arange(size) + 0.5
  return centers[None, :], centers[:, None]


def scene_coordinates(
  size: int, center: tuple[float, float], radius: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
  """Computes coordinates of all pixels about a center, along rotated axes.

  Args:
    size: side of the image in pixels.
    center: x and y of the origin, in pixels.
    radius: unit of the coordinates, in pixels.
    angle: angle of the first axis, in radians.

  Returns:
    Coordinates along both axes, [size, size] each, in radii.
  """
  x, y = _pixel_centers(size)
  x, y = (x - center[0]) / radius, (y - center[1]) / radius
  cos, sin = np.cos(angle), np.sin(angle)
  return cos * x + sin * y, cos * y - sin * x
