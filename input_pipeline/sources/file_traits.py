"""Oddities of the files of a split, counted and named.

  traits = TraitCounter()
  for sample in samples:
    traits.add(sample.id, sample.traits)
  print(traits.warnings(image_files.ImageOptions()))

They concern the set: an EXIF orientation, values that use a small part of their
range, and palettes that differ from mask to mask.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.sources import image_files, masks, records
from runtime import errors

# A warning names at most so many files.
_MAX_NAMED = 5
# Colors of a value that are kept, and values that a warning lists.
_MAX_COLORS = 8
_MAX_VALUES = 3
# Fewest bits that the largest value of a set has if nothing is wrong, by the
# bits per value.
_PLAUSIBLE_BITS = {16: 15, 8: 7}


@dataclasses.dataclass
class NameCounter:
  """Counts names and keeps the first few.

  Attributes:
    count: number of names.
    first: the first ones.
  """

  count: int = 0
  first: list[str] = dataclasses.field(default_factory=list)

  def add(self, name: str) -> None:
    """Counts a name, and keeps it if it is among the first."""
    self.merge(NameCounter(1, [name]))

  def merge(self, other: 'NameCounter') -> None:
    """Adds the names of another counter."""
    self.count += other.count
    self.first = [*self.first, *other.first][:_MAX_NAMED]

  def __str__(self):
    more = ', …' if self.count > len(self.first) else ''
    return ', '.join(self.first) + more


class TraitCounter:
  """Accumulates the traits of samples."""

  def __init__(self):
    self._turned = NameCounter()
    # By bits per value: number of images, and the largest value of all.
    self._depths: dict[int, tuple[int, int]] = {}
    # By value and color of palette masks whose colors do not count.
    self._palettes: dict[int, dict[int, NameCounter]] = {}

  def add(self, name: str, traits: records.Traits | None) -> None:
    """Adds the traits of the files of a sample.

    Args:
      name: id of the sample.
      traits: traits of its files; None if it is not read from files.
    """
    if traits is None:
      return
    if traits.orientation != image_files.UPRIGHT:
      self._turned.add(name)
    self._add_depth(traits.depth, 1, traits.peak)
    for value, color in traits.palette.items():
      self._add_color(value, color, NameCounter(1, [name]))

  def merge(self, state: Mapping[str, Any]) -> None:
    """Adds the samples of a state that `to_json` returned."""
    if not state:  # Written by an earlier version.
      return
    self._turned.merge(NameCounter(*state['turned']))
    for depth, (count, peak) in state['depths'].items():
      self._add_depth(int(depth), count, peak)
    for value, colors in state['palettes'].items():
      for color, names in colors.items():
        self._add_color(int(value), int(color), NameCounter(*names))

  def to_json(self) -> dict[str, Any]:
    """Returns the state as JSON values."""

    def listed(names: NameCounter) -> list[Any]:
      return [names.count, names.first]

    return {
      'turned': listed(self._turned),
      'depths': {str(k): list(v) for k, v in self._depths.items()},
      'palettes': {
        str(value): {str(color): listed(n) for color, n in colors.items()}
        for value, colors in self._palettes.items()
      },
    }

  def warnings(self, options: image_files.ImageOptions) -> list[str]:
    """Describes what is odd about the files, a line each.

    Args:
      options: options with which the images were read.
    """
    return [
      *self._warn_of_orientations(options),
      *self._warn_of_ranges(options),
      *self._warn_of_palettes(),
    ]

  def _add_depth(self, depth: int, count: int, peak: int) -> None:
    before, highest = self._depths.get(depth, (0, 0))
    self._depths[depth] = before + count, max(highest, peak)

  def _add_color(self, value: int, color: int, names: NameCounter) -> None:
    colors = self._palettes.setdefault(value, {})
    if color in colors or len(colors) < _MAX_COLORS:
      colors.setdefault(color, NameCounter()).merge(names)

  def _warn_of_orientations(
    self, options: image_files.ImageOptions
  ) -> Sequence[str]:
    if not self._turned.count:
      return ()
    reading = (
      'pixels are read as stored; if the masks are as viewers show them, set '
      'follow_exif=True'
    )
    if options.follow_exif:
      reading = 'pixels are turned, as viewers show them'
    count = errors.format_count(self._turned.count, 'image is', 'images are')
    return [f'{count} turned by an EXIF tag: {reading} ({self._turned})']

  def _warn_of_ranges(self, options: image_files.ImageOptions) -> Sequence[str]:
    lines = []
    for depth, (count, peak) in self._depths.items():
      bits = peak.bit_length()
      if depth == 16 and options.image_depth < 16:
        continue
      if depth in _PLAUSIBLE_BITS and bits < _PLAUSIBLE_BITS[depth]:
        images = errors.format_count(
          count, f'image of {depth} bits holds', f'images of {depth} bits hold'
        )
        line = f'the {images} values up to {peak:,} of {2**depth - 1:,}'
        if depth == 16:
          line += (
            f': training sees at most {peak >> 8} of 255; set '
            f'image_depth={max(bits, 8)} if these are all of the range'
          )
        lines.append(line)
    return lines

  def _warn_of_palettes(self) -> Sequence[str]:
    differing = {v: c for v, c in self._palettes.items() if len(c) > 1}
    if not differing:
      return ()
    listed = '; '.join(
      f'value {value} is '
      + ', '.join(_describe_color(*item) for item in colors.items())
      for value, colors in sorted(differing.items())[:_MAX_VALUES]
    )
    more = '; …' if len(differing) > _MAX_VALUES else ''
    return [
      f'the palettes of the masks differ: {listed}{more}: their values count, '
      'as the class list has no colors; if the colors are right, write the '
      'lines of the list as `name R,G,B`'
    ]


def _describe_color(color: int, names: NameCounter) -> str:
  """Formats a color with the number and names of the masks that have it."""
  formatted = masks.format_mask_color(masks.decode_mask_color(color))
  count = errors.format_count(names.count, 'mask', 'masks')
  return f'{formatted} in {count} ({names})'
