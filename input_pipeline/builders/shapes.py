"""Shapes: a segmentation data set that draws itself, for tests and demos.

  builder = Shapes(config='scenes', data_dir=data_dir)
  builder.download_and_prepare()

A class is the combination of an outline and a pattern, so neither a look at
the border nor a look at the texture is enough; color says nothing. An image
is drawn from its name alone: 'scenes/train/00012' seeds its generator, hence
it is the same on every machine, and no two splits share one.

What is in an image is sampled first (`sample_scene`) and holds all randomness;
drawing it (`draw_scene`) and photographing it (`photograph`) are functions of
what was sampled. Everything is computed in float64, whose rounding differs
between processors too little to be seen in 8 bits.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, Int16, UInt8

from input_pipeline.builders import base
from input_pipeline.sources import records

OUTLINES = ('disc', 'square', 'ring', 'cross')
PATTERNS = ('striped', 'checked')
CLASSES = (
  'background',
  *(f'{pattern} {outline}' for outline in OUTLINES for pattern in PATTERNS),
)
PALETTE = (
  (24, 24, 24),
  (230, 60, 60),
  (255, 170, 160),
  (60, 120, 230),
  (140, 210, 255),
  (40, 160, 70),
  (180, 230, 110),
  (200, 150, 30),
  (200, 90, 220),
)

# Radius of the circle around an outline, as a part of the image's side: 13 to
# 26 pixels of 64. Smaller objects leave too few pixels to tell patterns apart.
RADII = (13 / 64, 26 / 64)
# Length of a pattern's period in radii. They stay apart at every radius.
PERIODS = {'striped': 1.0, 'checked': 0.42}
# At least this part of an outline's area can be seen.
MIN_VISIBLE = 0.6
# An object reaches over the border by less than this many radii.
MAX_OUTSIDE = 0.25
# Luminances of the two tones of an object and of the background's mean are at
# least this far apart, of 1, before the camera.
MIN_CONTRAST = 0.25
# Clutter is closer to the background than that, so never mistaken for objects.
CLUTTER_CONTRAST = 0.15

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
THIRDS = 2 * np.pi / 3 * np.arange(3)  # Hues of red, green and blue.
CROSS_ARM = 0.3  # Half the width of a cross's arm, in radii.
HOLE = 0.45  # Radius of a ring's hole, in radii.
MAX_TRIES = 20  # Places tried for an object before it is left out.


@dataclasses.dataclass(frozen=True)
class Rendering:
  """How a scene is lit and photographed; pairs are ranges.

  Attributes:
    clutter: number of lines, blobs and small pieces behind the objects.
    texture: amplitude of the background's texture, of 1.
    cells: cells along the image's side of the background's texture.
    light: brightness on the brightest side.
    shade: part of the light that is missing on the opposite side.
    cast: weight of a random color that the light takes on.
    contrast: factor on the distance to gray, as by haze.
    blur: standard deviation in pixels of 64.
    noise: standard deviation of the sensor's noise, of 1.
  """

  clutter: tuple[int, int] = (4, 12)
  texture: float = 0.12
  cells: tuple[int, int] = (2, 24)
  light: tuple[float, float] = (0.85, 1.0)
  shade: tuple[float, float] = (0.0, 0.4)
  cast: tuple[float, float] = (0.0, 0.1)
  contrast: tuple[float, float] = (0.9, 1.0)
  blur: tuple[float, float] = (0.3, 0.5)
  noise: tuple[float, float] = (0.01, 0.03)


DAY = Rendering()
DUSK = Rendering(
  clutter=(12, 20),
  texture=0.16,
  cells=(10, 40),
  light=(0.55, 0.8),
  shade=(0.2, 0.5),
  cast=(0.15, 0.3),
  contrast=(0.6, 0.8),
  blur=(0.6, 0.9),
  noise=(0.03, 0.06),
)


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """One variant of the data set.

  Attributes:
    size: side of the images in pixels.
    max_things: an image shows 1 to this many objects; with 1 the classes of a
      split are balanced.
    rendering: how scenes are photographed.
    num_images: number of images of each split.
  """

  size: int = 64
  max_things: int = 4
  rendering: Rendering = DAY
  num_images: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object: its class, where it is (in pixels and radians), its colors."""

  class_id: int
  center: tuple[float, float]  # x, y
  radius: float
  angle: float
  pattern_angle: float
  pattern_phase: float
  tones: Float[np.ndarray, '2 3']

  @property
  def outline(self) -> str:
    """Name of the outline of this class."""
    return OUTLINES[(self.class_id - 1) // len(PATTERNS)]

  @property
  def pattern(self) -> str:
    """Name of the pattern of this class."""
    return PATTERNS[(self.class_id - 1) % len(PATTERNS)]


@dataclasses.dataclass(frozen=True)
class Clutter:
  """A small thing of no class: a polygon, filled or drawn as a line."""

  points: Int[np.ndarray, 'N 2']  # x, y
  tone: Float[np.ndarray, '3']
  width: int  # 0: filled


@dataclasses.dataclass(frozen=True)
class Scene:
  """All that is random in an image.

  Attributes:
    things: objects, from back to front.
    ground: mean color of the background.
    texture: differences from it on coarse grids, [rows, columns, 3] each.
    clutter: what lies between the background and the objects.
    light: brightness.
    shade: loss of light on the dark side.
    toward: direction in which it gets dark, in radians.
    cast: factor on each color channel.
    contrast: factor on the distance to gray.
    blur: standard deviation in pixels.
    noise: [size, size, 3], added last.
  """

  things: tuple[Thing, ...]
  ground: Float[np.ndarray, '3']
  texture: tuple[Float[np.ndarray, '_ _ 3'], ...]
  clutter: tuple[Clutter, ...]
  light: float
  shade: float
  toward: float
  cast: Float[np.ndarray, '3']
  contrast: float
  blur: float
  noise: Float[np.ndarray, 'size size 3']

  @property
  def size(self) -> int:
    """Side of the image in pixels."""
    return len(self.noise)


def tint(luma: float, hue: float, saturation: float) -> np.ndarray:
  """The RGB color of a luma in [0, 1] and a hue in radians.

  `saturation` 1 is the strongest color of this luma and hue within [0, 1].
  """
  chroma = np.cos(hue - THIRDS)
  chroma -= chroma @ LUMA
  reach = min((1 - luma) / max(chroma), luma / -min(chroma))
  return luma + saturation * reach * chroma


@functools.cache
def _pixels(size: int) -> tuple[np.ndarray, np.ndarray]:
  """x and y of the centers of the pixels, [1, size] and [size, 1]."""
  at = np.arange(size) + 0.5
  return at[None, :], at[:, None]


def _turned(
  size: int, center: tuple[float, float], radius: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
  """Pixel coordinates about a center, in radii, along turned axes."""
  x, y = _pixels(size)
  x, y = (x - center[0]) / radius, (y - center[1]) / radius
  cos, sin = np.cos(angle), np.sin(angle)
  return cos * x + sin * y, cos * y - sin * x


def outline_distance(
  outline: str, u: np.ndarray, v: np.ndarray
) -> Float[np.ndarray, 'H W']:
  """Distance to an outline of circumscribed radius 1; negative inside.

  Exact but around corners, which is all that smoothing needs.

  Raises:
    ValueError: there is no such outline.
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
    reach = np.sqrt(1 - CROSS_ARM**2)
    return np.maximum(across - CROSS_ARM, along - reach)
  raise ValueError(f'outline {outline!r} is none of {OUTLINES}')


@functools.cache
def outline_area(outline: str) -> float:
  """Area of an outline of circumscribed radius 1."""
  arm = 2 * CROSS_ARM
  return {
    'disc': np.pi,
    'square': 2.0,
    'ring': np.pi * (1 - HOLE**2),
    'cross': 4 * arm * np.sqrt(1 - CROSS_ARM**2) - arm**2,
  }[outline]


def coverage(thing: Thing, size: int) -> Float[np.ndarray, 'size size']:
  """How much of each pixel the object covers; its mask is where this > 0.5."""
  axes = _turned(size, thing.center, thing.radius, thing.angle)
  distance = outline_distance(thing.outline, *axes) * thing.radius
  return np.clip(0.5 - distance, 0, 1)


def pattern(thing: Thing, size: int) -> Float[np.ndarray, 'size size']:
  """Weight of the second tone in each pixel: wide stripes or small checks."""
  u, v = _turned(size, thing.center, thing.radius, thing.pattern_angle)
  per_radius = 2 * np.pi / PERIODS[thing.pattern]
  wave = np.sin(per_radius * u + thing.pattern_phase)
  if thing.pattern == 'checked':
    wave = wave * np.sin(per_radius * v)
  # The edge between the tones is a pixel wide.
  return np.clip(0.5 + wave * thing.radius / per_radius, 0, 1)


def visible_part(thing: Thing, visible: Bool[np.ndarray, 'H W']) -> float:
  """Area of the object's visible pixels as a part of its whole outline."""
  return visible.sum() / (outline_area(thing.outline) * thing.radius**2)


def sample_tint(rng: np.random.Generator, luma: float) -> np.ndarray:
  """A color of this luma with a random hue."""
  return tint(luma, rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.8))


def sample_tones(rng: np.random.Generator, ground_luma: float) -> np.ndarray:
  """Two colors whose luma is far from each other and from the background."""
  while True:
    pairs = rng.uniform(0.1, 0.9, (64, 2))
    gaps = np.abs(pairs - ground_luma).min(1), np.abs(pairs @ [1, -1])
    (apart,) = np.nonzero(np.minimum(*gaps) >= MIN_CONTRAST)
    if apart.size:
      lumas = pairs[apart[0]].tolist()
      return np.stack([sample_tint(rng, luma) for luma in lumas])


def sample_thing(
  rng: np.random.Generator, class_id: int, tones: np.ndarray, size: int
) -> Thing:
  """An object somewhere in the image; nothing depends on its class."""
  radius = rng.uniform(*RADII) * size
  margin = (1 - MAX_OUTSIDE) * radius
  return Thing(
    class_id=class_id,
    center=tuple(rng.uniform(margin, size - margin, 2).tolist()),
    radius=radius,
    angle=rng.uniform(0, 2 * np.pi),
    pattern_angle=rng.uniform(0, 2 * np.pi),
    pattern_phase=rng.uniform(0, 2 * np.pi),
    tones=tones,
  )


def sample_things(
  rng: np.random.Generator,
  class_ids: Sequence[int],
  ground_luma: float,
  size: int,
) -> tuple[Thing, ...]:
  """Objects of these classes, each visible enough; crowds lose the last."""
  things: list[Thing] = []
  visible: list[np.ndarray] = []
  for class_id in class_ids:
    tones = sample_tones(rng, ground_luma)
    for _ in range(MAX_TRIES):
      thing = sample_thing(rng, class_id, tones, size)
      mask = coverage(thing, size) > 0.5
      tried = [*things, thing]
      left = [*(other & ~mask for other in visible), mask]
      if min(map(visible_part, tried, left)) >= MIN_VISIBLE:
        things, visible = tried, left
        break
  return tuple(things)


def sample_clutter(
  rng: np.random.Generator, ground_luma: float, size: int
) -> Clutter:
  """A line across the image, or a small polygon of 3 to 7 corners."""
  luma = ground_luma + rng.uniform(-1, 1) * CLUTTER_CONTRAST
  tone = sample_tint(rng, luma)
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


def sample_texture(
  rng: np.random.Generator, rendering: Rendering
) -> tuple[np.ndarray, ...]:
  """Four grids of noise from coarse to fine, some of them stretched."""
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
  """A scene with objects of the given classes, from back to front."""
  ground_luma = rng.uniform(0.3, 0.7)
  noise = rng.uniform(*rendering.noise)
  return Scene(
    things=sample_things(rng, class_ids, ground_luma, size),
    ground=sample_tint(rng, ground_luma),
    texture=sample_texture(rng, rendering),
    clutter=tuple(
      sample_clutter(rng, ground_luma, size)
      for _ in range(rng.integers(*rendering.clutter, endpoint=True))
    ),
    light=rng.uniform(*rendering.light),
    shade=rng.uniform(*rendering.shade),
    toward=rng.uniform(0, 2 * np.pi),
    cast=1 - rng.uniform(*rendering.cast) * rng.uniform(0, 1, 3),
    contrast=rng.uniform(*rendering.contrast),
    blur=rng.uniform(*rendering.blur) / 64 * size,
    noise=noise * rng.standard_normal((size, size, 3)),
  )


def draw_ground(scene: Scene) -> Float[np.ndarray, 'size size 3']:
  """The background: a textured color with clutter on it."""
  sides = scene.size, scene.size
  image = np.zeros((*sides, 3))
  for grid in scene.texture:
    image += cv2.resize(grid, sides, interpolation=cv2.INTER_LINEAR)
  # The texture is mostly gray: hues of neighboring pixels go together.
  image = 0.7 * (image @ LUMA)[..., None] + 0.3 * image
  image += scene.ground
  for piece in scene.clutter:
    tone = tuple(piece.tone.tolist())
    if piece.width:
      start, end = piece.points.tolist()
      cv2.line(image, start, end, tone, piece.width)
    else:
      cv2.fillPoly(image, [piece.points], tone)
  return image


def draw_scene(
  scene: Scene,
) -> tuple[Float[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size']]:
  """The scene in even white light, in [0, 1], and its class ids."""
  image = draw_ground(scene)
  label = np.zeros((scene.size, scene.size), np.int16)
  for thing in scene.things:
    cover = coverage(thing, scene.size)
    weight = pattern(thing, scene.size)[..., None]
    first, second = thing.tones
    there = cover > 0
    surface = first + weight[there] * (second - first)
    image[there] += cover[there, None] * (surface - image[there])
    label[cover > 0.5] = thing.class_id
  return np.clip(image, 0, 1), label


def photograph(
  image: Float[np.ndarray, 'size size 3'], scene: Scene
) -> UInt8[np.ndarray, 'size size 3']:
  """The image under the scene's light, through haze, lens and sensor."""
  middle = scene.size / 2, scene.size / 2
  u, _ = _turned(scene.size, middle, float(scene.size), scene.toward)
  light = scene.light * (1 - scene.shade * (0.5 + u / np.sqrt(2)))
  image = image * (light[..., None] * scene.cast)
  image = 0.5 * scene.light + scene.contrast * (image - 0.5 * scene.light)
  image = cv2.GaussianBlur(image, (0, 0), scene.blur)
  image = np.clip(image + scene.noise, 0, 1)
  return np.rint(255 * image).astype(np.uint8)


def render(
  scene: Scene,
) -> tuple[
  UInt8[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size'], list[int]
]:
  """Image, class ids, and the classes of the objects in it, sorted."""
  image, label = draw_scene(scene)
  tags = sorted({thing.class_id for thing in scene.things})
  return photograph(image, scene), label, tags


def sample_classes(
  rng: np.random.Generator, index: int, max_things: int
) -> list[int]:
  """Classes of the objects of image `index`: in turn if there is but one."""
  num_classes = len(CLASSES) - 1
  if max_things == 1:
    return [1 + index % num_classes]
  count = rng.integers(1, max_things, endpoint=True)
  return rng.integers(1, num_classes, count, endpoint=True).tolist()


def scene_of(config: Config, split: str, index: int) -> tuple[str, Scene]:
  """Name and scene of an image; the name is the seed."""
  name = f'{config.name}/{split}/{index:05}'
  rng = np.random.default_rng(list(name.encode()))
  class_ids = sample_classes(rng, index, config.max_things)
  return name, sample_scene(rng, class_ids, config.rendering, config.size)


def draw(config: Config, split: str, index: int) -> records.Sample:
  """An image of the data set."""
  name, scene = scene_of(config, split, index)
  image, label, tags = render(scene)
  _, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
  return records.Sample(name, png.tobytes(), image, label, tags)


def _configs(size: int, suffix: str = '') -> list[Config]:
  """The four variants at one size."""
  scenes = {'train': 2000, 'unlabeled': 4000, 'val': 400, 'test': 400}
  single = {'train': 4000, 'train_semi': 80, 'val': 400, 'test': 400}
  domain = {'train': 2000, 'val': 400, 'test': 400}
  return [
    Config(f'scenes{suffix}', size=size, num_images=scenes),
    Config(f'single{suffix}', size=size, max_things=1, num_images=single),
    Config(f'source{suffix}', size=size, num_images=domain),
    Config(f'target{suffix}', size=size, rendering=DUSK, num_images=domain),
  ]


class Shapes(base.Builder):
  """Striped and checked shapes on clutter, drawn by a program.

  `scenes` has 1 to 4 objects an image, `single` one; `source` and `target` are
  the same classes in daylight and at dusk. Sides are 64 pixels, or 128 in
  `scenes_128` and so on.
  """

  VERSION = tfds.core.Version('1.1.0')
  BUILDER_CONFIGS = [*_configs(64), *_configs(128, '_128')]  # noqa: RUF012

  def contents(self) -> records.Contents:
    """Nine classes, with masks and tags."""
    return records.Contents(CLASSES, PALETTE, labels=True, tags=True)

  def sources(self) -> Mapping[str, Sequence[tuple[str, int]]]:
    """Split and number of each image."""
    return {
      split: [(split, i) for i in range(count)]
      for split, count in self.builder_config.num_images.items()
    }

  def sample(self, source: tuple[str, int]) -> records.Sample:
    """Draws an image."""
    return draw(self.builder_config, *source)
