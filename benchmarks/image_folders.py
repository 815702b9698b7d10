"""Folders of generated images and masks, for the benchmarks of the input."""

import pathlib

import cv2
import numpy as np

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


def data_options(folder: pathlib.Path) -> datasets.DataOptions:
  """Returns the options of a data set of such a folder."""
  return datasets.DataOptions(
    'image_mask_folder',
    source=str(folder),
    images='images',
    masks='masks',
    classes='classes.txt',
  )
