"""Resizing of images and of label maps on the host.

Images are resized with half-pixel centers: the center of output pixel i lies at
(i + ½) · in / out in the input. A label map that belongs to an image is read at
the same positions; by the floor rule it would lie half a pixel beside it.

Each function can compute a part of its output alone, as for a crop, at the same
positions in the input.
"""

import functools
import importlib.util

import numpy as np
from etils import epy
from jaxtyping import Shaped, UInt8

with epy.lazy_imports():
  import cv2
  import cykooz_resizer  # An extra: not all platforms have a wheel of it.
  import PIL.Image

# Rows and columns of an output, each from `start` to `stop`.
Part = tuple[slice, slice]


def resize_label_nearest(
  label: Shaped[np.ndarray, 'H W'],
  size: tuple[int, int],
  part: Part | None = None,
) -> Shaped[np.ndarray, 'h w']:
  """Resizes a label map: output i is input ⌊(i + ½) · in / out⌋, exactly.

  The input pixel that contains the center of the output pixel, as by Pillow and
  by OpenCV's INTER_NEAREST_EXACT. Where the center lies on an edge, which it
  does at even factors, it is the pixel after the edge.

  Args:
    label: class ids.
    size: (height, width) of the output in pixels.
    part: part of the output to compute; None for all of it.
  """
  rows, columns = (
    (2 * np.arange(kept.start, kept.stop) + 1) * old // (2 * new)
    for old, new, kept in zip(
      label.shape, size, part or _whole(size), strict=True
    )
  )
  return _take(label, rows, columns)


def resize_label_by_floor(
  label: Shaped[np.ndarray, 'H W'],
  size: tuple[int, int],
  part: Part | None = None,
) -> Shaped[np.ndarray, 'h w']:
  """Resizes a label map: output i is input ⌊i · in / out⌋, exactly.

  As torch's 'nearest', for the places where a specification has it.

  Args:
    label: class ids.
    size: (height, width) of the output in pixels.
    part: part of the output to compute; None for all of it.
  """
  rows, columns = (
    np.arange(kept.start, kept.stop) * old // new
    for old, new, kept in zip(
      label.shape, size, part or _whole(size), strict=True
    )
  )
  return _take(label, rows, columns)


def _whole(size: tuple[int, int]) -> Part:
  """Returns the part of an output that is all of it."""
  return slice(0, size[0]), slice(0, size[1])


def _take(
  label: Shaped[np.ndarray, 'H W'], rows: np.ndarray, columns: np.ndarray
) -> Shaped[np.ndarray, 'h w']:
  """Returns the pixels of the given rows and columns."""
  # One axis after the other takes a sixth of the time of both at once.
  if len(rows) <= len(label):
    return label.take(rows, axis=0).take(columns, axis=1)
  return label.take(columns, axis=1).take(rows, axis=0)


def resize_image_bilinear(
  image: Shaped[np.ndarray, 'H W 3'],
  size: tuple[int, int],
  part: Part | None = None,
) -> Shaped[np.ndarray, 'h w 3']:
  """Resizes an image bilinearly, without antialiasing.

  A part of the output equals that part of the whole exactly if the image has
  bytes, and up to rounding if it has floats.

  Args:
    image: image of bytes or floats; the centers of pixels are at half-integers.
    size: (height, width) of the output in pixels.
    part: part of the output to compute; None for all of it.
  """
  if part is None:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
  # OpenCV computes positions from the first pixel and the scale: leaving out
  # what lies after the part moves nothing.
  height, width = (
    min(((2 * kept.stop - 1) * old - new) // (2 * new) + 2, old)
    for old, new, kept in zip(image.shape[:2], size, part, strict=True)
  )
  resized = cv2.resize(
    image[:height, :width],
    None,
    fx=size[1] / image.shape[1],
    fy=size[0] / image.shape[0],
    interpolation=cv2.INTER_LINEAR,
  )
  return resized[part]


def resize_image_antialiased(
  image: UInt8[np.ndarray, 'H W 3'],
  size: tuple[int, int],
  *,
  bicubic: bool = False,
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image as Pillow does, antialiased where it shrinks.

  Args:
    image: RGB image.
    size: (height, width) of the output in pixels.
    bicubic: whether the filter is bicubic, not bilinear.
  """
  filters = PIL.Image.Resampling
  resampling = filters.BICUBIC if bicubic else filters.BILINEAR
  return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], resampling))


def resize_crop_antialiased(
  image: UInt8[np.ndarray, 'H W 3'],
  size: tuple[int, int],
  part: Part | None = None,
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image bilinearly, antialiased where it shrinks, for training.

  The package cykooz-resizer does it in a fifth of Pillow's time. Its values are
  the same on all processors, and those of Pillow, which does it where the
  package is not installed, up to rounding: they differ by 1, and by 2 in one of
  five million values of noise.

  Args:
    image: RGB image.
    size: (height, width) of the output in pixels.
    part: part of the output to compute, up to rounding as in the whole; None
      for all of it.
  """
  part = part or _whole(size)
  if _has_resizer():
    return _resize_by_package(image, size, part)
  return resize_image_antialiased(image, size)[part]


@functools.cache
def _has_resizer() -> bool:
  """Returns whether the package is installed."""
  return importlib.util.find_spec('cykooz_resizer') is not None


def _resize_by_package(
  image: UInt8[np.ndarray, 'H W 3'], size: tuple[int, int], part: Part
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image by the package; computes the part alone."""
  (height, top, rows), (width, left, columns) = (
    (kept.stop - kept.start, kept.start * old / new, kept.stop * old / new)
    for old, new, kept in zip(image.shape[:2], size, part, strict=True)
  )
  # Quotients are rounded: the box must not reach beyond the image.
  box = cykooz_resizer.CropBox(
    left,
    top,
    min(columns, image.shape[1]) - left,
    min(rows, image.shape[0]) - top,
  )
  bilinear = cykooz_resizer.ResizeAlg.convolution(
    cykooz_resizer.FilterType.bilinear
  )
  kind = cykooz_resizer.PixelType.U8x3
  source = cykooz_resizer.ImageData(
    image.shape[1], image.shape[0], kind, image.tobytes()
  )
  resized = cykooz_resizer.ImageData(width, height, kind)
  # A resizer of its own: threads cannot share one.
  cykooz_resizer.Resizer().resize(
    source,
    resized,
    cykooz_resizer.ResizeOptions(
      resize_alg=bilinear, crop_box=box, use_alpha=False
    ),
  )
  pixels = np.frombuffer(resized.get_buffer(), np.uint8)
  return pixels.reshape(height, width, 3)


def size_within_sides(
  size: tuple[int, int], sides: tuple[int, int]
) -> tuple[int, int]:
  """Computes the size of an image that is resized to fit two sides.

  The aspect ratio is kept. The long side is at most the longer one of the two,
  the short side at most the shorter one, and one of them is reached. Sides are
  rounded half up, as by mmcv.

  Args:
    size: (height, width) of the image in pixels.
    sides: lengths of the long and of the short side in pixels.

  >>> size_within_sides((1052, 1914), (1280, 720))
  (704, 1280)
  """
  scale = min(max(sides) / max(size), min(sides) / min(size))
  height, width = (max(int(n * scale + 0.5), 1) for n in size)
  return height, width


def check_fit_sides(sides: tuple[int, int]) -> None:
  """Checks the long and the short side that images are resized to fit.

  Raises:
    ValueError: one of them is below 1, and not both are 0, or the second is
      the longer one.
  """
  if any(sides) and not sides[0] >= sides[1] >= 1:
    raise ValueError(
      'fit_sides: expected (long side, short side) >= 1, or (0, 0) to keep the '
      f'size, got {sides}'
    )
