"""Draws the data sets shapes/natural: what photographs have, in small.

Classes differ in color, texture, outline and context, and vary within
themselves; objects are shaded, cast shadows and hide each other. The name of an
image seeds its random generator ('natural/train/00012'), so that images are the
same on every machine and no two splits share one.

A scene is sampled first (`natural_scene.sample_natural_scene`); drawing is a
deterministic function of it, in float64.
"""

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int16, UInt8

from input_pipeline.builders import (
  natural_classes,
  natural_outlines,
  natural_scene,
  natural_waves,
  scene_sampling,
  shapes_camera,
)
from input_pipeline.sources import records

# Offset and softness of a shadow, in radii of the object.
SHADOW_OFFSET = 0.15
SHADOW_SOFTNESS = 0.25
# Amplitude of the mottling of surfaces.
MOTTLING = 0.06


@dataclasses.dataclass(eq=False)
class NaturalConfig(tfds.core.BuilderConfig):
  """Describes a variant of the data set.

  Attributes:
    size: side of the images in pixels.
    max_objects: largest number of objects in an image, which shows at least 1;
      with 1 the classes of a split are balanced, otherwise long-tailed.
    radii: range of the objects' radii relative to the image's side.
    num_images: number of images of each split.
  """

  size: int = 64
  max_objects: int = 5
  radii: tuple[float, float] = (0.13, 0.36)
  num_images: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def schema(self) -> records.Schema:
    """Returns the ten classes and the background."""
    return records.Schema(
      natural_classes.CLASSES, natural_classes.PALETTE, labels=True, tags=True
    )

  def draw_sample(self, split: str, index: int) -> records.Sample:
    """Draws the image of a split and index with its labels."""
    name, rng = scene_sampling.seed_scene(self.name, split, index)
    scene = make_natural_scene(self, rng, index)
    image, label = render_natural_scene(scene)
    _, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    tags = sorted({item.class_id for item in scene.objects})
    return records.Sample(name, png.tobytes(), image, label, tags)


def natural_configs(size: int, suffix: str = '') -> list[NaturalConfig]:
  """Returns scenes and single objects at one size.

  Args:
    size: side of the images in pixels.
    suffix: end of the names.
  """
  scenes = {'train': 2000, 'unlabeled': 4000, 'val': 400, 'test': 400}
  single = {'train': 4000, 'train_semi': 100, 'val': 400, 'test': 400}
  # Apart from that of the striped and checked shapes.
  version = tfds.core.Version('1.0.0')
  return [
    NaturalConfig(
      f'natural{suffix}', version=version, size=size, num_images=scenes
    ),
    NaturalConfig(
      f'natural_single{suffix}',
      version=version,
      size=size,
      max_objects=1,
      radii=(0.22, 0.42),
      num_images=single,
    ),
  ]


def make_natural_scene(
  config: NaturalConfig, rng: np.random.Generator, index: int
) -> natural_scene.NaturalScene:
  """Samples the scene of an image.

  With a single object per image, classes take turns by the index of the image.

  Args:
    config: variant of the data set.
    rng: random generator that the name of the image seeds.
    index: index of the image in the split.
  """
  num_classes = len(natural_classes.KINDS)
  if config.max_objects == 1:
    first = 1 + index % num_classes
    others = 0
  else:
    first = 1 + int(rng.choice(num_classes, p=natural_classes.FREQUENCIES))
    others = int(rng.integers(0, config.max_objects))
  context = natural_scene.sample_natural_context(rng, first)
  classes = natural_scene.sample_natural_companions(rng, context, others)
  # What is sampled first must not always lie behind the rest.
  classes = rng.permutation([first, *classes]).tolist()
  return natural_scene.sample_natural_scene(
    rng, classes, context, config.radii, config.size
  )


def draw_natural_background(
  scene: natural_scene.NaturalScene,
) -> Float[np.ndarray, 'size size 3']:
  """Draws the background without clutter, in [0, 1]."""
  centers = np.arange(scene.size) + 0.5
  gradient = natural_waves.draw_texture_waves(scene.gradient, centers, centers)
  texture = natural_waves.draw_texture_waves(scene.texture, centers, centers)
  sharpness = natural_classes.CONTEXTS[scene.context].texture.sharpness
  weight = 0.5 + 0.25 * gradient + 0.35 * np.tanh(sharpness * texture)
  first, second = scene.tones
  return first + np.clip(weight, -0.3, 1.3)[..., None] * (second - first)


def draw_natural_object_surface(
  item: natural_scene.NaturalObject,
  window: natural_scene.ObjectWindow,
  depth: Float[np.ndarray, 'H W'],
  light: tuple[float, float],
) -> Float[np.ndarray, 'H W 3']:
  """Draws the shaded surface of an object, beyond its outline, too.

  Args:
    item: the object.
    window: pixels to draw.
    depth: distance from the center relative to that of the outline, 1 there.
    light: direction from which the light comes, along x and y.
  """
  texture = natural_waves.draw_texture_waves(item.texture, window.x, window.y)
  weight = 0.5 + 0.5 * np.tanh(item.sharpness * texture)
  first, second = item.tones
  surface = first + weight[..., None] * (second - first)
  depth = np.minimum(depth, 1)
  # The slope of a dome, which grows towards the rim.
  slope = depth**2 / np.maximum(np.hypot(window.u, window.v), 1e-9)
  toward_x = (window.x - item.center[0])[None, :] / item.radius * light[0]
  toward_y = (window.y - item.center[1])[:, None] / item.radius * light[1]
  shading = item.relief * (slope * (toward_x + toward_y) - 0.4 * depth**2)
  mottling = natural_waves.draw_texture_waves(item.mottling, window.x, window.y)
  return surface * (1.1 + shading + MOTTLING * mottling)[..., None]


def draw_natural_object(
  image: Float[np.ndarray, 'size size 3'],
  label: Int16[np.ndarray, 'size size'],
  item: natural_scene.NaturalObject,
  light: tuple[float, float],
) -> None:
  """Draws an object with its shadow over an image, and its class ids.

  Args:
    image: image in [0, 1], which is changed.
    label: class ids, which are changed.
    item: the object.
    light: direction from which the light comes, along x and y.
  """
  size = len(label)
  x, y = item.center
  offset = SHADOW_OFFSET * item.radius
  shadow = dataclasses.replace(
    item, center=(x - offset * light[0], y - offset * light[1])
  )
  softness = SHADOW_SOFTNESS * item.radius
  window = natural_scene.natural_object_window(shadow, size, margin=softness)
  distance, _ = natural_outlines.natural_outline_distance(
    item.outline, window.u, window.v
  )
  darkness = np.clip(0.5 - distance * item.radius / softness, 0, 1)
  image[window.pixels] *= 1 - item.shadow * darkness[..., None]

  window = natural_scene.natural_object_window(item, size)
  distance, depth = natural_outlines.natural_outline_distance(
    item.outline, window.u, window.v
  )
  coverage = np.clip(0.5 - distance * item.radius, 0, 1)[..., None]
  surface = draw_natural_object_surface(item, window, depth, light)
  image[window.pixels] += coverage * (surface - image[window.pixels])
  label[window.pixels][distance < 0] = item.class_id


def draw_natural_scene(
  scene: natural_scene.NaturalScene,
) -> tuple[Float[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size']]:
  """Draws the scene in white light.

  Returns:
    The image in [0, 1], and its class ids.
  """
  image = draw_natural_background(scene)
  label = np.zeros((scene.size, scene.size), np.int16)
  toward = scene.camera.shade_direction + np.pi
  light = float(np.cos(toward)), float(np.sin(toward))
  for item in (*scene.clutter, *scene.objects):
    draw_natural_object(image, label, item, light)
  return np.clip(image, 0, 1), label


def render_natural_scene(
  scene: natural_scene.NaturalScene,
) -> tuple[UInt8[np.ndarray, 'size size 3'], Int16[np.ndarray, 'size size']]:
  """Draws and photographs a scene.

  Returns:
    The image and its class ids.
  """
  image, label = draw_natural_scene(scene)
  return shapes_camera.photograph_scene(image, scene.camera), label
