"""Folders of generated images and masks, for benchmarks and tests."""

import io
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image

from input_pipeline import datasets

# Size of the images, in pixels.
SIZE = (375, 500)
CLASSES = 21


def create(folder: pathlib.Path) -> None:
  """Creates the folders of images and masks, and the list of classes."""
  for name in ('images', 'masks'):
    (folder / name).mkdir(parents=True)
  names = ''.join(f'class{i}\n' for i in range(CLASSES))
  (folder / 'classes.txt').write_text(names)


def draw_mask(rng: np.random.Generator) -> np.ndarray:
  """Draws a few regions with smooth boundaries, like annotations.

  Returns:
    uint8 [*SIZE], below `CLASSES`.
  """
  fields = rng.random((CLASSES, 4, 5)).astype(np.float32)
  grown = [cv2.resize(field, SIZE[::-1], interpolation=3) for field in fields]
  return np.argmax(grown, axis=0).astype(np.uint8)


def write_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes a JPEG of the quality of photographs."""
  cv2.imwrite(str(path), image, (cv2.IMWRITE_JPEG_QUALITY, 92))


def encoded(pixels: Any, kind: str = 'PNG', **options: Any) -> bytes:
  """Returns the bytes of an image file."""
  image = pixels
  if not isinstance(image, PIL.Image.Image):
    image = PIL.Image.fromarray(image)
  data = io.BytesIO()
  image.save(data, kind, **options)
  return data.getvalue()


class Discs(NamedTuple):
  """Sizes of drawn images of a disc, in pixels.

  Attributes:
    size: least height and largest width of an image; they vary by 2 and 1.
    rows: range of the center's row.
    columns: range of the center's column.
    radius: radius of the disc.
    ring: radius and thickness of the ring of ignored pixels around it.
  """

  size: tuple[int, int]
  rows: tuple[int, int]
  columns: tuple[int, int]
  radius: int
  ring: tuple[int, int]


def write_discs(folder: pathlib.Path, count: int, discs: Discs) -> None:
  """Writes images of a bright disc on noise, with palette masks."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (folder / name).mkdir(parents=True)
  for i in range(count):
    height, width = discs.size[0] + i % 3, discs.size[1] - i % 2
    image = rng.integers(0, 120, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    center = int(rng.integers(*discs.columns)), int(rng.integers(*discs.rows))
    cv2.circle(mask, center, discs.radius, 1, -1)
    cv2.circle(mask, center, discs.ring[0], 255, discs.ring[1])
    image[mask == 1] += 120
    cv2.imwrite(str(folder / 'images' / f'{i:02}.jpg'), image)
    palette = PIL.Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / 'masks' / f'{i:02}.png')
  (folder / 'classes.txt').write_text('ground\ndisc\n')


def data_options(folder: pathlib.Path, **fields: Any) -> datasets.DataOptions:
  """Returns the options of a data set of such a folder.

  Args:
    folder: folder of images, masks and the class list.
    **fields: further fields of the options.
  """
  return datasets.DataOptions(
    'image_mask_folder',
    source=str(folder),
    images='images',
    masks='masks',
    classes='classes.txt',
    **fields,
  )
