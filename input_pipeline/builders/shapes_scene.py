"""Random scenes of the data set Shapes: objects, background, light, camera.

All randomness of an image is sampled here (`sample_scene`), as a `Scene`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.builders import (
  scene_sampling,
  shapes_camera,
  shapes_coordinates,
)

OUTLINES = ('disc', 'square', 'ring', 'cross')
PATTERNS = ('striped', 'checked')

# Radius of the circle around an outline, relative to the image's side: 13 to 26
# pixels of 64. The patterns of smaller objects could not be distinguished.
RADII = (13 / 64, 26 / 64)
# Length of a pattern's period in radii. The longest period of checks is shorter
# than the shortest of stripes, whatever the radii.
PERIODS = {'striped': 1.0, 'checked': 0.42}
# Least visible fraction of an outline's area.
MIN_VISIBLE = 0.6
# An object extends outside of the image by less than this many radii.
MAX_OUTSIDE = 0.25
# Least difference between the lumas, in [0, 1], of the two tones of an object
# and of the mean background, before the camera.
MIN_CONTRAST = 0.25
# Clutter differs less from the background than objects do.
CLUTTER_CONTRAST = 0.15

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
THIRDS = 2 * np.pi / 3 * np.arange(3)  # Hues of red, green and blue.
CROSS_ARM = 0.3  # Half the width of an arm of a cross, in radii.
HOLE = 0.45  # Radius of a ring's hole, in radii.


@dataclasses.dataclass(frozen=True)
class Rendering:
  """Ranges from which clutter, texture, light and camera are sampled.

  Attributes:
    clutter: number of lines and polygons behind the objects.
    texture: amplitude of the background's texture, in [0, 1].
    cells: cells of that texture along the image's side.
    camera: ranges of light and camera.
  """

  clutter: tuple[int, int] = (4, 12)
  texture: float = 0.12
  cells: tuple[int, int] = (2, 24)
  camera: shapes_camera.SceneCameraRanges = shapes_camera.SceneCameraRanges()


DAY = Rendering()
# The background is that of the day: only the light differs, so that labels of
# the target can be learned from as well as those of the source.
DUSK = Rendering(
  camera=shapes_camera.SceneCameraRanges(
    light=(0.35, 0.6),
    shade=(0.3, 0.6),
    cast=(0.3, 0.6),
    contrast=(0.5, 0.7),
  ),
)


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """An object of a synthetic scene.

  Attributes:
    class_id: class, which determines outline and pattern.
    center: x and y of the center in pixels.
    radius: radius of the circle around the outline, in pixels.
    angle: rotation of the outline, in radians.
    pattern_angle: rotation of the pattern, in radians.
    pattern_phase: phase of the pattern, in radians.
    tones: two colors of the pattern, RGB in [0, 1].
  """

  class_id: int
  center: tuple[float, float]
  radius: float
  angle: float
  pattern_angle: float
  pattern_phase: float
  tones: Float[np.ndarray, '2 3']

  @property
  def outline(self) -> str:
    """Returns the name of the outline."""
    return OUTLINES[(self.class_id - 1) // len(PATTERNS)]

  @property
  def pattern(self) -> str:
    """Returns the name of the pattern."""
    return PATTERNS[(self.class_id - 1) % len(PATTERNS)]


@dataclasses.dataclass(frozen=True)
class Clutter:
  """A filled polygon or a line, which belongs to the background.

  Attributes:
    points: x and y of the corners in pixels; a line has two.
    tone: RGB color in [0, 1].
    width: width of a line in pixels; 0 for a polygon.
  """

  points: Int[np.ndarray, 'N 2']
  tone: Float[np.ndarray, '3']
  width: int


@dataclasses.dataclass(frozen=True)
class Scene:
  """Holds all that is random in an image.

  Attributes:
    objects: objects from back to front.
    background: mean color of the background, RGB in [0, 1].
    texture: differences from that color on coarse grids, each
      [rows, columns, 3].
    clutter: lines and polygons between the background and the objects.
    camera: light and camera.
  """

  objects: tuple[SceneObject, ...]
  background: Float[np.ndarray, '3']
  texture: tuple[Float[np.ndarray, '_ _ 3'], ...]
  clutter: tuple[Clutter, ...]
  camera: shapes_camera.SceneCamera

  @property
  def size(self) -> int:
    """Returns the side of the image in pixels."""
    return self.camera.size


def scene_tint(luma: float, hue: float, saturation: float) -> np.ndarray:
  """Returns an RGB color in [0, 1] of a luma, hue and saturation.

  Args:
    luma: brightness in [0, 1].
    hue: angle on the color circle, in radians.
    saturation: fraction, in [0, 1], of the largest saturation that RGB has at
      this luma and hue.
  """
  chroma = np.cos(hue - THIRDS)
  chroma -= chroma @ LUMA
  limit = min((1 - luma) / max(chroma), luma / -min(chroma))
  return luma + saturation * limit * chroma


def object_outline_distance(
  outline: str, u: np.ndarray, v: np.ndarray
) -> Float[np.ndarray, 'H W']:
  """Computes the distance to an outline of radius 1; negative inside.

  It is exact except around corners, which suffices for antialiasing.

  Raises:
    ValueError: the outline is unknown.
  """
  if outline == 'disc':
    return np.hypot(u, v) - 1
  if outline == 'square':
    return np.maximum(np.abs(u), np.abs(v)) - np.sqrt(0.5)
  if outline == 'ring':
    return np.abs(np.hypot(u, v) - (1 + HOLE) / 2) - (1 - HOLE) / 2
  if outline == 'cross':
    u, v = np.abs(u), np.abs(v)
    across, along = np.minimum(u, v), np.maximum(u, v)
    length = np.sqrt(1 - CROSS_ARM**2)
    return np.maximum(across - CROSS_ARM, along - length)
  raise ValueError(f'outline: expected one of {OUTLINES}, got {outline!r}')


@functools.cache
def object_outline_area(outline: str) -> float:
  """Computes the area of an outline of radius 1."""
  arm = 2 * CROSS_ARM
  return {
    'disc': np.pi,
    'square': 2.0,
    'ring': np.pi * (1 - HOLE**2),
    'cross': 4 * arm * np.sqrt(1 - CROSS_ARM**2) - arm**2,
  }[outline]


def scene_object_coverage(
  item: SceneObject, size: int
) -> Float[np.ndarray, 'size size']:
  """Computes the fraction of each pixel that an object covers.

  The mask of the object is where it exceeds 0.5.

  Args:
    item: object of the scene.
    size: side of the image in pixels.
  """
  axes = shapes_coordinates.scene_coordinates(
    size, item.center, item.radius, item.angle
  )
  distance = object_outline_distance(item.outline, *axes) * item.radius
  return np.clip(0.5 - distance, 0, 1)


def scene_object_pattern(
  item: SceneObject, size: int
) -> Float[np.ndarray, 'size size']:
  """Computes the weight of the second tone of an object in each pixel.

  The pattern is wide stripes or small checks.

  Args:
    item: object of the scene.
    size: side of the image in pixels.
  """
  u, v = shapes_coordinates.scene_coordinates(
    size, item.center, item.radius, item.pattern_angle
  )
  per_radius = 2 * np.pi / PERIODS[item.pattern]
  wave = np.sin(per_radius * u + item.pattern_phase)
  if item.pattern == 'checked':
    wave = wave * np.sin(per_radius * v)
  # The transition between the tones is a pixel wide.
  return np.clip(0.5 + wave * item.radius / per_radius, 0, 1)


def scene_object_visibility(
  item: SceneObject, visible: Bool[np.ndarray, 'H W']
) -> float:
  """Computes the number of visible pixels relative to the area of the outline.

  Args:
    item: the object.
    visible: mask of the pixels in which no other object covers it.
  """
  return visible.sum() / (object_outline_area(item.outline) * item.radius**2)


def sample_scene_tint(rng: np.random.Generator, luma: float) -> np.ndarray:
  """Samples an RGB color in [0, 1] of a given luma."""
  return scene_tint(luma, rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.8))


def sample_scene_tones(
  rng: np.random.Generator, background_luma: float
) -> np.ndarray:
  """Samples two colors whose lumas differ from each other and the background.

  Args:
    rng: random generator.
    background_luma: luma of the background's mean color, in [0, 1].

  Returns:
    Two RGB colors in [0, 1], as an array [2, 3].
  """
  while True:
    pairs = rng.uniform(0.1, 0.9, (64, 2))
    gaps = np.abs(pairs - background_luma).min(1), np.abs(pairs @ [1, -1])
    (apart,) = np.nonzero(np.minimum(*gaps) >= MIN_CONTRAST)
    if apart.size:
      lumas = pairs[apart[0]].tolist()
      return np.stack([sample_scene_tint(rng, luma) for luma in lumas])


def sample_scene_object(
  rng: np.random.Generator, class_id: int, tones: np.ndarray, size: int
) -> SceneObject:
  """Samples position, size and angles of an object, whatever its class.

  Args:
    rng: random generator.
    class_id: class of the object.
    tones: two RGB colors of its pattern, in [0, 1].
    size: side of the image in pixels.
  """
  radius = rng.uniform(*RADII) * size
  margin = (1 - MAX_OUTSIDE) * radius
  return SceneObject(
    class_id=class_id,
    center=tuple(rng.uniform(margin, size - margin, 2).tolist()),
    radius=radius,
    angle=rng.uniform(0, 2 * np.pi),
    pattern_angle=rng.uniform(0, 2 * np.pi),
    pattern_phase=rng.uniform(0, 2 * np.pi),
    tones=tones,
  )


def sample_scene_objects(
  rng: np.random.Generator,
  class_ids: Sequence[int],
  background_luma: float,
  size: int,
) -> tuple[SceneObject, ...]:
  """Samples objects of the given classes such that each remains visible.

  An object for which there is no room is omitted.

  Args:
    rng: random generator.
    class_ids: classes of the objects, from back to front.
    background_luma: brightness of the background, in [0, 1].
    size: side of the image in pixels.
  """

  def samplers() -> Iterator[Callable[[], SceneObject]]:
    for class_id in class_ids:
      tones = sample_scene_tones(rng, background_luma)
      yield functools.partial(sample_scene_object, rng, class_id, tones, size)

  return scene_sampling.place_visible_objects(
    samplers(),
    lambda item: scene_object_coverage(item, size) > 0.5,
    scene_object_visibility,
    MIN_VISIBLE,
  )


def sample_scene_clutter(
  rng: np.random.Generator, background_luma: float, size: int
) -> Clutter:
  """Samples a line across the image, or a small polygon of 3 to 7 corners.

  Args:
    rng: random generator.
    background_luma: brightness of the background, in [0, 1].
    size: side of the image in pixels.
  """
  luma = background_luma + rng.uniform(-1, 1) * CLUTTER_CONTRAST
  tone = sample_scene_tint(rng, luma)
  if rng.random() < 0.4:
    points = rng.uniform(-0.2, 1.2, (2, 2)) * size
    width = max(1, round(rng.uniform(0.5, 2.5) / 64 * size))
  else:
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radii = rng.uniform(2 / 64, 7 / 64, 2) * size
    points = rng.uniform(0, size, 2) + corners * radii
    width = 0
  return Clutter(np.rint(points).astype(np.int32), tone, width)


def sample_scene_texture(
  rng: np.random.Generator, rendering: Rendering
) -> tuple[np.ndarray, ...]:
  """Samples four grids of noise, from coarse to fine, some stretched.

  Args:
    rng: random generator.
    rendering: amplitude of the texture, and range of the cells of a grid.
  """
  shapes = np.exp(rng.uniform(*np.log(rendering.cells), (4, 2))).astype(int)
  return tuple(
    rendering.texture * rng.uniform(-1, 1, (*shape, 3))
    for shape in shapes.tolist()
  )


def sample_scene(
  rng: np.random.Generator,
  class_ids: Sequence[int],
  rendering: Rendering,
  size: int,
) -> Scene:
  """Samples a scene with objects of the given classes, from back to front.

  Args:
    rng: random generator.
    class_ids: classes of the objects.
    rendering: ranges of clutter, light and camera.
    size: side of the image in pixels.
  """
  background_luma = rng.uniform(0.3, 0.7)
  noise = rng.uniform(*rendering.camera.noise)
  return Scene(
    objects=sample_scene_objects(rng, class_ids, background_luma, size),
    background=sample_scene_tint(rng, background_luma),
    texture=sample_scene_texture(rng, rendering),
    clutter=tuple(
      sample_scene_clutter(rng, background_luma, size)
      for _ in range(rng.integers(*rendering.clutter, endpoint=True))
    ),
    camera=shapes_camera.sample_scene_camera(
      rng, rendering.camera, noise, size
    ),
  )
