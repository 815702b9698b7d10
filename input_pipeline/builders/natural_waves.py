"""Random fields as sums of waves: textures, and slow changes of light."""

import dataclasses

import numpy as np
from jaxtyping import Float

from input_pipeline.builders import natural_classes

NUM_WAVES = 24
# TextureWaves with more cycles per pixel are omitted, as they would alias.
MAX_FREQUENCY = 0.45


@dataclasses.dataclass(frozen=True)
class TextureWaves:
  """Waves whose sum has variance 1 before those that alias are omitted.

  Attributes:
    frequencies: cycles per pixel along x and y.
    phases: phases in radians.
    amplitudes: amplitudes; their squares sum up to 2.
  """

  frequencies: Float[np.ndarray, 'waves 2']
  phases: Float[np.ndarray, 'waves']
  amplitudes: Float[np.ndarray, 'waves']


def sample_texture_waves(
  rng: np.random.Generator,
  texture: natural_classes.NaturalTexture,
  unit: float,
  angle: float,
) -> TextureWaves:
  """Samples the waves of a texture.

  Args:
    rng: random generator.
    texture: spectrum.
    unit: length in pixels in which the texture counts cycles.
    angle: rotation of the texture in radians.
  """
  cycles = np.exp(rng.uniform(*np.log(texture.cycles), NUM_WAVES))
  deviation = texture.spread * rng.uniform(-1, 1, NUM_WAVES)
  direction = angle + texture.axis + deviation
  amplitudes = cycles**-texture.decay
  amplitudes *= np.sqrt(2 / np.sum(amplitudes**2))
  axes = np.stack([np.cos(direction), np.sin(direction)], axis=1)
  return TextureWaves(
    frequencies=cycles[:, None] / unit * axes,
    phases=rng.uniform(0, 2 * np.pi, NUM_WAVES),
    amplitudes=amplitudes,
  )


def draw_texture_waves(
  waves: TextureWaves, x: Float[np.ndarray, 'W'], y: Float[np.ndarray, 'H']
) -> Float[np.ndarray, 'H W']:
  """Computes the sum of the waves, about in [-3, 3].

  Args:
    waves: the waves.
    x: x of the pixels' centers in pixels.
    y: y of the pixels' centers in pixels.
  """
  shown = np.hypot(*waves.frequencies.T) < MAX_FREQUENCY
  amplitudes = waves.amplitudes[shown]
  along_x, along_y = 2 * np.pi * waves.frequencies[shown].T
  # cos(a + b) = cos a cos b - sin a sin b, so that a matrix product of vectors
  # along x and y sums all waves. That of BLAS would start threads, which cost
  # more than they save here.
  a = y[:, None] * along_y + waves.phases[shown]
  b = along_x[:, None] * x
  rows = np.concatenate([amplitudes * np.cos(a), -amplitudes * np.sin(a)], 1)
  columns = np.concatenate([np.cos(b), np.sin(b)])
  return np.einsum('hk,kw->hw', rows, columns)
