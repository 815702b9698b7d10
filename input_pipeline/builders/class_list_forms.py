"""The forms in which tools write class lists.

  text = '# label:color_rgb:parts:actions\nsky:0,0,9::\n'
  entries, note = parse_class_list(text)
  entries  # [Entry(line=2, name='sky', color=(0, 0, 9))]
  note     # "is read as CVAT's labelmap: NAME:R,G,B:parts:actions"

A form is recognized by all lines of a list, never by its file name. Lines that
are no class, as a head line, take no value from those that are.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Sequence

from runtime import errors

# Value of -1 in the 8-bit masks of labelme, its `__ignore__`.
LABELME_IGNORED = 255

_HEX = r'#[0-9a-fA-F]{6}'
_SEPARATOR = r'\s*[,;]\s*|\s+'
_RGB = rf'\d+(?:{_SEPARATOR})\d+(?:{_SEPARATOR})\d+'
_NAME_COLOR = re.compile(
  rf'(?P<name>.*?\S)(?:(?P<gap>\s*[,;:]\s*|\s+)(?P<color>{_HEX}|{_RGB}))?'
)
_ENDS_WITH_NUMBER = re.compile(r'.*[\s,;:]\d+')
_RGB_NAME = re.compile(rf'(?P<color>{_RGB})(?:{_SEPARATOR})(?P<name>\D.*)')
_VALUE_NAME = re.compile(
  r'(?P<value>\d+)(?:\s*[:,;=]\s*|\s+)(?P<name>\D.*)', re.DOTALL
)
_NAME_VALUE = re.compile(
  r'(?!#|//|% )'
  r'(?P<name>[^,;:=\t]*[^,;:=\t\d\s][^,;:=\t]*?)\s*[,;:=\t]\s*(?P<value>\d+)'
)
# With spaces, names must be without digits: `lane 1` may be a name.
_WORDS_VALUE = re.compile(
  r'(?!#|//|% )(?P<name>[^\d,;:=]*[^\d,;:=\s])\s+(?P<value>\d+)'
)
_MARKS_OF_COMMENTS = ('#', '//', '% ')
_CVAT_HEAD = re.compile(r'#\s*label\s*:\s*color_rgb\b.*')
_CVAT_LINE = re.compile(
  r'(?P<name>[^:]*\S[^:]*):(?P<color>\s*\d+\s*,\s*\d+\s*,\s*\d+\s*)?'
  r':[^:]*:[^:]*'
)

# Column of a table by the words of its head line.
_COLUMNS = {
  'name': 'name', 'names': 'name', 'class': 'name', 'classes': 'name',
  'class name': 'name', 'classname': 'name', 'label': 'name',
  'labels': 'name', 'label name': 'name', 'category': 'name',
  'categories': 'name', 'category name': 'name', 'class names': 'name',
  'label names': 'name', 'category names': 'name',
  'value': 'value', 'pixel value': 'value', 'pixel': 'value',
  'id': 'value', 'index': 'value', 'idx': 'value', 'number': 'value',
  'class number': 'value', 'class value': 'value', 'mask value': 'value',
  'class id': 'value', 'label id': 'value',
  'class index': 'value', 'category id': 'value',
  'r': 'red', 'red': 'red', 'g': 'green', 'green': 'green', 'b': 'blue',
  'blue': 'blue', 'color': 'color', 'colour': 'color', 'rgb': 'color',
  'color rgb': 'color', 'hex': 'color',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of a class list.

  Attributes:
    line: number of the line, from 1.
    name: name of the class; '' if pixels of the value have no class.
    value: value of the class in masks; None for its position among the lines.
    color: color in RGB masks, as 'R,G,B' or '#rrggbb'; '' without one.
  """

  line: int
  name: str
  value: int | None = None
  color: str = ''


# Numbers and texts of the lines that are not empty.
Lines = Sequence[tuple[int, str]]
Form = Callable[[Lines], tuple[list[Entry], str] | None]


def parse_class_list(text: str) -> tuple[list[Entry], str]:
  """Parses the text of a class list.

  Returns:
    The classes in order; and a sentence that names the form, '' for plain
    lines `name` or `name R,G,B`.

  Raises:
    UserError: a line is wrong, which is named; without the file's name.
  """
  lines = [
    (number, line.strip())
    for number, line in enumerate(text.rstrip().split('\n'), 1)
  ]
  filled = [(number, line) for number, line in lines if line]
  if not filled:
    return [], ''
  if re.match(r'[\[{]|<\?xml|---|item\s*\{', filled[0][1]) or (
    filled[-1][1].startswith('- ')
  ):
    raise errors.UserError(
      'line 1: expected a text file with a class per line, got JSON, XML, YAML '
      'or a label map: write the names alone, one a line'
    )
  for form in _FORMS:
    if (parsed := form(filled)) is not None:
      return parsed
  empty = next((number for number, line in lines if not line), None)
  if empty is not None:
    raise errors.UserError(
      f'line {empty}: expected a class, as line i names value i of the masks, '
      'got an empty line'
    )
  return _parse_plain(filled)


def _parse_cvat(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses `NAME:R,G,B:parts:actions`, with comments."""
  classes = [(n, line) for n, line in lines if not line.startswith('#')]
  matches = [(n, _CVAT_LINE.fullmatch(line)) for n, line in classes]
  if not classes or not all(match for _, match in matches):
    if any(_CVAT_HEAD.fullmatch(line) for _, line in lines):
      number = next((n for n, match in matches if not match), lines[0][0])
      raise errors.UserError(
        f'line {number}: expected NAME:R,G,B:parts:actions, as the head line '
        'is that of a labelmap of CVAT'
      )
    return None
  entries = [
    Entry(n, match['name'].strip(), color=(match['color'] or '').strip())
    for n, match in matches
  ]
  return entries, "is read as CVAT's labelmap, NAME:R,G,B:parts:actions"


def _parse_labelme(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses labelme's labels.txt, whose first line is value -1."""
  names = [line for _, line in lines]
  if '__ignore__' not in names:
    return None
  if names.index('__ignore__'):
    raise errors.UserError(
      f'line {lines[names.index("__ignore__")][0]}: expected `__ignore__` as '
      "the first line, as in labelme's labels.txt, or nowhere"
    )
  entries = [Entry(lines[0][0], '', LABELME_IGNORED)]
  entries += [
    Entry(number, 'background' if name == '_background_' else name, value)
    for value, (number, name) in enumerate(lines[1:])
  ]
  return entries, (
    "is read as labelme's labels.txt: `__ignore__` is value "
    f'{LABELME_IGNORED} and no class, the line below it is value 0'
  )


def _parse_table(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses a table whose first line names its columns."""
  number, head = lines[0]
  for delimiter in (',', '\t', ';', None):
    words = _fields(head, delimiter)
    columns = [
      _COLUMNS.get(' '.join(re.split(r'[\s_]+', word.casefold())))
      for word in words
    ]
    known = [column for column in columns if column]
    if 'name' in known and len({*known}) > 1:
      break
  else:
    return None
  if None in columns or len(known) != len(set(known)):
    raise errors.UserError(
      f'line {number}: expected columns of a name, a value and a color '
      '(name, value, r, g, b), each at most once, got '
      f'{", ".join(words)}: leave the others out'
    )
  entries = [_table_entry(n, line, delimiter, known) for n, line in lines[1:]]
  return entries, f'is read as a table of {", ".join(words)}'


def _table_entry(
  number: int, line: str, delimiter: str | None, columns: Sequence[str]
) -> Entry:
  fields = _fields(line, delimiter)
  # Colors may be written with the delimiter of the table.
  if columns[-1] == 'color' and len(fields) == len(columns) + 2:
    fields[-3:] = [','.join(fields[-3:])]
  if len(fields) != len(columns):
    raise errors.UserError(
      f'line {number}: expected {len(columns)} fields, as the head line has, '
      f'got {len(fields)}'
    )
  row = dict(zip(columns, fields, strict=True))
  if not row['name']:
    raise errors.UserError(f'line {number}: expected a name, got none')
  value = row.get('value')
  if value is not None and not re.fullmatch(r'\d+', value):
    raise errors.UserError(
      f'line {number}: expected a value of the masks, got {value!r}'
    )
  color = row.get('color', '')
  if channels := [row[c] for c in ('red', 'green', 'blue') if c in row]:
    color = ','.join(channels)
  return Entry(
    number, row['name'], None if value is None else int(value), color
  )


def _fields(line: str, delimiter: str | None) -> list[str]:
  if delimiter is None:
    return line.split()
  [row] = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
  return [field.strip() for field in row]


def _parse_rgb_name(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses `R G B NAME`."""
  matches = [_RGB_NAME.fullmatch(line) for _, line in lines]
  if not all(matches):
    return None
  entries = [
    Entry(number, match['name'].strip(), color=_comma_separated(match['color']))
    for (number, _), match in zip(lines, matches, strict=True)
  ]
  return entries, 'is read as lines of R G B NAME'


def _parse_value_name(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses `VALUE NAME` with or without a color; of one line, `VALUE: NAME`."""
  matches = [_VALUE_NAME.fullmatch(line) for _, line in lines]
  if not all(matches) or (
    len(lines) == 1 and not re.match(r'\d+\s*[:,;=]', lines[0][1])
  ):
    return None
  entries = []
  for (number, _), match in zip(lines, matches, strict=True):
    name, color = _split_color(number, match['name'])
    entries.append(Entry(number, name, int(match['value']), color))
  return entries, 'is read as lines of VALUE NAME'


def _parse_name_value(lines: Lines) -> tuple[list[Entry], str] | None:
  """Parses `NAME,VALUE`; with spaces if names and values all differ."""
  matches = [_NAME_VALUE.fullmatch(line) for _, line in lines]
  if not all(matches):
    matches = [_WORDS_VALUE.fullmatch(line) for _, line in lines]
    if len(lines) == 1 or not all(matches):
      return None
    for field in ('name', 'value'):
      if len({match[field] for match in matches}) < len(matches):
        return None
  entries = [
    Entry(number, match['name'].strip(), int(match['value']))
    for (number, _), match in zip(lines, matches, strict=True)
  ]
  return entries, 'is read as lines of NAME VALUE'


def _parse_plain(lines: Lines) -> tuple[list[Entry], str]:
  """Parses `NAME` or `NAME R,G,B`, below comments and a head line."""
  start = 0
  while start < len(lines) and lines[start][1].startswith(_MARKS_OF_COMMENTS):
    start += 1
  if start < len(lines) and _is_head(lines[start][1]):
    start += 1
  for number, line in lines[start:]:
    if line.startswith(_MARKS_OF_COMMENTS):
      raise errors.UserError(
        f'line {number}: expected comments above the classes only, as line i '
        f'names value i, got {line!r}: remove it, or write every line as '
        'VALUE: NAME'
      )
  for form in _FORMS if 0 < start < len(lines) else ():
    if (parsed := form(lines[start:])) is not None:
      return parsed
  entries = [
    Entry(number, name, color=color)
    for number, line in lines[start:]
    for name, color in [_split_color(number, line)]
  ]
  note = ''
  if start:
    skipped = ', '.join(f'`{line}`' for _, line in lines[:start])
    note = f'is read without its head, {skipped}: the line below is value 0'
  return entries, note


def _is_head(line: str) -> bool:
  """Returns whether a line is the title of a list of names, as 'Class Name'."""
  words = ' '.join(re.split(r'[\s_]+', line.casefold().rstrip(':').strip()))
  return _COLUMNS.get(words) == 'name'


def _split_color(number: int, line: str) -> tuple[str, str]:
  """Splits a line into name and color, which is '' if there is none."""
  match = _NAME_COLOR.fullmatch(line)
  assert match is not None  # The line is not empty.
  name, color = match['name'].strip(), match['color'] or ''
  # `light 2 0,0,9` is the name `light 2`; `light 2,0,0,9` has four numbers.
  if (
    color
    and not color.startswith('#')
    and _ENDS_WITH_NUMBER.fullmatch(name)
    and (match['gap'].strip() or ',' not in color)
  ):
    raise errors.UserError(
      f'line {number}: expected a name, or a name and a color R,G,B, got '
      f'{line!r} with more numbers'
    )
  return name, _comma_separated(color)


def _comma_separated(color: str) -> str:
  return ','.join(re.split(_SEPARATOR, color)) if color else ''


_FORMS: tuple[Form, ...] = (
  _parse_cvat,
  _parse_labelme,
  _parse_table,
  _parse_rgb_name,
  _parse_value_name,
  _parse_name_value,
)
