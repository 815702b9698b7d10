"""Class ids of a user's masks, by colors or by values.

Where a class list has colors, palette masks count by the colors of their
palettes, which tools reorder when they save. A gray mask counts by color if all
of its grays are colors of the list, by value if all of its values are lines of
the list; if both hold and differ, the mask is refused.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16

from input_pipeline import batch
from input_pipeline.sources import archives, masks
from runtime import errors

# Values of `codes`: colors where the list has them, always values, or always
# colors.
CODES = ('auto', 'values', 'colors')


@dataclasses.dataclass(frozen=True)
class MaskReader:
  """Reads masks as class ids.

  Attributes:
    names: name of each class id.
    values: value of each class id in palette and gray masks.
    colors: color of each class id; empty if the class list has no colors.
    ignored_values: values of pixels without a class: first those that lines
      of the class list ignore, then others.
    ignored_colors: colors of pixels without a class, in the same order.
    codes: one of `CODES`: whether a palette or gray mask is read by its
      values or by their colors.
    follow_exif: whether masks are turned by their own EXIF orientation.
  """

  names: Sequence[str]
  values: Sequence[int]
  colors: Sequence[masks.Color] = ()
  ignored_values: Sequence[int] = ()
  ignored_colors: Sequence[masks.Color] = ()
  codes: str = 'auto'
  follow_exif: bool = False

  def read(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads the class ids of a mask file, -1 where ignored.

    Raises:
      UserError: the mask is damaged, has other values or colors, or its values
        and colors contradict each other; the message does not name the file.
    """
    return self.class_ids(self.read_stored(file))

  def read_stored(self, file: archives.File) -> masks.StoredMask:
    """Reads the values that a mask file stores.

    Raises:
      UserError: the mask is damaged; the message does not name the file.
    """
    return masks.read_stored_mask(file, follow_exif=self.follow_exif)

  def class_ids(self, mask: masks.StoredMask) -> Int16[np.ndarray, 'H W']:
    """Returns the class ids of a mask, -1 where ignored.

    Raises:
      UserError: as `read`, but for damage.
    """
    if mask.palette is None:
      if not self.colors:
        raise errors.UserError(
          'expected values, as the class list has no colors, got an RGB mask: '
          'write the lines of the list as `name R,G,B`, or save the mask with '
          'a palette'
        )
      return self._by_color.apply(masks.encode_mask_colors(mask.pixels))
    if not self.colors or self.codes == 'values':
      return self._by_value.apply(mask.pixels)
    if mask.is_gray:
      return self._apply_gray(mask)
    return self._apply_palette(mask)

  @functools.cached_property
  def _by_value(self) -> masks.CodeTable:
    return masks.make_code_table(self.values, self.ignored_values)

  @functools.cached_property
  def _by_color(self) -> masks.CodeTable:
    return masks.make_code_table(
      map(masks.encode_mask_color, self.colors),
      map(masks.encode_mask_color, self.ignored_colors),
      self.names,
    )

  @property
  def _ignored_beside_list(self) -> tuple[int, ...]:
    """Returns the ignored values without a line, so without a color."""
    return tuple(self.ignored_values)[len(self.ignored_colors) :]

  def _apply_palette(self, mask: masks.StoredMask) -> Int16[np.ndarray, 'H W']:
    """Returns class ids by the colors of a palette."""
    if (largest := int(mask.pixels.max())) >= len(mask.palette):
      raise errors.UserError(
        f'expected values below {len(mask.palette)}, the number of colors of '
        f'its palette, got {largest}'
      )
    # Whatever their color: such a value was given by itself.
    ignored = np.isin(mask.pixels, self._ignored_beside_list)
    known = masks.encode_mask_color(self.colors[0])
    codes = np.where(ignored, known, mask.palette[mask.pixels])
    try:
      ids = self._by_color.apply(codes)
    except errors.UserError as error:
      raise errors.UserError(
        f'{error}; the colors of its palette count, as the class list has '
        "colors: mask_codes='values' reads the values instead"
      ) from error
    return np.where(ignored, batch.IGNORE, ids).astype(np.int16)

  def _apply_gray(self, mask: masks.StoredMask) -> Int16[np.ndarray, 'H W']:
    """Returns class ids by the grays or by the values, whichever fit."""
    gray, by_value = self._gray_table(), self._by_value
    colors = [*self.colors, *self.ignored_colors]
    all_gray = all(masks.is_gray_color(color) for color in colors)
    used = mask.used_values()
    fits_gray = gray.covers(mask.palette[used])
    fits_value = by_value.covers(used)
    if fits_gray and fits_value and self.codes == 'auto':
      self._refuse_contradiction(mask, used, by_value, gray, all_gray)
    # Values beside grays are safe while no number means two classes.
    values_allowed = not all_gray or not any(
      by_value.ids.get(code // masks.GRAY, i) != i
      for code, i in gray.ids.items()
    )
    if fits_gray or self.codes == 'colors':
      return gray.apply(mask.palette[mask.pixels])
    if values_allowed and (fits_value or not all_gray):
      return by_value.apply(mask.pixels)
    return gray.apply(mask.palette[mask.pixels])

  def _gray_table(self) -> masks.CodeTable:
    """Returns the class ids of the grays among the colors of the list."""
    ids = {
      value * masks.GRAY: batch.IGNORE
      for value in self._ignored_beside_list
      if value <= 255
    }
    ids |= {
      code: i for code, i in self._by_color.ids.items() if not code % masks.GRAY
    }
    return masks.CodeTable(ids, self.names)

  def _refuse_contradiction(
    self,
    mask: masks.StoredMask,
    used: np.ndarray,
    by_value: masks.CodeTable,
    gray: masks.CodeTable,
    all_gray: bool,
  ) -> None:
    """Refuses a mask of which a value is one class and its gray another.

    Colors win where gray masks can show all of them, except over a value that
    was given as ignored by itself.
    """
    for value in used.tolist():
      first = by_value.ids[value]
      second = gray.ids[int(mask.palette[value])]
      if first != second and (
        not all_gray or value in self._ignored_beside_list
      ):
        count = errors.format_count(
          int(np.count_nonzero(mask.pixels == value)), 'pixel', 'pixels'
        )
        raise errors.UserError(
          f'gray {value} ({count}) is {self._describe(first)} as a '
          f'value and {self._describe(second)} as a color: set '
          "mask_codes='values' or 'colors'"
        )

  def _describe(self, class_id: int) -> str:
    return 'ignored' if class_id < 0 else repr(self.names[class_id])
