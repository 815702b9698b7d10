"""Shapes: a synthetic segmentation data set for tests and demos.

  builder = Shapes(config='scenes', data_dir=data_dir)
  builder.download_and_prepare()

A class is the combination of an outline and a pattern: neither the shape of an
object nor its texture suffices to recognize it, and color carries no
information. The name of an image seeds its random generator
('scenes/train/00012'), so that images are the same on every machine and no two
splits share one.

A scene is sampled first (`shapes_scene.sample_scene`); drawing (`draw_scene`)
and simulating the camera (`shapes_camera`) are deterministic functions of
it. All is computed in float64, whose rounding differs between processors too
little to change 8 bits.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int16, UInt8

from input_pipeline.builders import (
  base,
  natural,
  scene_sampling,
  shapes_camera,
  shapes_scene,
)
from input_pipeline.sources import records

CLASSES = (
  'background',
  *(
    f'{pattern} {outline}'
    for outline in shapes_scene.OUTLINES
    for pattern in shapes_scene.PATTERNS
  ),
)
# Of each outline the color of striped and of checked objects.
_COLORS = {
  'disc': ((230, 60, 60), (255, 170, 160)),
  'square': ((60, 120, 230), (140, 210, 255)),
  'ring': ((40, 160, 70), (180, 230, 110)),
  'cross': ((200, 150, 30), (200, 90, 220)),
}
PALETTE = (
  (24, 24, 24),
  *(color for outline in shapes_scene.OUTLINES for color in _COLORS[outline]),
)

# Frequencies of the domains' objects: a striped ring and a checked cross are
# rare, each is in 1 of 14 images.
RARE_CLASSES = (1.0, 1.0, 1.0, 1.0, 0.2, 1.0, 1.0, 0.2)


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
  """Describes a variant of the data set.

  Attributes:
    size: side of the images in pixels.
    max_objects: largest number of objects in an image, which shows at least 1;
      with 1 the classes of a split are balanced.
    rendering: ranges of clutter, light and camera.
    frequencies: frequency of each class of objects, relative to the others;
      empty for equal ones.
    num_images: number of images of each split.
  """

  size: int = 64
  max_objects: int = 4
  rendering: shapes_scene.Rendering = shapes_scene.DAY
  frequencies: Sequence[float] = ()
  num_images: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def schema(self) -> records.Schema:
    """Returns the nine classes."""
    return records.Schema(CLASSES, PALETTE, labels=True, tags=True)

  def draw_sample(self, split: str, index: int) -> records.Sample:
    """Draws the image of a split and index with its labels."""
    return draw_labeled_scene(self, split, index)


def draw_scene_background(
  scene: shapes_scene.Scene,
) -> Float[np.ndarray, 'size size 3']:
  """Draws the textured background with its clutter, in [0, 1]."""
  sides = scene.size, scene.size
  image = np.zeros((*sides, 3))
  for grid in scene.texture:
    image += cv2.resize(grid, sides, interpolation=cv2.INTER_LINEAR)
  # The texture is mostly gray, as neighboring pixels have similar hues.
  image = 0.7 * (image @ shapes_scene.LUMA)[..., None] + 0.3 * image
  image += scene.background
  for piece in scene.clutter:
    tone = tuple(piece.tone.tolist())
    if piece.width:
      start, end = piece.points.tolist()
      cv2.line(image, start, end, tone, piece.width)
    else:
      cv2.fillPoly(image, [piece.points], tone)
  return image


def draw_scene(
  scene: shapes_scene.Scene,
) -> tuple[Float[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size']]:
  """Draws the scene in uniform white light.

  Returns:
    The image in [0, 1], and its class ids.
  """
  image = draw_scene_background(scene)
  label = np.zeros((scene.size, scene.size), np.int16)
  for item in scene.objects:
    coverage = shapes_scene.scene_object_coverage(item, scene.size)
    weight = shapes_scene.scene_object_pattern(item, scene.size)[..., None]
    first, second = item.tones
    touched = coverage > 0
    surface = first + weight[touched] * (second - first)
    image[touched] += coverage[touched, None] * (surface - image[touched])
    label[coverage > 0.5] = item.class_id
  return np.clip(image, 0, 1), label


def render_scene(
  scene: shapes_scene.Scene,
) -> tuple[
  UInt8[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size'], list[int]
]:
  """Draws and photographs a scene.

  Returns:
    The image, its class ids, and the sorted classes of its objects.
  """
  image, label = draw_scene(scene)
  tags = sorted({item.class_id for item in scene.objects})
  return shapes_camera.photograph_scene(image, scene.camera), label, tags


def sample_scene_classes(
  rng: np.random.Generator,
  index: int,
  max_objects: int,
  frequencies: Sequence[float] = (),
) -> list[int]:
  """Samples the classes of the objects of an image.

  With a single object per image, classes take turns by the index of the image.

  Args:
    rng: random generator.
    index: index of the image in its split.
    max_objects: largest number of objects.
    frequencies: relative frequency of each class; empty for equal ones.
  """
  num_classes = len(CLASSES) - 1
  if max_objects == 1:
    return [1 + index % num_classes]
  count = rng.integers(1, max_objects, endpoint=True)
  if frequencies:
    p = np.divide(frequencies, sum(frequencies))
    return (1 + rng.choice(num_classes, count, p=p)).tolist()
  return rng.integers(1, num_classes, count, endpoint=True).tolist()


def make_scene(
  config: ShapesConfig, split: str, index: int
) -> tuple[str, shapes_scene.Scene]:
  """Samples the scene of an image, seeded by the name of the image.

  Args:
    config: variant of the data set.
    split: name of the split.
    index: index of the image in the split.

  Returns:
    The name of the image, and the scene.
  """
  name, rng = scene_sampling.seed_scene(config.name, split, index)
  class_ids = sample_scene_classes(
    rng, index, config.max_objects, config.frequencies
  )
  return name, shapes_scene.sample_scene(
    rng, class_ids, config.rendering, config.size
  )


def draw_labeled_scene(
  config: ShapesConfig, split: str, index: int
) -> records.Sample:
  """Draws an image of the data set with its labels.

  Args:
    config: variant of the data set.
    split: name of the split.
    index: index of the image in the split.
  """
  name, scene = make_scene(config, split, index)
  image, label, tags = render_scene(scene)
  _, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
  return records.Sample(name, png.tobytes(), image, label, tags)


def _configs(size: int, suffix: str = '') -> list[ShapesConfig]:
  """Returns the four variants at one size."""
  scenes = {'train': 2000, 'unlabeled': 4000, 'val': 400, 'test': 400}
  single = {'train': 4000, 'train_semi': 80, 'val': 400, 'test': 400}
  domain = {
    'size': size,
    'frequencies': RARE_CLASSES,
    'num_images': {'train': 2000, 'val': 400, 'test': 400},
    'version': tfds.core.Version('1.3.0'),
  }
  return [
    ShapesConfig(f'scenes{suffix}', size=size, num_images=scenes),
    ShapesConfig(
      f'single{suffix}', size=size, max_objects=1, num_images=single
    ),
    ShapesConfig(f'source{suffix}', **domain),
    ShapesConfig(f'target{suffix}', rendering=shapes_scene.DUSK, **domain),
  ]


class Shapes(base.Builder):
  """Objects on clutter, drawn by a program.

  `scenes` has 1 to 4 striped and checked shapes per image, `single` one;
  `source` and `target` are the same classes in daylight and at dusk, two of
  them rare. `natural` and `natural_single` have classes that differ in color,
  texture, outline and background, as in photographs. Sides are 64 pixels, or
  128 in `scenes_128` and so on.
  """

  VERSION = tfds.core.Version('1.1.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    *_configs(64),
    *_configs(128, '_128'),
    *natural.natural_configs(64),
    *natural.natural_configs(128, '_128'),
  ]

  def schema(self) -> records.Schema:
    """Returns the classes of the variant."""
    return self.builder_config.schema()

  def sources(self) -> Mapping[str, Sequence[tuple[str, int]]]:
    """Returns (split, index) of each image."""
    return {
      split: [(split, i) for i in range(count)]
      for split, count in self.builder_config.num_images.items()
    }

  def read_sample(self, source: tuple[str, int]) -> records.Sample:
    """Draws the image of a split and index."""
    return self.builder_config.draw_sample(*source)
