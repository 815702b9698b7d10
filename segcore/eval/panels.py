"""Pictures for people: what the network saw, was told, and answered.

Arrays in, arrays out: uint8 RGB throughout. Colors of classes are the data
set's palette; pixels without a label are light gray.
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

from runtime import files

Color = tuple[int, int, int]

# Of pixels that have no label.
IGNORED = (224, 224, 224)
WRONG = (214, 39, 40)
_PAPER, _INK = 255, (32, 32, 32)
_GAP = 4
# Sides of the squares that pictures are fitted into.
_TILES = (96, 256)
# Classes that a legend names; a picture has no room for more.
_MOST_CLASSES = 40


def colorize(
  label: Int[np.ndarray, 'H W'], palette: Sequence[Color]
) -> UInt8[np.ndarray, 'height width 3']:
  """A label map in the colors of its classes."""
  colors = np.array([*palette, IGNORED], np.uint8)
  return colors[np.where(label < 0, len(palette), label)]


def draw_overlay(
  image: UInt8[np.ndarray, 'H W 3'],
  label: Int[np.ndarray, 'H W'],
  palette: Sequence[Color],
  opacity: float = 0.5,
) -> UInt8[np.ndarray, 'height width 3']:
  """The image with its label map laid over it, where there is a label."""
  mixed = (1 - opacity) * image + opacity * colorize(label, palette)
  mixed = np.rint(mixed).astype(np.uint8)
  return np.where((label >= 0)[..., None], mixed, image)


def draw_errors(
  label: Int[np.ndarray, 'H W'], prediction: Int[np.ndarray, 'H W']
) -> UInt8[np.ndarray, 'height width 3']:
  """Wrong pixels in red, right ones in white, those without a label in gray."""
  found = np.full((*label.shape, 3), 255, np.uint8)
  found[prediction != label] = WRONG
  found[label < 0] = IGNORED
  return found


def draw_grid(
  rows: Sequence[Sequence[UInt8[np.ndarray, '_ _ 3']]],
  titles: Sequence[str],
) -> UInt8[np.ndarray, 'height width 3']:
  """Pictures in rows under the titles of the columns.

  Each is fitted into a square of 96 to 256 pixels: about as large as the
  largest of them, since TensorBoard shrinks what is wide.

  Args:
    rows: of pictures; those of a row are equally large.
    titles: of the columns.
  """
  tile = tile_size([picture for row in rows for picture in row])
  line = _line_height(tile)
  lines = [[_fitted(picture, tile) for picture in row] for row in rows]
  width = max(p.shape[1] for row in lines for p in row)
  heights = [row[0].shape[0] for row in lines]
  paper = _paper(
    line + sum(heights) + _GAP * len(rows),
    (width + _GAP) * len(titles) - _GAP,
  )
  top = line
  for row, height in zip(lines, heights, strict=True):
    for column, picture in enumerate(row):
      left = column * (width + _GAP)
      paper[top : top + height, left : left + picture.shape[1]] = picture
    top += height + _GAP
  places = [(column * (width + _GAP), 1) for column in range(len(titles))]
  return _written(paper, places, titles, tile)


def tile_size(images: Sequence[UInt8[np.ndarray, '_ _ 3']]) -> int:
  """Side of the square into which `draw_grid` fits these pictures."""
  longest = max(max(picture.shape[:2]) for picture in images)
  return min(max(longest, _TILES[0]), _TILES[1])


def draw_legend(
  classes: Sequence[str], palette: Sequence[Color], width: int, tile: int
) -> UInt8[np.ndarray, 'height width 3']:
  """Names of classes beside their colors, in as many columns as fit.

  The letters are as large as those above tiles of the given side.
  """
  entries = [*zip(classes, palette, strict=True), ('no label', IGNORED)]
  line = _line_height(tile)
  box = line - 6
  longest = max(_font(tile).getlength(name) for name, _ in entries)
  column_width = int(longest) + box + 16
  num_columns = max(1, min(width // column_width, len(entries)))
  num_lines = math.ceil(len(entries) / num_columns)
  paper = _paper(num_lines * line, max(width, column_width))
  places = []
  for i, (_, color) in enumerate(entries):
    left = i // num_lines * column_width
    top = i % num_lines * line
    paper[top + 2 : top + 2 + box, left : left + box] = color
    places.append((left + box + 5, top))
  return _written(paper, places, [name for name, _ in entries], tile)


def stack_vertically(
  first: UInt8[np.ndarray, 'H W 3'], second: UInt8[np.ndarray, 'h w 3']
) -> UInt8[np.ndarray, 'height width 3']:
  """Two pictures, one below the other."""
  height = first.shape[0] + _GAP + second.shape[0]
  paper = _paper(height, max(first.shape[1], second.shape[1]))
  paper[: first.shape[0], : first.shape[1]] = first
  paper[-second.shape[0] :, : second.shape[1]] = second
  return paper


@dataclasses.dataclass(frozen=True)
class Example:
  """An image, its label map, and what was predicted."""

  image: UInt8[np.ndarray, 'H W 3']
  label: Int[np.ndarray, 'H W']
  prediction: Int[np.ndarray, 'H W']


def draw_panels(
  examples: Sequence[Example],
  classes: Sequence[str],
  palette: Sequence[Color],
) -> UInt8[np.ndarray, 'height width 3']:
  """Rows of input, label, prediction and error; the legend below them.

  The legend names the classes that are seen in the maps.
  """
  rows = [
    [
      example.image,
      colorize(example.label, palette),
      colorize(example.prediction, palette),
      draw_errors(example.label, example.prediction),
    ]
    for example in examples
  ]
  picture = draw_grid(rows, ('input', 'label', 'prediction', 'error'))
  maps = [m for e in examples for m in (e.label, e.prediction)]
  seen = [i for i in np.unique(np.concatenate([m.ravel() for m in maps]))]
  seen = [int(i) for i in seen if i >= 0][:_MOST_CLASSES]
  names = draw_legend(
    [classes[i] for i in seen],
    [palette[i] for i in seen],
    picture.shape[1],
    tile_size([example.image for example in examples]),
  )
  return stack_vertically(picture, names)


def write_png(path: files.Path, picture: UInt8[np.ndarray, 'H W 3']) -> None:
  """Writes a PNG."""
  encoded = io.BytesIO()
  PIL.Image.fromarray(picture).save(encoded, format='PNG')
  path.write_bytes(encoded.getvalue())


def _fitted(picture: np.ndarray, tile: int) -> np.ndarray:
  """Resized so that its longer side is `tile`."""
  factor = tile / max(picture.shape[:2])
  height, width = (max(1, round(n * factor)) for n in picture.shape[:2])
  # Enlarged pixels stay what they are; shrunk ones are averaged.
  rule = cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA
  return cv2.resize(picture, (width, height), interpolation=rule)


def _paper(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), _PAPER, np.uint8)


def _line_height(tile: int) -> int:
  return 18 * tile // 120


@functools.cache
def _font(tile: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
  return PIL.ImageFont.load_default(13 * tile // 120)


def _written(
  paper: np.ndarray,
  places: Sequence[tuple[int, int]],
  texts: Sequence[str],
  tile: int,
) -> np.ndarray:
  """The paper with texts at (left, top), in letters that suit the tiles."""
  image = PIL.Image.fromarray(paper)
  draw = PIL.ImageDraw.Draw(image)
  for place, text in zip(places, texts, strict=True):
    draw.text(place, text, _INK, _font(tile))
  return np.array(image)
