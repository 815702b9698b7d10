"""The class list of a user's masks: a text file with a class per line."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from input_pipeline.sources import mask_reader, masks
from runtime import errors

MAX_CLASSES = 2**15 - 2  # Class id + 1 must fit into int16.

_COLOR = r'#[0-9a-fA-F]{6}|\d+\s*,\s*\d+\s*,\s*\d+'
_CLASS_LINE = re.compile(rf'(?P<name>.*?\S)(?:\s+(?P<color>{_COLOR}))?\s*')


@dataclasses.dataclass(frozen=True)
class ClassList:
  """The classes of masks, and the values and colors that stand for them.

  Attributes:
    names: of each class id.
    values: of each class id in palette and gray masks.
    colors: of each class id in RGB masks; empty if the list has no colors.
    ignored_values: values of pixels without a class.
    ignored_colors: colors of pixels without a class.
  """

  names: tuple[str, ...]
  values: tuple[int, ...]
  colors: tuple[masks.Color, ...] = ()
  ignored_values: tuple[int, ...] = ()
  ignored_colors: tuple[masks.Color, ...] = ()

  def reader(
    self, codes: str = 'auto', follow_exif: bool = False
  ) -> mask_reader.MaskReader:
    """Returns the reader of its masks.

    Args:
      codes: what palette and gray masks count by, one of `mask_reader.CODES`.
      follow_exif: turn masks that have an EXIF orientation of their own.
    """
    return mask_reader.MaskReader(
      self.names,
      self.values,
      self.colors,
      self.ignored_values,
      self.ignored_colors,
      codes,
      follow_exif,
    )


def parse_class_color(text: str) -> masks.Color:
  """Parses 'R,G,B' or '#rrggbb'.

  Raises:
    UserError: the text has another form.
  """
  text = text.strip()
  if re.fullmatch(_COLOR, text):
    if text.startswith('#'):
      return masks.decode_mask_color(int(text[1:], 16))
    red, green, blue = (int(part) for part in text.split(','))
    if max(red, green, blue) <= 255:
      return red, green, blue
  raise errors.UserError(
    f'expected a color, R,G,B of 0 to 255 each or #rrggbb, got {text!r}'
  )


def parse_ignored_mask_value(text: str) -> int | masks.Color | None:
  """Parses `ignore` of a command line: '', '255', '255,255,255', '#ffffff'.

  Raises:
    UserError: the text has another form.
  """
  text = text.strip()
  if not text:
    return None
  if re.fullmatch(r'\d+', text):
    return int(text)
  try:
    return parse_class_color(text)
  except errors.UserError:
    raise errors.UserError(
      'ignore: expected a value as 255, or a color as 255,255,255 or #ffffff, '
      f'got {text!r}'
    ) from None


def read_class_list(
  path: pathlib.Path, ignore: int | masks.Color | None = None
) -> ClassList:
  """Reads a class list: `name`, `name R,G,B` or `name #rrggbb` per line.

  A line whose value (its number, from 0) or color is `ignore` is not a class;
  the class ids of the lines below it are one less than their values.

  Raises:
    UserError: the file cannot be read, or a line is wrong, which is named.
  """
  try:
    lines = path.read_text('utf-8-sig').rstrip().splitlines()
  except OSError as error:
    reason = error.strerror or error
    raise errors.UserError(
      f'classes: cannot read {path}: {reason}: give a text file with a class '
      'per line'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'classes: {path} is not UTF-8 text: save it as UTF-8'
    ) from error
  names, colors = [], []
  for number, line in enumerate(lines, 1):
    where = f'classes: {path}, line {number}'
    match = _CLASS_LINE.fullmatch(line.strip())
    if match is None:
      raise errors.UserError(
        f'{where}: expected a class, as line i names value i of the masks, got '
        'an empty line'
      )
    names.append(match['name'])
    try:
      colors.append(match['color'] and parse_class_color(match['color']))
    except errors.UserError as error:
      raise errors.UserError(f'{where}: {error}') from error
    if names[-1] in names[:-1]:
      raise errors.UserError(
        f'{where}: {names[-1]!r} is listed twice: rename one of the two'
      )
    if colors[-1] and colors[-1] in colors[:-1]:
      raise errors.UserError(
        f'{where}: expected another color for each class, got '
        f'{masks.format_mask_color(colors[-1])} twice'
      )
    if (colors[-1] is None) != (colors[0] is None):
      raise errors.UserError(
        f'{where}: expected a color for every class or for none, got some'
      )
  return _make_class_list(path, names, [c for c in colors if c], ignore)


def _make_class_list(
  path: pathlib.Path,
  names: Sequence[str],
  colors: Sequence[masks.Color],
  ignore: int | masks.Color | None,
) -> ClassList:
  """Builds the class list without the ignored line."""
  if isinstance(ignore, tuple) and not colors:
    raise errors.UserError(
      f'ignore: expected a value, as {path} has no colors, got the color '
      f'{masks.format_mask_color(ignore)}'
    )
  values = range(len(names))
  kept = [i for i in values if ignore not in (i, *colors[i : i + 1])]
  ignored = [i for i in values if i not in kept]
  if not 0 < len(kept) <= MAX_CLASSES:
    raise errors.UserError(
      f'classes: expected 1 to {MAX_CLASSES} classes in {path}, got {len(kept)}'
    )
  # The value and the color of an ignored line are both ignored. `ignore` may
  # also be a value or color that is not in the list.
  ignored_values = ignored or ([ignore] if isinstance(ignore, int) else [])
  ignored_colors = (
    [colors[i] for i in ignored if colors]
    if ignored
    else [ignore] * isinstance(ignore, tuple)
  )
  return ClassList(
    names=tuple(names[i] for i in kept),
    values=tuple(kept),
    colors=tuple(colors[i] for i in kept) if colors else (),
    ignored_values=tuple(ignored_values),
    ignored_colors=tuple(ignored_colors) if colors else (),
  )
