"""Pictures of inputs, label maps, predictions and errors.

All functions take and return uint8 RGB arrays. Classes have the colors of the
data set's palette; ignored pixels are light gray.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Int, UInt8

from input_pipeline import overlays
from runtime import files

Color = tuple[int, int, int]

# Color of ignored pixels.
IGNORED = (224, 224, 224)
WRONG = (214, 39, 40)
_BACKGROUND, _TEXT_COLOR = 255, (32, 32, 32)
# Pixels between pictures.
_GAP = 4
# Least and largest side of the square that a picture is resized to fit.
_TILE_SIZES = (96, 256)
# The same for the size of the legend below an overlay.
_OVERLAY_TILES = (96, 640)
# Classes named by a legend; a picture has no room for more.
_MAX_CLASSES = 40


def colorize_label_map(
  label: Int[np.ndarray, 'H W'], palette: Sequence[Color]
) -> UInt8[np.ndarray, 'height width 3']:
  """Colors a label map by class; negative labels are gray."""
  colors = np.array([*palette, IGNORED], np.uint8)
  return colors[np.where(label < 0, len(palette), label)]


def draw_overlay_with_legend(
  image: UInt8[np.ndarray, 'H W 3'],
  label: Int[np.ndarray, 'H W'],
  classes: Sequence[str],
  palette: Sequence[Color],
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws an image with tinted and outlined regions, and a legend below it.

  Args:
    image: the image.
    label: class of each pixel.
    classes: names of the classes; the legend has those that occur, from the
      most frequent one on.
    palette: RGB color of each class.
  """
  picture = overlays.draw_outlined_overlay(image, label, palette)
  counts = np.bincount(label[label >= 0], minlength=len(classes))
  order = np.argsort(-counts, kind='stable')[:_MAX_CLASSES]
  class_ids = [int(i) for i in order if counts[i]]
  if not class_ids:
    return picture
  width = picture.shape[1]
  legend = draw_class_legend(
    [classes[i] for i in class_ids],
    [palette[i] for i in class_ids],
    width,
    int(np.clip(width // 4, *_OVERLAY_TILES)),
    with_ignored=bool((label < 0).any()),
  )
  return stack_pictures(picture, legend)


def draw_errors(
  label: Int[np.ndarray, 'H W'], prediction: Int[np.ndarray, 'H W']
) -> UInt8[np.ndarray, 'height width 3']:
  """Colors wrong pixels red, right ones white and ignored ones gray.

  Args:
    label: class ids; negative where ignored.
    prediction: predicted class ids.
  """
  picture = np.full((*label.shape, 3), 255, np.uint8)
  picture[prediction != label] = WRONG
  picture[label < 0] = IGNORED
  return picture


def draw_picture_grid(
  rows: Sequence[Sequence[UInt8[np.ndarray, '_ _ 3']]],
  titles: Sequence[str],
) -> UInt8[np.ndarray, 'height width 3']:
  """Arranges pictures in rows, with a title above each column.

  Each picture is resized to fit a square of 96 to 256 pixels, about the size of
  the largest of them, since TensorBoard shrinks wide images.

  Args:
    rows: pictures by row and column; those of a row have the same size.
    titles: titles of the columns.
  """
  tile = panel_tile_size([picture for row in rows for picture in row])
  line = _line_height(tile)
  tiles = [[_resize_to_fit(picture, tile) for picture in row] for row in rows]
  width = max(p.shape[1] for row in tiles for p in row)
  heights = [row[0].shape[0] for row in tiles]
  output = _blank(
    line + sum(heights) + _GAP * len(rows),
    (width + _GAP) * len(titles) - _GAP,
  )
  top = line
  for row, height in zip(tiles, heights, strict=True):
    for column, picture in enumerate(row):
      left = column * (width + _GAP)
      output[top : top + height, left : left + picture.shape[1]] = picture
    top += height + _GAP
  positions = [(column * (width + _GAP), 1) for column in range(len(titles))]
  return _draw_texts(output, positions, titles, tile)


def panel_tile_size(images: Sequence[UInt8[np.ndarray, '_ _ 3']]) -> int:
  """Returns the side of the squares of `draw_picture_grid`, in pixels."""
  longest = max(max(picture.shape[:2]) for picture in images)
  return min(max(longest, _TILE_SIZES[0]), _TILE_SIZES[1])


def draw_class_legend(
  classes: Sequence[str],
  palette: Sequence[Color],
  width: int,
  tile: int,
  with_ignored: bool = True,
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws names of classes beside their colors, in as many columns as fit.

  Args:
    classes: names of the classes.
    palette: RGB color of each class.
    width: least width of the picture, in pixels.
    tile: side of the tiles of the grid, which decides the font size.
    with_ignored: whether ignored pixels have an entry.
  """
  entries = [*zip(classes, palette, strict=True)]
  if with_ignored:
    entries.append(('no label', IGNORED))
  line = _line_height(tile)
  box = line - 6
  longest = max(_font(tile).getlength(name) for name, _ in entries)
  column_width = int(longest) + box + 16
  num_columns = max(1, min(width // column_width, len(entries)))
  num_lines = math.ceil(len(entries) / num_columns)
  output = _blank(num_lines * line, max(width, column_width))
  positions = []
  for i, (_, color) in enumerate(entries):
    left = i // num_lines * column_width
    top = i % num_lines * line
    output[top + 2 : top + 2 + box, left : left + box] = color
    positions.append((left + box + 5, top))
  return _draw_texts(output, positions, [name for name, _ in entries], tile)


def stack_pictures(
  first: UInt8[np.ndarray, 'H W 3'], second: UInt8[np.ndarray, 'h w 3']
) -> UInt8[np.ndarray, 'height width 3']:
  """Stacks two pictures, the second below the first."""
  height = first.shape[0] + _GAP + second.shape[0]
  output = _blank(height, max(first.shape[1], second.shape[1]))
  output[: first.shape[0], : first.shape[1]] = first
  output[-second.shape[0] :, : second.shape[1]] = second
  return output


@dataclasses.dataclass(frozen=True)
class Example:
  """An image with its label map and its prediction."""

  image: UInt8[np.ndarray, 'H W 3']
  label: Int[np.ndarray, 'H W']
  prediction: Int[np.ndarray, 'H W']


def draw_panels(
  examples: Sequence[Example],
  classes: Sequence[str],
  palette: Sequence[Color],
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws a row of input, label, prediction and error for each example.

  The legend below them names the classes that occur in the maps.
  """
  rows = [
    [
      example.image,
      colorize_label_map(example.label, palette),
      colorize_label_map(example.prediction, palette),
      draw_errors(example.label, example.prediction),
    ]
    for example in examples
  ]
  picture = draw_picture_grid(rows, ('input', 'label', 'prediction', 'error'))
  maps = [m for e in examples for m in (e.label, e.prediction)]
  class_ids = np.unique(np.concatenate([m.ravel() for m in maps]))
  class_ids = [int(i) for i in class_ids if i >= 0][:_MAX_CLASSES]
  legend = draw_class_legend(
    [classes[i] for i in class_ids],
    [palette[i] for i in class_ids],
    picture.shape[1],
    panel_tile_size([example.image for example in examples]),
  )
  return stack_pictures(picture, legend)


def write_picture_png(
  path: files.Path, picture: UInt8[np.ndarray, 'H W 3']
) -> None:
  """Writes a picture as a PNG file."""
  encoded = io.BytesIO()
  PIL.Image.fromarray(picture).save(encoded, format='PNG')
  path.write_bytes(encoded.getvalue())


def _resize_to_fit(picture: np.ndarray, tile: int) -> np.ndarray:
  """Resizes a picture so that its longer side is `tile`."""
  factor = tile / max(picture.shape[:2])
  height, width = (max(1, round(n * factor)) for n in picture.shape[:2])
  # Class colors are not mixed by enlarging; shrinking averages.
  interpolation = cv2.INTER_NEAREST_EXACT if factor > 1 else cv2.INTER_AREA
  return cv2.resize(picture, (width, height), interpolation=interpolation)


def _blank(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), _BACKGROUND, np.uint8)


def _line_height(tile: int) -> int:
  return 18 * tile // 120


@functools.cache
def _font(tile: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
  return PIL.ImageFont.load_default(13 * tile // 120)


def _draw_texts(
  picture: np.ndarray,
  positions: Sequence[tuple[int, int]],
  texts: Sequence[str],
  tile: int,
) -> np.ndarray:
  """Draws texts at (left, top), in the font size of tiles of this side."""
  image = PIL.Image.fromarray(picture)
  draw = PIL.ImageDraw.Draw(image)
  for position, text in zip(positions, texts, strict=True):
    draw.text(position, text, _TEXT_COLOR, _font(tile))
  return np.array(image)
