"""Random scenes of the data sets shapes/natural.

All randomness of an image is sampled here (`sample_natural_scene`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from input_pipeline.builders import (
  natural_classes,
  natural_outlines,
  natural_waves,
  scene_sampling,
  shapes_camera,
  shapes_scene,
)

CAMERA = shapes_camera.SceneCameraRanges(
  light=(0.75, 1.05),
  shade=(0.0, 0.5),
  cast=(0.0, 0.2),
  contrast=(0.75, 1.0),
  blur=(0.3, 0.6),
  noise=(0.005, 0.025),
)
# Least visible fraction of an object's area.
MIN_VISIBLE = 0.35
# An object extends outside of the image by less than this many radii.
MAX_OUTSIDE = 0.4
# Pieces of clutter, and the range of their radii relative to the image's side.
CLUTTER = (2, 7)
CLUTTER_RADII = (0.03, 0.12)
# Slow changes of the background, in cycles per side.
GRADIENT = natural_classes.NaturalTexture((0.2, 1.2))
# Small changes of brightness of surfaces, in cycles per radius.
MOTTLING = natural_classes.NaturalTexture((1.0, 8.0), decay=0.5)
# Standard deviations of the tones of objects and backgrounds: of the hue in
# degrees, the logarithm of the saturation, and the luma.
VARIATION = (14.0, 0.35, 0.09)


@dataclasses.dataclass(frozen=True)
class NaturalObject:
  """An object, or a piece of clutter, of a scene.

  Attributes:
    class_id: class; 0 for clutter, which belongs to the background.
    center: x and y of the center in pixels.
    radius: largest radius of the outline in pixels.
    angle: rotation in radians.
    outline: radius in each direction; the largest is 1.
    tones: two colors that the texture mixes, RGB in [0, 1].
    texture: waves of the texture.
    sharpness: slope of the texture's sigmoid.
    mottling: waves of small changes of brightness.
    relief: strength of shading at the rim, in [0, 1].
    shadow: darkness of the shadow on what lies behind, in [0, 1].
  """

  class_id: int
  center: tuple[float, float]
  radius: float
  angle: float
  outline: Float[np.ndarray, 'directions']
  tones: Float[np.ndarray, '2 3']
  texture: natural_waves.TextureWaves
  sharpness: float
  mottling: natural_waves.TextureWaves
  relief: float
  shadow: float


@dataclasses.dataclass(frozen=True)
class NaturalScene:
  """Holds all that is random in an image.

  Attributes:
    context: name of the kind of background.
    tones: two colors of the background, RGB in [0, 1].
    gradient: waves of its slow changes.
    texture: waves of its texture.
    clutter: pieces of clutter, from back to front.
    objects: objects in front of the clutter, from back to front.
    camera: light and camera.
  """

  context: str
  tones: Float[np.ndarray, '2 3']
  gradient: natural_waves.TextureWaves
  texture: natural_waves.TextureWaves
  clutter: tuple[NaturalObject, ...]
  objects: tuple[NaturalObject, ...]
  camera: shapes_camera.SceneCamera

  @property
  def size(self) -> int:
    """Returns the side of the image in pixels."""
    return self.camera.size


@dataclasses.dataclass(frozen=True)
class ObjectWindow:
  """A rectangle of the pixels of an image, and coordinates about an object.

  Attributes:
    pixels: rows and columns in the image.
    x: x of the pixels' centers in pixels.
    y: y of the pixels' centers in pixels.
    u: coordinate along the axis of the object, in radii.
    v: coordinate across that axis, in radii.
  """

  pixels: tuple[slice, slice]
  x: Float[np.ndarray, 'W']
  y: Float[np.ndarray, 'H']
  u: Float[np.ndarray, 'H W']
  v: Float[np.ndarray, 'H W']


def natural_object_window(
  item: NaturalObject, size: int, margin: float = 1.0
) -> ObjectWindow:
  """Computes the part of an image that an object may touch.

  Args:
    item: the object.
    size: side of the image in pixels.
    margin: distance from the outline to the edge of the part, in pixels.
  """
  reach = item.radius + margin
  spans = []
  for center in item.center:
    first, last = int(np.floor(center - reach)), int(np.ceil(center + reach))
    spans.append(slice(min(max(first, 0), size), min(max(last, 0), size)))
  columns, rows = spans
  x = np.arange(columns.start, columns.stop) + 0.5
  y = np.arange(rows.start, rows.stop) + 0.5
  dx = (x - item.center[0])[None, :] / item.radius
  dy = (y - item.center[1])[:, None] / item.radius
  cos, sin = np.cos(item.angle), np.sin(item.angle)
  u, v = cos * dx + sin * dy, cos * dy - sin * dx
  return ObjectWindow((rows, columns), x, y, u, v)


def natural_object_mask(
  item: NaturalObject, size: int
) -> Bool[np.ndarray, 'H W']:
  """Computes the pixels whose centers are inside of the outline."""
  window = natural_object_window(item, size)
  distance, _ = natural_outlines.natural_outline_distance(
    item.outline, window.u, window.v
  )
  mask = np.zeros((size, size), bool)
  mask[window.pixels] = distance < 0
  return mask


def natural_object_visibility(
  item: NaturalObject, visible: Bool[np.ndarray, 'H W']
) -> float:
  """Computes the number of visible pixels relative to the area of the outline.

  Args:
    item: the object.
    visible: mask of the pixels in which no other object covers it.
  """
  area = natural_outlines.natural_outline_area(item.outline) * item.radius**2
  return visible.sum() / area


def sample_natural_tones(
  rng: np.random.Generator, tones: Sequence[natural_classes.NaturalTint]
) -> Float[np.ndarray, '2 3']:
  """Samples variants of two tones that differ from them in the same way.

  Args:
    rng: random generator.
    tones: mean tones.

  Returns:
    RGB colors in [0, 1].
  """
  shift = np.multiply(VARIATION, rng.standard_normal(3))
  colors = []
  for tone in tones:
    change = shift + 0.3 * np.multiply(VARIATION, rng.standard_normal(3))
    luma = float(np.clip(tone.luma + change[2], 0.06, 0.94))
    saturation = min(tone.saturation * np.exp(change[1]), 0.95)
    hue = np.deg2rad(tone.hue + change[0])
    colors.append(shapes_scene.scene_tint(luma, hue, saturation))
  return np.stack(colors)


def sample_natural_surface(
  rng: np.random.Generator,
  class_id: int,
  size: int,
  radii: tuple[float, float],
  tones: Float[np.ndarray, '2 3'],
  kind: natural_classes.NaturalClass,
) -> NaturalObject:
  """Samples size, angle, outline and texture of an object in the middle.

  Args:
    rng: random generator.
    class_id: class of the object.
    size: side of the image in pixels.
    radii: range of the radius relative to the image's side.
    tones: two colors, RGB in [0, 1].
    kind: outline and texture.
  """
  radius = size * float(np.exp(rng.uniform(*np.log(radii))))
  angle = rng.uniform(0, 2 * np.pi)
  waves = natural_waves.sample_texture_waves
  return NaturalObject(
    class_id=class_id,
    center=(size / 2, size / 2),
    radius=radius,
    angle=angle,
    outline=natural_outlines.sample_natural_outline_radii(rng, kind.outline),
    tones=tones,
    texture=waves(rng, kind.texture, radius, angle),
    sharpness=kind.texture.sharpness * rng.uniform(0.7, 1.3),
    mottling=waves(rng, MOTTLING, radius, angle),
    relief=rng.uniform(0.15, 0.45),
    shadow=rng.uniform(0.1, 0.45),
  )


def sample_natural_clutter(
  rng: np.random.Generator, tones: Float[np.ndarray, '2 3'], size: int
) -> NaturalObject:
  """Samples a piece of clutter with colors near those of the background.

  Args:
    rng: random generator.
    tones: colors of the background, RGB in [0, 1].
    size: side of the image in pixels.
  """
  outline = natural_classes.NaturalOutline(
    lobes=int(rng.integers(0, 5)),
    depth=rng.uniform(0, 0.4),
    power=rng.uniform(0.8, 3),
    aspect=rng.uniform(1, 2),
  )
  cycles = rng.uniform(0.5, 3)
  texture = natural_classes.NaturalTexture((cycles, 2 * cycles))
  luma = rng.uniform(0.7, 1.3)
  piece = sample_natural_surface(
    rng,
    0,
    size,
    CLUTTER_RADII,
    np.clip(luma * tones + rng.uniform(-0.08, 0.08, 3), 0, 1),
    natural_classes.NaturalClass(outline, (), texture, '', (0, 0, 0)),
  )
  center = tuple(rng.uniform(0, size, 2).tolist())
  return dataclasses.replace(piece, center=center, shadow=0.5 * piece.shadow)


def sample_natural_objects(
  rng: np.random.Generator,
  class_ids: Sequence[int],
  radii: tuple[float, float],
  size: int,
) -> tuple[NaturalObject, ...]:
  """Samples objects of the given classes, of which each remains visible.

  One for which there is no room is omitted.

  Args:
    rng: random generator.
    class_ids: classes of the objects, from back to front.
    radii: range of the radius relative to the image's side.
    size: side of the image in pixels.
  """
  kinds = list(natural_classes.KINDS.values())

  def samplers() -> Iterator[Callable[[], NaturalObject]]:
    for class_id in class_ids:
      kind = kinds[class_id - 1]
      tones = sample_natural_tones(
        rng, kind.tones[rng.integers(len(kind.tones))]
      )
      item = sample_natural_surface(rng, class_id, size, radii, tones, kind)
      yield functools.partial(_move_natural_object, rng, item, size)

  return scene_sampling.place_visible_objects(
    samplers(),
    lambda item: natural_object_mask(item, size),
    natural_object_visibility,
    MIN_VISIBLE,
  )


def _move_natural_object(
  rng: np.random.Generator, item: NaturalObject, size: int
) -> NaturalObject:
  """Moves an object to a random place, of which a part may lie outside."""
  inside = (1 - MAX_OUTSIDE) * item.radius
  center = tuple(rng.uniform(inside, size - inside, 2).tolist())
  return dataclasses.replace(item, center=center)


def sample_natural_context(rng: np.random.Generator, class_id: int) -> int:
  """Samples the index of the context in which an object of a class lies."""
  probabilities = natural_classes.natural_context_probabilities()[class_id - 1]
  return int(rng.choice(len(probabilities), p=probabilities))


def sample_natural_companions(
  rng: np.random.Generator, context: int, count: int
) -> list[int]:
  """Samples the classes of further objects in a context.

  By Bayes' rule each object of the data set has the class frequencies
  `natural_classes.FREQUENCIES`, whatever its place in the order.

  Args:
    rng: random generator.
    context: index of the context.
    count: number of objects.
  """
  likelihood = natural_classes.natural_context_probabilities()[:, context]
  posterior = natural_classes.FREQUENCIES * likelihood
  posterior /= posterior.sum()
  return (1 + rng.choice(len(posterior), count, p=posterior)).tolist()


def sample_natural_scene(
  rng: np.random.Generator,
  class_ids: Sequence[int],
  context: int,
  radii: tuple[float, float],
  size: int,
) -> NaturalScene:
  """Samples a scene, with objects of the given classes from back to front.

  Args:
    rng: random generator.
    class_ids: classes of the objects.
    context: index of the kind of background.
    radii: range of the objects' radii relative to the image's side.
    size: side of the image in pixels.
  """
  name = list(natural_classes.CONTEXTS)[context]
  kind = natural_classes.CONTEXTS[name]
  tones = sample_natural_tones(rng, kind.tones)
  waves = natural_waves.sample_texture_waves
  turn = rng.normal(0, 0.2)
  return NaturalScene(
    context=name,
    tones=tones,
    gradient=waves(rng, GRADIENT, float(size), 0.0),
    texture=waves(rng, kind.texture, float(size), turn),
    clutter=tuple(
      sample_natural_clutter(rng, tones, size)
      for _ in range(rng.integers(*CLUTTER, endpoint=True))
    ),
    objects=sample_natural_objects(rng, class_ids, radii, size),
    camera=shapes_camera.sample_scene_camera(
      rng, CAMERA, rng.uniform(*CAMERA.noise), size
    ),
  )
