"""A picture of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Int64, UInt8

# Matrices of more classes have no names, and smaller cells.
_MAX_NAMED = 60
# Side of the matrix that decides the size of its cells, in pixels.
_SIDE, _MIN_CELL, _MAX_CELL = 720, 2, 44
# Cells of this many pixels have their number in percent.
_MIN_CELL_OF_NUMBER = 30
_DARK, _TEXT = (8, 48, 107), (32, 32, 32)
_MARGIN = 8


def draw_confusion(
  counts: Int64[np.ndarray, 'C C'], classes: Sequence[str]
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws the share of each label's pixels (a row) by predicted class.

  Args:
    counts: number of pixels by label (rows) and predicted class (columns).
    classes: names of the classes.
  """
  labeled = counts.sum(axis=1, keepdims=True)
  shares = counts / np.maximum(labeled, 1)
  cell = int(np.clip(_SIDE // len(classes), _MIN_CELL, _MAX_CELL))
  font = PIL.ImageFont.load_default(max(9, min(13, cell - 2)))
  named = len(classes) <= _MAX_NAMED
  texts = [_draw_name(name, font) for name in classes] if named else []
  edge = max((text.width for text in texts), default=0) + 2 * _MARGIN
  heading = _draw_name('rows: label, columns: prediction, % of the label', font)
  top = edge + heading.height + _MARGIN
  side = cell * len(classes)
  picture = PIL.Image.new(
    'RGB',
    (max(edge + side, heading.width) + 2 * _MARGIN, top + side + _MARGIN),
    (255, 255, 255),
  )
  picture.paste(heading, (_MARGIN, _MARGIN))
  colors = 255 + shares[..., None] * (np.array(_DARK) - 255)
  cells = PIL.Image.fromarray(np.rint(colors).astype(np.uint8))
  picture.paste(
    cells.resize((side, side), PIL.Image.Resampling.NEAREST), (edge, top)
  )
  for i, text in enumerate(texts):
    center = i * cell + (cell - text.height) // 2
    picture.paste(text, (edge - _MARGIN - text.width, top + center))
    upright = text.rotate(90, expand=True)
    picture.paste(upright, (edge + center, top - _MARGIN - upright.height))
  draw = PIL.ImageDraw.Draw(picture)
  draw.rectangle((edge, top, edge + side, top + side), outline=(160, 160, 160))
  if cell >= _MIN_CELL_OF_NUMBER:
    for i, j in np.argwhere(shares >= 0.005):
      color = (255, 255, 255) if shares[i, j] > 0.5 else _TEXT
      position = (edge + (j + 0.5) * cell, top + (i + 0.5) * cell)
      draw.text(position, f'{100 * shares[i, j]:.0f}', color, font, anchor='mm')
  return np.asarray(picture)


def _draw_name(text: str, font) -> PIL.Image.Image:
  """Draws a text on white, as large as it is."""
  left, top, right, bottom = (int(n) for n in font.getbbox(text))
  image = PIL.Image.new('RGB', (right - left + 1, bottom - top + 2), 'white')
  PIL.ImageDraw.Draw(image).text((-left, -top), text, _TEXT, font)
  return image
