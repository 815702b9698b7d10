"""Builders of data sets whose records are read from files.

The data set of a published benchmark is an `OfficialBuilder`: it declares the
names of its archives, the paths of images and masks in them, and the official
number of images.
"""

import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epy
from jaxtyping import Int16

from input_pipeline.builders import base, official_files
from input_pipeline.sources import archives, audit, pairing, records, text_files
from runtime import errors

with epy.lazy_imports():
  import scipy.io

# Files by their path in a source, or by id.
Files = Mapping[str, archives.File]


class FileBuilder(base.Builder):
  """A builder whose sources are `pairing.Example`s."""

  # Set per instance, once the files are listed.
  _listings: Mapping[str, pairing.Listing] | None = None

  def scan(self) -> Mapping[str, pairing.Listing]:
    """Lists the files of each split; opens none of them.

    Raises:
      UserError: a folder or file is missing.
    """
    raise NotImplementedError

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads the class ids of a mask, negative where ignored.

    Raises:
      UserError: the mask cannot be used; the message does not name the file.
    """
    raise NotImplementedError

  def listings(self) -> Mapping[str, pairing.Listing]:
    """Returns the files of each split, which are listed on the first call."""
    if self._listings is None:
      self._listings = self.scan()
    return self._listings

  def sources(self) -> Mapping[str, Sequence[pairing.Example]]:
    """Returns the examples of each split."""
    return {
      split: listing.examples for split, listing in self.listings().items()
    }

  def read_sample(self, source: pairing.Example) -> records.Sample:
    """Reads image and mask of an example."""
    return audit.read_image_example(source, self.read_mask, self.image_options)

  def stamp(self, source: pairing.Example) -> Any:
    """Returns id and tags of an example, and stamps of its files."""
    return (
      source.id,
      archives.source_file_stamp(source.image),
      archives.source_file_stamp(source.mask),
      source.tags,
    )

  def record_size(self, source: pairing.Example) -> int:
    """Returns the size of the image file in bytes; a label adds little."""
    return archives.source_file_size(source.image)

  def problems(self) -> Sequence[errors.BadFile]:
    """Returns the problems of all listings."""
    return [p for listing in self.listings().values() for p in listing.problems]

  def warnings(self) -> Sequence[str]:
    """Returns the warnings of all listings, and the files left out."""
    return [
      warning
      for listing in self.listings().values()
      for warning in (*listing.warnings, *listing.summarize_left_out())
    ]


class OfficialBuilder(FileBuilder):
  """A published benchmark, made from the files that its site distributes.

  A bad file refuses the data set: scores on an incomplete benchmark could not
  be compared with published ones.

  Attributes:
    patterns: names of the archives, with wildcards.
    counts: official number of images of each split.
  """

  patterns: ClassVar[Sequence[str]] = ()
  counts: ClassVar[Mapping[str, int]] = {}
  remedy = 'download that file again: records are made of all files or of none'

  def __init__(self, source: str = '', **kwargs: Any):
    """Keeps the location of the files and opens none of them.

    Args:
      source: folder of the archives or of their content, or one archive; not
        needed once the data set is prepared.
      **kwargs: `config`, and `data_dir`, the folder of prepared records.
    """
    self._source = source
    super().__init__(**kwargs)
    # TFDS pickles a builder as these arguments.
    self._original_state['source'] = source

  @property
  def layout(self) -> str:
    """Returns the archives or folders of this config, for messages."""
    config = self.builder_config
    return official_files.LAYOUTS[self.name][config.name if config else '']

  def prepared_schema(self) -> records.Schema | None:
    """Returns the schema of prepared records; None if no records exist.

    With it, a data set whose classes are read from its files does not need the
    files once it is prepared.
    """
    path = pathlib.Path(self.data_dir) / 'metadata.json'
    if not path.exists():
      return None
    metadata = json.loads(path.read_text())
    return records.Schema(
      tuple(metadata['classes']),
      tuple(tuple(color) for color in metadata['palette']),
      labels=metadata['labels'],
      tags=metadata['tags'],
    )

  def find_examples(self, files: Files) -> Mapping[str, pairing.Listing]:
    """Selects the examples of each split from all files.

    Raises:
      UserError: a required file is missing.
    """
    raise NotImplementedError

  def check_available(self) -> None:
    """Raises MissingInput unless the source is a folder or an archive."""
    official_files.require_official_source(self.name, self.layout, self._source)

  def scan(self) -> Mapping[str, pairing.Listing]:
    """Lists the files in the folder and its archives."""
    self.check_available()
    cache = pathlib.Path(self.data_dir_root) / '.unpacked'
    files = archives.find_source_files(
      pathlib.Path(self._source), self.patterns, cache
    )
    return self.find_examples(files)

  def warnings(self) -> Sequence[str]:
    """Returns the warnings of all listings and of wrong numbers of images."""
    lengths = {
      split: len(listing.examples) for split, listing in self.listings().items()
    }
    return [
      *super().warnings(),
      *(
        f'{self.name} {split}: expected {count:,} images, the official number, '
        f'got {lengths.get(split, 0):,}: scores on it cannot be compared with '
        'published ones'
        for split, count in self.counts.items()
        if lengths.get(split, 0) != count
      ),
    ]

  def require_files(self, files_by_path: Mapping[str, Any]) -> None:
    """Checks that required files are in the source.

    Args:
      files_by_path: description of each required path, with the files at that
        path or whether there are any.

    Raises:
      UserError: there is no file at one of the paths.
    """
    for path, files in files_by_path.items():
      if not files:
        raise self.missing_error(path)

  def missing_error(self, path: str) -> errors.UserError:
    """Builds the error about a path that the source lacks.

    Args:
      path: description of the path.
    """
    return errors.UserError(
      errors.format_on_one_line(
        f'source: expected {self.name} as {self.layout}, got {self._source} '
        f'without {path}'
      )
    )


def match_source_files(files: Files, pattern: str) -> dict[str, archives.File]:
  """Selects the files whose path ends with a match of a pattern.

  Args:
    files: files by their path.
    pattern: regular expression of the last whole parts of a path, with a group
      `id`.

  Returns:
    Files by the text of the group `id`, sorted.

  Raises:
    BadFile: two files have the same id, or an id is not UTF-8.
  """
  matches = match_and_group_source_files(files, pattern, 'id')
  return {name: file for name, (file, _) in matches.items()}


def match_and_group_source_files(
  files: Files, pattern: str, group: str
) -> dict[str, tuple[archives.File, str | None]]:
  """Selects files by a pattern, with the text of a second group of it.

  Args:
    files: files by their path.
    pattern: regular expression as for `match_source_files`.
    group: name of the second group.

  Returns:
    Pairs (file, text of the second group, if it matched) by id, sorted.

  Raises:
    BadFile: two files have the same id, or an id is not UTF-8.
  """
  # The folders before the pattern match as little as possible, as parts of the
  # pattern may be optional.
  whole = re.compile(rf'(?:.*?/)??{pattern}')
  matches: dict[str, tuple[archives.File, str | None]] = {}
  for path, file in files.items():
    match = whole.fullmatch(path)
    if match is None:
      continue
    if match['id'] in matches:
      raise errors.BadFile(
        file,
        f'has the same id {match["id"]!r} as {matches[match["id"]][0]}: keep '
        'one of them',
      )
    if not pairing.is_utf8_file_name(match['id']):
      raise errors.BadFile(file, pairing.NOT_UTF8)
    matches[match['id']] = (file, match[group])
  return dict(sorted(matches.items()))


def read_official_list(file: archives.File) -> list[str]:
  """Reads the lines of a text file that are not empty.

  Raises:
    BadFile: the file cannot be read, is empty, or has a line twice.
  """
  try:
    text = text_files.decode_text_file(file.read_bytes())
  except OSError as error:
    raise errors.BadFile(
      file, f'cannot be read: {error.strerror or error}: download it again'
    ) from error
  except errors.UserError:
    raise errors.BadFile(file, 'is not UTF-8 text: download it again') from None
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if not lines:
    raise errors.BadFile(file, 'is empty: download it again')
  seen: set[str] = set()
  for line in lines:
    if line in seen:
      raise errors.BadFile(file, f'lists {line!r} twice: download it again')
    seen.add(line)
  return lines


def pair_images_and_masks(
  ids: Iterable[str],
  images: Files,
  masks: Files | None,
  list_name: str,
  official_name: Callable[[str], str] = str,
) -> pairing.Listing:
  """Builds the examples of listed ids; those without a file are problems.

  Args:
    ids: ids of the examples, in order.
    images: image files by id.
    masks: mask files by id; None for images without masks.
    list_name: name of the list of ids, for messages.
    official_name: function from an id to the official name of the example.
  """
  examples, problems = [], []
  for key in ids:
    if key not in images:
      problems.append(
        errors.BadFile(list_name, f'lists {key}, which has no image')
      )
    elif masks is not None and key not in masks:
      problems.append(errors.BadFile(images[key], 'has no mask'))
    else:
      mask = None if masks is None else masks[key]
      examples.append(pairing.Example(official_name(key), images[key], mask))
  return pairing.Listing(tuple(examples), tuple(problems))


def read_mat_file(
  file: archives.File, name: str, field: str = ''
) -> np.ndarray:
  """Reads a variable of a MATLAB file, or a field of a variable.

  Args:
    file: MATLAB file, before version 7.3.
    name: name of the variable.
    field: name of a field of the variable, which then must be a single struct;
      '' to read the variable itself.

  Raises:
    UserError: the file is damaged, or lacks the variable or field.
  """
  try:
    variables = scipy.io.loadmat(io.BytesIO(file.read_bytes()))
  except OSError:
    raise
  except Exception as error:  # scipy raises any exception for damaged files.
    raise errors.UserError(
      errors.format_on_one_line(f'cannot be read as a MATLAB file: {error}')
    ) from error
  if name not in variables:
    raise errors.UserError(f'has no variable {name}: take the official file')
  value = variables[name]
  if not field:
    return value
  if field not in (value.dtype.names or ()) or value.size != 1:
    raise errors.UserError(
      f'has no field {field} in {name}: take the official file'
    )
  return value[field].item()
