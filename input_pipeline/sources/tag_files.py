"""Classes of whole images: a table, a text file for each image, or folders.

  tags = read_image_tags(source / 'tags.csv', source / 'images', ids)
  tags['holiday/001']      # ('dog', 'person')

A table has a line `FILE,LABEL;LABEL` for each image, with a comma, tab or
semicolon behind the file; a head line `file,…` is left out. A folder of text
files has NAME.txt for each image, with a label a line or between commas.
Without either, an image has the name of the folder in the images that holds it.
An image without labels shows the background alone.
"""

import csv
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.sources import image_ids, text_files
from runtime import errors

Tags = Mapping[str, tuple[str, ...]]

_BETWEEN = re.compile(r'[;,\n\t|]')
_HEADS = ('file', 'filename', 'image', 'name', 'id', 'path')
_SUFFIXES = ('.csv', '.tsv', '.txt')
_FORM = 'FILE,LABEL;LABEL'
# Folders of splits, which are no classes.
_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test')


def read_image_tags(
  path: pathlib.Path | None, images: pathlib.Path, ids: Sequence[str]
) -> tuple[Tags, dict[str, errors.BadFile]]:
  """Reads the labels of images.

  Args:
    path: table, or folder of text files; None for folders of images.
    images: folder of the images, for messages.
    ids: ids of the images, their paths in the folder without suffix.

  Returns:
    The labels of the images that have some or an empty list of them, and a
    problem for each other image, both by id.

  Raises:
    UserError: the table or folder is missing or cannot be read.
  """
  if path is None:
    return _read_folders(images, ids)
  if path.is_dir():
    return _read_text_files(path, images, ids)
  return _read_table(path, images, ids)


def _read_folders(
  images: pathlib.Path, ids: Sequence[str]
) -> tuple[Tags, dict[str, errors.BadFile]]:
  tags, problems = {}, {}
  for each in ids:
    folder, _, name = each.partition('/')
    if name:
      tags[each] = (image_ids.compose_unicode(folder.strip()),)
    else:
      reason = (
        'is in no folder of a class: expected FOLDER/CLASS/NAME, or set tags '
        'to a table or a folder of text files'
      )
      problems[each] = errors.BadFile(images / each, reason)
  names = sorted({name for labels in tags.values() for name in labels})
  if names and all(name.lower() in _SPLITS for name in names):
    raise errors.UserError(
      f'tags: expected a folder of {images} for each class, got those of '
      f'splits, {", ".join(names)}: move the folders of the classes of one of '
      'them to a folder of images, or set tags to a table'
    )
  if len(names) == 1 and not problems:
    raise errors.UserError(
      f'tags: expected folders of several classes in {images}, got '
      f'{names[0]!r} alone, which tells no image from another: add images of '
      'another class or of `background`, or set tags to a table'
    )
  return tags, problems


def _read_text_files(
  folder: pathlib.Path, images: pathlib.Path, ids: Sequence[str]
) -> tuple[Tags, dict[str, errors.BadFile]]:
  tags, problems = {}, {}
  for each in ids:
    path = folder / f'{each}.txt'
    if path.is_file():
      tags[each] = _split_labels(_read(path))
    else:
      reason = f'has no tags {path}'
      problems[each] = errors.BadFile(images / each, reason)
  return tags, problems


def _read_table(
  path: pathlib.Path, images: pathlib.Path, ids: Sequence[str]
) -> tuple[Tags, dict[str, errors.BadFile]]:
  index, tags = image_ids.IdIndex(ids), {}
  for i, (line, name, labels) in enumerate(_rows(path)):
    if not i and name.lower() in _HEADS:
      continue
    indices = index.find(name)
    if len(indices) != 1:
      count = len(indices)
      got = f'{count} images of this name' if count else 'no such image'
      raise errors.UserError(
        errors.format_on_one_line(
          f'tags: {path}, row {line}: expected an image of {images}, got '
          f'{name!r}, {got}: write {_FORM}, with the folder of the image if '
          f'there are several, and a head line that begins with one of '
          f'{", ".join(_HEADS)}, or none'
        )
      )
    each = ids[indices[0]]
    if each in tags:
      raise errors.UserError(
        f'tags: {path}, row {line}: {name!r} is listed twice: remove one line'
      )
    tags[each] = _split_labels(labels)
  problems = {
    each: errors.BadFile(images / each, f'is not in the table {path}')
    for each in ids
    if each not in tags
  }
  return tags, problems


def _rows(path: pathlib.Path) -> Iterator[tuple[int, str, str]]:
  """Yields line, name and labels of each row that is not empty.

  Raises:
    UserError: the file has another ending, or a quote is not closed.
  """
  if path.suffix.lower() not in _SUFFIXES:
    there = '' if path.exists() else ', which does not exist'
    raise errors.UserError(
      f'tags: expected a folder of text files, or a table '
      f'({", ".join(_SUFFIXES)}), got {path}{there}'
    )
  text = _read(path)
  lines = csv.reader(
    io.StringIO(text),
    delimiter=_separator(text),
    skipinitialspace=True,
    strict=True,
  )
  try:
    for row in lines:
      if any(cell.strip() for cell in row):
        # Further columns are labels as well.
        yield lines.line_num, row[0].strip(), ';'.join(row[1:])
  except csv.Error as error:
    raise errors.UserError(
      f'tags: {path}, row {lines.line_num}: expected {_FORM}, each in a pair '
      f'of quotes or without any, got another use of quotes: {error}'
    ) from error


def _separator(text: str) -> str:
  """Returns what ends the name of a file; ',' if no line has a separator."""
  for line in text.splitlines():
    for each in '\t,;':
      if each in line:
        return each
  return ','


def _read(path: pathlib.Path) -> str:
  try:
    return text_files.decode_text_file(path.read_bytes())
  except OSError as error:
    raise errors.UserError(
      f'tags: cannot read {path}: {error.strerror or error}: give a table of '
      'FILE,LABEL;LABEL, or a folder of NAME.txt'
    ) from error
  except errors.UserError as error:
    raise errors.UserError(f'tags: {path} {error}') from error


def _split_labels(text: str) -> tuple[str, ...]:
  """Returns the different labels of a text, composed, in order."""
  labels = (image_ids.compose_unicode(x.strip()) for x in _BETWEEN.split(text))
  return tuple(dict.fromkeys(filter(None, labels)))
