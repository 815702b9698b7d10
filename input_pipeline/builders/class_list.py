"""The class list of a user's masks: a text file with a class per line."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from input_pipeline.builders import class_list_forms
from input_pipeline.sources import image_ids, mask_reader, masks, text_files
from runtime import errors

MAX_CLASSES = 2**15 - 2  # Class id + 1 must fit into int16.

_COLOR = r'#[0-9a-fA-F]{6}|\d+\s*,\s*\d+\s*,\s*\d+'


@dataclasses.dataclass(frozen=True)
class ClassList:
  """The classes of masks, and the values and colors that stand for them.

  Attributes:
    names: name of each class id.
    values: value of each class id in palette and gray masks.
    colors: color of each class id in RGB masks; empty if the list has no
      colors.
    ignored_values: values of pixels without a class.
    ignored_colors: colors of pixels without a class.
    notes: notes for the user on how the list was read, a sentence each.
  """

  names: tuple[str, ...]
  values: tuple[int, ...]
  colors: tuple[masks.Color, ...] = ()
  ignored_values: tuple[int, ...] = ()
  ignored_colors: tuple[masks.Color, ...] = ()
  notes: tuple[str, ...] = ()

  def reader(
    self, codes: str = 'auto', follow_exif: bool = False
  ) -> mask_reader.MaskReader:
    """Returns the reader of its masks.

    Args:
      codes: whether palette and gray masks are read by their values or by
        their colors, one of `mask_reader.CODES`.
      follow_exif: whether masks are turned by their own EXIF orientation.
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
  """Parses a color: 'R,G,B' or '#rrggbb'.

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
  """Parses the value or color of ignored pixels: '255' or '#ffffff'.

  Args:
    text: '' if no pixels are ignored, or a value, or a color.

  Returns:
    The value, the color, or None for ''.

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

  Lists of labelme, CVAT and Roboflow, tables with a head line, and lines of
  `VALUE NAME` are recognized by their form (`class_list_forms`), which `notes`
  name. A line whose value (its number, from 0, unless the list gives values)
  or color is `ignore` is not a class; the class ids of the lines below it are
  one less.

  Args:
    path: path of the text file.
    ignore: value or color of pixels without a class; None if there are none.

  Raises:
    UserError: the file cannot be read, or a line is wrong; the message names
      the line.
  """
  try:
    text = text_files.decode_text_file(path.read_bytes())
  except OSError as error:
    reason = error.strerror or error
    raise errors.UserError(
      f'classes: cannot read {path}: {reason}: give a text file with a class '
      'per line'
    ) from error
  except errors.UserError as error:
    raise errors.UserError(f'classes: {path} {error}') from error
  try:
    entries, note = class_list_forms.parse_class_list(text)
    lines = _read_lines(entries)
  except errors.UserError as error:
    raise errors.UserError(f'classes: {path}, {error}') from error
  notes = [f'classes: {path} {note}'] if note else []
  return _make_class_list(path, lines, ignore, notes)


@dataclasses.dataclass(frozen=True)
class _Line:
  """A line of a class list: name ('' for no class), value and color."""

  name: str
  value: int
  color: masks.Color | None


def _read_lines(entries: Sequence[class_list_forms.Entry]) -> list[_Line]:
  """Reads the colors, and numbers lines without a value by their position.

  Raises:
    UserError: two lines share a name, value or color, or a line is damaged; the
      message names the line, but not the file.
  """
  lines: list[_Line] = []
  names: set[str] = set()
  values: set[int] = set()
  colors: set[masks.Color] = set()
  for position, entry in enumerate(entries):
    where = f'line {entry.line}'
    name = image_ids.compose_unicode(entry.name)
    try:
      color = parse_class_color(entry.color) if entry.color else None
    except errors.UserError as error:
      raise errors.UserError(f'{where}: {error}') from error
    value = position if entry.value is None else entry.value
    if name in names:
      raise errors.UserError(
        f'{where}: {name!r} is listed twice: rename one of the two'
      )
    if value in values:
      raise errors.UserError(
        f'{where}: expected another value for each class, got {value} twice'
      )
    if color in colors:
      raise errors.UserError(
        f'{where}: expected another color for each class, got '
        f'{masks.format_mask_color(color)} twice'
      )
    if lines and (color is None) != (lines[0].color is None):
      raise errors.UserError(
        f'{where}: expected a color for every class or for none, got some'
      )
    if not 0 <= value < 2**16:
      raise errors.UserError(
        f'{where}: expected a value of 0 to 65535, got {value}'
      )
    lines.append(_Line(name, value, color))
    names.add(name)
    values.add(value)
    colors |= {color} if color else set()
  return lines


def _make_class_list(
  path: pathlib.Path,
  lines: Sequence[_Line],
  ignore: int | masks.Color | None,
  notes: Sequence[str],
) -> ClassList:
  """Builds the class list without the ignored lines."""
  has_colors = bool(lines) and lines[0].color is not None
  if isinstance(ignore, tuple) and not has_colors:
    raise errors.UserError(
      f'ignore: expected a value, as {path} has no colors, got the color '
      f'{masks.format_mask_color(ignore)}'
    )
  kept, ignored = [], []
  for line in lines:
    is_class = line.name and (
      ignore is None or ignore not in (line.value, line.color)
    )
    (kept if is_class else ignored).append(line)
  if not 0 < len(kept) <= MAX_CLASSES:
    raise errors.UserError(
      f'classes: expected 1 to {MAX_CLASSES} classes in {path}, got {len(kept)}'
    )
  # The value and the color of an ignored line are both ignored. `ignore` may
  # also be a value or color that is not in the list.
  values = [line.value for line in ignored]
  colors = [line.color for line in ignored if line.color]
  if isinstance(ignore, int) and ignore not in values:
    values.append(ignore)
  if isinstance(ignore, tuple) and ignore not in colors:
    colors.append(ignore)
  return ClassList(
    names=tuple(line.name for line in kept),
    values=tuple(line.value for line in kept),
    colors=tuple(line.color for line in kept if line.color),
    ignored_values=tuple(values),
    ignored_colors=tuple(colors),
    notes=tuple(
      map(errors.format_on_one_line, [*notes, *_ignored_notes(path, ignored)])
    ),
  )


def _ignored_notes(path: pathlib.Path, ignored: Sequence[_Line]) -> list[str]:
  """Returns a sentence for each named line that is ignored."""
  return [
    f'classes: {path}: {line.name!r}, value {line.value}, is no class, as it '
    'is that of ignore: its pixels are ignored'
    for line in ignored
    if line.name
  ]
