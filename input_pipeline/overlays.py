"""Label maps over photographs: a tint, and the outlines of the regions."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int, UInt8

Color = tuple[int, int, int]

# Photographs of this longest side get outlines of one pixel on each side.
_SIDE_PER_PIXEL = 500
_OPACITY = 0.35


def blend_label_map(
  image: UInt8[np.ndarray, 'H W 3'],
  label: Int[np.ndarray, 'H W'],
  palette: Sequence[Color],
  opacity: float,
) -> UInt8[np.ndarray, 'height width 3']:
  """Blends an image with its colored label map; ignored pixels stay.

  Args:
    image: RGB image.
    label: class ids; negative where ignored.
    palette: RGB color of each class id.
    opacity: weight of the colors, in [0, 1].
  """
  colors = np.array(palette, np.uint8)[np.maximum(label, 0)]
  mixed = np.rint((1 - opacity) * image + opacity * colors).astype(np.uint8)
  return np.where((label >= 0)[..., None], mixed, image)


def draw_outlines(
  picture: UInt8[np.ndarray, 'H W 3'],
  label: Int[np.ndarray, 'H W'],
  palette: Sequence[Color],
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws the border of each region, inside of it, in the color of its class.

  Ignored pixels have no border.

  Args:
    picture: RGB picture to draw on.
    label: class ids; negative where ignored.
    palette: RGB color of each class id.
  """
  width = max(1, round(max(label.shape) / _SIDE_PER_PIXEL))
  kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
  codes = (label + 1).astype(np.uint16)
  is_border = cv2.dilate(codes, kernel) != cv2.erode(codes, kernel)
  colors = np.array(palette, np.uint8)[np.maximum(label, 0)]
  return np.where((is_border & (label >= 0))[..., None], colors, picture)


def draw_outlined_overlay(
  image: UInt8[np.ndarray, 'H W 3'],
  label: Int[np.ndarray, 'H W'],
  palette: Sequence[Color],
) -> UInt8[np.ndarray, 'height width 3']:
  """Blends an image with the class colors, and outlines the regions.

  Args:
    image: RGB image.
    label: class ids; negative where ignored.
    palette: RGB color of each class id.
  """
  tinted = blend_label_map(image, label, palette, _OPACITY)
  return draw_outlines(tinted, label, palette)
