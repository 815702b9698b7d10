"""Light and camera of a drawn image."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from input_pipeline.builders import shapes_coordinates


@dataclasses.dataclass(frozen=True)
class SceneCameraRanges:
  """Ranges from which light and camera are sampled.

  Attributes:
    light: brightness on the brightest side.
    shade: fraction of the light that is missing on the opposite side.
    cast: weight of a random color of the light.
    contrast: factor on the distance to gray, as by haze.
    blur: standard deviation in pixels for images of 64x64; it grows with the
      size.
    noise: standard deviation of the sensor's noise, in [0, 1].
  """

  light: tuple[float, float] = (0.85, 1.0)
  shade: tuple[float, float] = (0.0, 0.4)
  cast: tuple[float, float] = (0.0, 0.1)
  contrast: tuple[float, float] = (0.9, 1.0)
  blur: tuple[float, float] = (0.3, 0.5)
  noise: tuple[float, float] = (0.01, 0.03)


@dataclasses.dataclass(frozen=True)
class SceneCamera:
  """The light and the camera of an image.

  Attributes:
    light: brightness on the brightest side.
    shade: fraction of the light that is missing on the opposite side.
    shade_direction: direction from the bright to the dark side, in radians.
    cast: factor on each color channel.
    contrast: factor on the distance to gray.
    blur: standard deviation of the blur in pixels.
    noise: noise of the sensor, which is added last, in units of [0, 1].
  """

  light: float
  shade: float
  shade_direction: float
  cast: Float[np.ndarray, '3']
  contrast: float
  blur: float
  noise: Float[np.ndarray, 'size size 3']

  @property
  def size(self) -> int:
    """Returns the side of the image in pixels."""
    return len(self.noise)


def sample_scene_camera(
  rng: np.random.Generator, ranges: SceneCameraRanges, noise: float, size: int
) -> SceneCamera:
  """Samples light and camera.

  Args:
    rng: random generator.
    ranges: ranges of all but the noise.
    noise: standard deviation of the sensor's noise, in [0, 1].
    size: side of the image in pixels.
  """
  return SceneCamera(
    light=rng.uniform(*ranges.light),
    shade=rng.uniform(*ranges.shade),
    shade_direction=rng.uniform(0, 2 * np.pi),
    cast=1 - rng.uniform(*ranges.cast) * rng.uniform(0, 1, 3),
    contrast=rng.uniform(*ranges.contrast),
    blur=rng.uniform(*ranges.blur) / 64 * size,
    noise=noise * rng.standard_normal((size, size, 3)),
  )


def photograph_scene(
  image: Float[np.ndarray, 'size size 3'], camera: SceneCamera
) -> UInt8[np.ndarray, 'size size 3']:
  """Applies light, haze, blur of the lens and noise of the sensor to an image.

  Args:
    image: image in uniform white light, in [0, 1].
    camera: light and camera.
  """
  middle = camera.size / 2, camera.size / 2
  u, _ = shapes_coordinates.scene_coordinates(
    camera.size, middle, float(camera.size), camera.shade_direction
  )
  light = camera.light * (1 - camera.shade * (0.5 + u / np.sqrt(2)))
  image = image * (light[..., None] * camera.cast)
  gray = 0.5 * camera.light
  image = gray + camera.contrast * (image - gray)
  image = cv2.GaussianBlur(image, (0, 0), camera.blur)
  image = np.clip(image + camera.noise, 0, 1)
  return np.rint(255 * image).astype(np.uint8)
