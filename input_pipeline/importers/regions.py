"""Outlines and bitmaps of annotated regions, painted to label maps."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32
from pycocotools import mask as coco

from runtime import errors

# The label of regions without a class, in LabelMe.
_IGNORE = '__ignore__'
# Vertices of the polygon that stands for a circle or an ellipse, whose area is
# smaller by 0.04 %.
_CIRCLE_VERTICES = 128
# Pixels by which an outline may leave its image.
_MAX_OUTSIDE = 100_000
# Pixels of an image: a larger number is a mistake, and no mask can be kept.
_MAX_PIXELS = 2**29

Polygon = Float[np.ndarray, 'N 2']


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
  """A part of an image with one label.

  Attributes:
    label: name of its class; '' for pixels without a class, which are ignored.
    polygons: outlines as x, y, in pixels from the upper left corner of the
      image, so that its first pixel covers 0 to 1 in both. The region is the
      union of the areas inside them.
    bitmap: a part of the image in which the region is marked, run-length
      encoded as by pycocotools, to save memory; None without one.
    corner: column and row of the bitmap's upper left pixel in the image.
  """

  label: str
  polygons: tuple[Polygon, ...] = ()
  bitmap: Mapping[str, Any] | None = None
  corner: tuple[int, int] = (0, 0)

  def paint(self, mask: Int32[np.ndarray, 'H W'], value: int) -> int:
    """Writes a value into the pixels of the region; returns their number.

    Raises:
      UserError: the bitmap is damaged, or reaches outside of the image.
    """
    count = 0
    for polygon in self.polygons:
      rows, columns = _bounds(polygon, mask.shape)
      inside = rasterize_region_polygon(
        polygon - [columns.start, rows.start],
        (rows.stop - rows.start, columns.stop - columns.start),
      )
      mask[rows, columns][inside] = value
      count += int(np.count_nonzero(inside))
    if self.bitmap is not None:
      bitmap = _decode(self.bitmap)
      (left, top), (height, width) = self.corner, bitmap.shape
      part = mask[top : top + height, left : left + width]
      if min(left, top) < 0 or part.shape != bitmap.shape:
        raise errors.UserError(
          f'expected a bitmap in the image of {_size(mask.shape)} pixels, '
          f'got {_size(bitmap.shape)} at column {left}, row {top}'
        )
      part[bitmap] = value
      count += int(np.count_nonzero(bitmap))
    return count

  def area(self) -> float:
    """Returns the area in pixels; of polygons, as if they were disjoint."""
    polygons = sum(abs(_signed_area(polygon)) for polygon in self.polygons)
    return polygons + (0 if self.bitmap is None else _area(self.bitmap))


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedImage:
  """The regions of an image.

  Attributes:
    names: paths that the annotation gives for the image; the first that is an
      image of the data set counts.
    size: height and width in pixels.
    regions: regions in the order in which they are painted, later ones over
      earlier ones.
    source: file of the annotation, for messages.
  """

  names: tuple[str, ...]
  size: tuple[int, int]
  regions: tuple[Region, ...]
  source: str

  def paint(
    self, values: Mapping[str, int], background: int
  ) -> tuple[Int32[np.ndarray, 'H W'], int]:
    """Paints all regions over the background.

    Args:
      values: value of each label in the mask; '' stands for ignored pixels.
      background: value outside of all regions.

    Returns:
      The mask; and the number of regions that cover no pixel.

    Raises:
      BadFile: a region does not fit the image.
    """
    mask = np.full(self.size, background, np.int32)
    empty = 0
    for region in self.regions:
      try:
        empty += not region.paint(mask, values[region.label])
      except errors.UserError as error:
        raise errors.BadFile(
          self.source, f'{self.names[-1]}, {region.label!r}: {error}'
        ) from error
    return mask, empty


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """Annotated images and labels that a labeling tool exported.

  Attributes:
    images: annotated images with their regions.
    labels: all names of classes, in the order of the tool.
    notes: notes for the user on how it was read, a sentence each.
    other_shapes: shapes that are no regions, as boxes and lines: their kind,
      label and image.
  """

  images: tuple[AnnotatedImage, ...]
  labels: tuple[str, ...]
  notes: tuple[str, ...] = ()
  other_shapes: tuple[str, ...] = ()


def class_of_region_label(label: str) -> str:
  """Returns the class of a label; '' for `__ignore__`, which is no class."""
  return '' if label == _IGNORE else label


def parse_annotated_image_size(height: Any, width: Any) -> tuple[int, int]:
  """Returns height and width of an annotated image.

  Raises:
    UserError: they are no numbers of pixels of an image.
  """
  try:
    size = int(height), int(width)
  except (TypeError, ValueError, OverflowError):
    size = 0, 0
  if min(size) < 1 or size[0] * size[1] > _MAX_PIXELS:
    raise errors.UserError(
      'expected height and width of the image in pixels, got '
      f'{repr(height)[:20]} and {repr(width)[:20]}'
    )
  return size


def rasterize_region_polygon(
  polygon: Polygon, size: tuple[int, int]
) -> Bool[np.ndarray, 'H W']:
  """Returns the pixels whose center is inside of an outline.

  Corners are rounded to a fifth of a pixel. Parts that an outline encloses
  twice are outside.

  Args:
    polygon: x, y in pixels from the upper left corner.
    size: height and width.
  """
  if 0 in size:
    return np.zeros(size, bool)
  [encoded] = coco.frPyObjects([polygon.ravel().tolist()], *size)
  return coco.decode(encoded).astype(bool)


def make_region_polygon(points: Iterable[Any]) -> Polygon:
  """Returns the outline through some points.

  Args:
    points: x, y of each.

  Raises:
    UserError: there are fewer than three points, or they are no numbers, or
      far outside of any image.
  """
  try:
    polygon = np.array([[float(part) for part in point] for point in points])
  except (TypeError, ValueError, OverflowError):
    raise errors.UserError(
      'expected an outline of points x, y, got no numbers'
    ) from None
  if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
    raise errors.UserError(
      f'expected an outline of at least 3 points x, y, got {len(polygon)}'
    )
  if not np.all(np.abs(polygon) < _MAX_OUTSIDE):  # False for NaN, too.
    raise errors.UserError(
      'expected an outline in its image, got points at '
      f'{np.abs(polygon).max():g}'
    )
  return polygon


def make_region_box(
  first: Sequence[float | int], second: Sequence[float | int]
) -> Polygon:
  """Returns the outline of a box with two opposite corners (x, y)."""
  (x0, y0), (x1, y1) = first, second
  return make_region_polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def make_region_ellipse(
  center: Sequence[float | int],
  radii: Sequence[float | int],
  degrees: float | int = 0.0,
) -> Polygon:
  """Returns the outline of an ellipse.

  Args:
    center: x, y in pixels.
    radii: radii along x and y before the rotation, in pixels.
    degrees: angle of the clockwise rotation, in degrees.
  """
  angles = np.linspace(0, 2 * np.pi, _CIRCLE_VERTICES, endpoint=False)
  # Of numbers that are not finite, which `make_region_polygon` refuses.
  with np.errstate(invalid='ignore'):
    x, y = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
    turn = np.deg2rad(degrees)
    columns = center[0] + x * np.cos(turn) - y * np.sin(turn)
    rows = center[1] + x * np.sin(turn) + y * np.cos(turn)
  return make_region_polygon(zip(columns, rows, strict=True))


def encode_region_bitmap(bitmap: Bool[np.ndarray, 'h w']) -> Mapping[str, Any]:
  """Encodes the bitmap of a region."""
  return coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))


def _decode(bitmap: Mapping[str, Any]) -> Bool[np.ndarray, 'h w']:
  try:
    return coco.decode(dict(bitmap)).astype(bool)
  except Exception as error:  # pycocotools raises any exception.
    raise errors.UserError(f'the mask cannot be decoded: {error}') from error


def _area(bitmap: Mapping[str, Any]) -> float:
  try:
    return float(coco.area(dict(bitmap)))
  except Exception as error:  # pycocotools raises any exception.
    raise errors.UserError(f'the mask cannot be decoded: {error}') from error


def _bounds(polygon: Polygon, size: tuple[int, ...]) -> tuple[slice, slice]:
  """Returns the rows and columns of an image that an outline may cover."""
  limit = np.array(size[::-1])
  low = np.clip(np.floor(polygon.min(0)), 0, limit).astype(int)
  high = np.clip(np.ceil(polygon.max(0)), low, limit).astype(int)
  columns, rows = map(slice, low.tolist(), high.tolist())
  return rows, columns


def _signed_area(polygon: Polygon) -> float:
  x, y = polygon.T
  return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _size(shape: Sequence[int]) -> str:
  return f'{shape[1]}x{shape[0]}'
