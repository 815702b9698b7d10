"""Outlines in polar coordinates: random ones, and distances to them."""

import numpy as np
from jaxtyping import Float

from input_pipeline.builders import natural_classes

# Directions at which the radius of an outline is stored.
NUM_DIRECTIONS = 720
# Standard deviation of the deformation of an object by 2, 3, … 6 waves.
DEFORMATION = 0.03


def natural_outline_directions() -> Float[np.ndarray, 'directions']:
  """Returns the directions of the stored radii, in radians."""
  return 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS


def natural_outline_radii(
  outline: natural_classes.NaturalOutline,
) -> Float[np.ndarray, 'directions']:
  """Computes the radius in each direction; the largest is 1."""
  t = natural_outline_directions()
  r = 1 - outline.depth * np.abs(np.sin(outline.lobes * t / 2)) ** outline.power
  # Stretching moves the points to other directions, but keeps their order.
  x, y = outline.aspect * r * np.cos(t), r * np.sin(t)
  radii = np.interp(t, np.arctan2(y, x), np.hypot(x, y), period=2 * np.pi)
  return radii / radii.max()


def sample_natural_outline_radii(
  rng: np.random.Generator, outline: natural_classes.NaturalOutline
) -> Float[np.ndarray, 'directions']:
  """Samples a variant of an outline; the largest radius is 1.

  Args:
    rng: random generator.
    outline: mean outline.
  """
  low = 0.8, 0.8, 0.85
  high = 1.15, 1.25, 1.15
  depth, power, aspect = rng.uniform(low, high).tolist()
  variant = natural_classes.NaturalOutline(
    lobes=outline.lobes,
    depth=depth * outline.depth,
    power=power * outline.power,
    aspect=aspect * outline.aspect,
  )
  counts = np.arange(2, 7)
  amplitudes = DEFORMATION * rng.standard_normal(len(counts))
  phases = rng.uniform(0, 2 * np.pi, len(counts))
  angles = counts[:, None] * natural_outline_directions() + phases[:, None]
  radii = natural_outline_radii(variant) * (1 + amplitudes @ np.cos(angles))
  return radii / radii.max()


def natural_outline_area(radii: Float[np.ndarray, 'directions']) -> float:
  """Computes the area inside of an outline, in squares of the radii's unit."""
  return float(np.pi * np.mean(radii**2))


def natural_outline_distance(
  radii: Float[np.ndarray, 'directions'],
  u: Float[np.ndarray, 'H W'],
  v: Float[np.ndarray, 'H W'],
) -> tuple[Float[np.ndarray, 'H W'], Float[np.ndarray, 'H W']]:
  """Computes the distance to an outline, and the distance relative to it.

  The distance (r - R) / |grad(r - R)| is exact to first order, which suffices
  for antialiasing, and its sign is exact.

  Args:
    radii: radius R of the outline in each direction.
    u: first coordinate of the points.
    v: second coordinate of the points.

  Returns:
    The distance r - R, which is negative inside, and the ratio r / R.
  """
  r = np.hypot(u, v)
  slopes = (np.roll(radii, -1) - np.roll(radii, 1)) * NUM_DIRECTIONS
  slopes /= 4 * np.pi
  position = np.arctan2(v, u) * (NUM_DIRECTIONS / (2 * np.pi))
  below = np.floor(position)
  weight = position - below
  first = below.astype(int) % NUM_DIRECTIONS
  second = (first + 1) % NUM_DIRECTIONS
  radius = radii[first] + weight * (radii[second] - radii[first])
  # Inside of the outline r would overestimate the change with the direction.
  gradient = np.hypot(1, slopes[first] / np.maximum(r, radius))
  return (r - radius) / gradient, r / radius
