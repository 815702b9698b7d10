"""Pixel-adaptive refinement (PAR): masks that follow the edges of an image.

  refined = refine_by_pixels(images, masks, PixelAdaptiveOptions())

Each pixel becomes the weighted mean of 48 neighbors, of similar color and
nearby, ten times. Source: Ru et al. 2022 (AFA), Sec. 3.4.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segcore.ops import losses

_DIRECTIONS = tuple(
  step for step in itertools.product((-1, 0, 1), repeat=2) if any(step)
)
# Added to standard deviations.
_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class PixelAdaptiveOptions:
  """Options of the refinement.

  Attributes:
    dilations: distances of the neighbors, in pixels, in eight directions.
    num_iterations: number of times that masks are averaged.
    bandwidth: w of both kernels; differences are divided by it and by their
      standard deviation among the neighbors.
    position_weight: weight of the kernel of positions; that of colors has 1.
  """

  dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
  num_iterations: int = 10
  bandwidth: float = 0.3
  position_weight: float = 0.01

  def __post_init__(self):
    if not self.dilations or min(self.dilations) < 1:
      raise ValueError(
        f'dilations: expected distances >= 1, got {self.dilations}'
      )
    if self.num_iterations < 0:
      raise ValueError(
        f'num_iterations: expected >= 0, got {self.num_iterations}'
      )
    if self.bandwidth <= 0:
      raise ValueError(f'bandwidth: expected above 0, got {self.bandwidth}')

  @property
  def offsets(self) -> tuple[tuple[int, int], ...]:
    """Returns (down, right) of each neighbor in pixels."""
    return tuple(
      (dilation * down, dilation * right)
      for dilation in self.dilations
      for down, right in _DIRECTIONS
    )


def neighbor_weights(
  images: Float[Array, 'B H W 3'],
  options: PixelAdaptiveOptions,
  sizes: Int[Array, 'B 2'] | None = None,
) -> Float[Array, 'K B H W']:
  """Computes the weight of each of the K neighbors of each pixel.

  The weights of a pixel sum to 1 + `position_weight`.

  Args:
    images: images in [0, 1].
    options: options of the refinement.
    sizes: as in `refine_by_pixels`.
  """
  images = losses.at_least_float32(images)
  neighbors = jnp.stack(_read_neighbors(images, options, sizes))
  # The deviation among the neighbors, without the pixel itself.
  deviation = jnp.std(neighbors, axis=0, ddof=1)
  scaled = jnp.abs(neighbors - images) / (deviation + _EPSILON)
  distance = jnp.mean(jnp.square(scaled / options.bandwidth), axis=-1)
  radii = np.array([math.hypot(*offset) for offset in options.offsets])
  scale = (radii.std(ddof=1) + _EPSILON) * options.bandwidth
  position = jax.nn.softmax(-jnp.asarray(np.square(radii / scale)))
  by_position = position.astype(images.dtype)[:, None, None, None]
  return jax.nn.softmax(-distance, axis=0) + (
    options.position_weight * by_position
  )


def refine_by_pixels(
  images: Float[Array, 'B H W 3'],
  masks: Float[Array, 'B H W K'],
  options: PixelAdaptiveOptions,
  sizes: Int[Array, 'B 2'] | None = None,
) -> Float[Array, 'B H W K']:
  """Averages masks over the neighbors of each pixel, several times.

  Channels do not interact: one that is 0 everywhere stays so. Beyond the edges
  of an image its outermost pixels are read.

  Args:
    images: images in [0, 1].
    masks: masks or scores of the same size.
    options: options of the refinement.
    sizes: height and width of each image, which lies at the top left; what is
      beyond is padding, and its result has no meaning. None where there is no
      padding.
  """
  weights = neighbor_weights(images, options, sizes)

  def average(_, masks):
    neighbors = _read_neighbors(masks, options, sizes)
    return sum(
      weight[..., None] * neighbor
      for weight, neighbor in zip(weights, neighbors, strict=True)
    )

  masks = losses.at_least_float32(masks).astype(weights.dtype)
  return jax.lax.fori_loop(0, options.num_iterations, average, masks)


def _read_neighbors(
  x: Float[Array, 'B H W D'],
  options: PixelAdaptiveOptions,
  sizes: Int[Array, 'B 2'] | None,
) -> list[Float[Array, 'B H W D']]:
  """Returns for each offset the map of the neighbors at it."""
  _, height, width, _ = x.shape
  margin = max(options.dilations)
  padded = _repeat_edges(x, margin, sizes)
  return [
    padded[
      :,
      margin + down : margin + down + height,
      margin + right : margin + right + width,
    ]
    for down, right in options.offsets
  ]


def _repeat_edges(
  x: Float[Array, 'B H W D'], margin: int, sizes: Int[Array, 'B 2'] | None
) -> Float[Array, 'B _ _ D']:
  """Adds a margin; it, and padding, repeat the outermost pixels."""
  if sizes is None:
    padding = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return jnp.pad(x, padding, mode='edge')
  for axis in (1, 2):
    index = jnp.arange(-margin, x.shape[axis] + margin)
    last = sizes[:, axis - 1, None] - 1
    index = jnp.clip(index, 0, last)  # [B, length]
    shape = [len(x), 1, 1, 1]
    shape[axis] = -1
    x = jnp.take_along_axis(x, index.reshape(shape), axis=axis)
  return x
