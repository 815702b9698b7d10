"""A picture of shares as horizontal bars."""

import math
from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

_FONT_SIZE, _LINE, _MARGIN = 13, 20, 10
# Pixels of a bar of 100 %, and of the number beside it.
_WIDTH, _NUMBER_WIDTH = 240, 70
_BAR, _TRACK, _TEXT = (31, 119, 180), (236, 236, 236), (32, 32, 32)


def draw_bar_chart(
  groups: Mapping[str, Mapping[str, float]],
) -> UInt8[np.ndarray, 'height width 3']:
  """Draws groups of bars under headings, each with its name and its percentage.

  Args:
    groups: shares by name, by the heading of their group. A bar has at least 0
      and at most 100 % of the width, whatever its share; NaN has none.
  """
  font = PIL.ImageFont.load_default(_FONT_SIZE)
  names = [name for bars in groups.values() for name in bars]
  left = 2 * _MARGIN + int(max(map(font.getlength, names), default=0))
  heading = int(max(map(font.getlength, groups), default=0))
  width = max(left + _WIDTH + _NUMBER_WIDTH, heading + _MARGIN) + _MARGIN
  num_lines = sum(len(bars) + 1 for bars in groups.values())
  height = num_lines * _LINE + (len(groups) + 1) * _MARGIN
  picture = PIL.Image.new('RGB', (width, height), (255, 255, 255))
  draw = PIL.ImageDraw.Draw(picture)
  top = _MARGIN
  for title, bars in groups.items():
    middle = top + _LINE // 2
    draw.text((_MARGIN, middle), title, _TEXT, font, anchor='lm')
    for i, (name, share) in enumerate(bars.items(), 1):
      _draw_bar(draw, font, left, top + i * _LINE, name, share)
    top += (len(bars) + 1) * _LINE + _MARGIN
  return np.asarray(picture)


def _draw_bar(
  draw: PIL.ImageDraw.ImageDraw,
  font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont,
  left: int,
  top: int,
  name: str,
  share: float,
) -> None:
  """Draws one bar, with its name to the left and its number to the right."""
  middle, bottom = top + _LINE // 2, top + _LINE - 4
  draw.text((left - _MARGIN, middle), name, _TEXT, font, anchor='rm')
  draw.rectangle((left, top + 3, left + _WIDTH - 1, bottom), fill=_TRACK)
  text = '-' if math.isnan(share) else f'{100 * share:.1f} %'
  length = 0 if math.isnan(share) else round(_WIDTH * min(max(share, 0), 1))
  if length:
    draw.rectangle((left, top + 3, left + length - 1, bottom), fill=_BAR)
  draw.text((left + _WIDTH + 8, middle), text, _TEXT, font, anchor='lm')
