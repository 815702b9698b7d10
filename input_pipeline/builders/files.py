"""The builder of data sets whose records are made of files.

A data set of an official benchmark is an `Official`: it says which archives it
comes in, where in them its images and masks are, and how many there should be.
"""

import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.io
from jaxtyping import Int16

from input_pipeline.builders import base
from input_pipeline.sources import archives, audit, records
from runtime import errors

Files = Mapping[str, archives.File]


class FileBuilder(base.Builder):
  """A builder whose sources are `audit.Example`s."""

  def scan(self) -> Mapping[str, audit.Listing]:
    """The files of each split; opens none of them.

    Raises:
      UserError: a folder or file is missing.
    """
    raise NotImplementedError

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Class ids of a mask, negative where ignored.

    Raises:
      UserError: what is wrong with it; without the file's name.
    """
    raise NotImplementedError

  def listings(self) -> Mapping[str, audit.Listing]:
    """The files of each split; listed once."""
    if self._listings is None:
      self._listings = self.scan()
    return self._listings

  # Set per instance, once listed.
  _listings: Mapping[str, audit.Listing] | None = None

  def sources(self) -> Mapping[str, Sequence[audit.Example]]:
    """The examples of each split."""
    return {split: found.examples for split, found in self.listings().items()}

  def sample(self, source: audit.Example) -> records.Sample:
    """Reads image and mask."""
    return audit.read_example(source, self.read_mask)

  def stamp(self, source: audit.Example) -> Any:
    """Name, and state of the files."""
    return (
      source.id,
      archives.stamp(source.image),
      archives.stamp(source.mask),
      source.tags,
    )

  def size(self, source: audit.Example) -> int:
    """Bytes of the image; those of a label hardly count."""
    return archives.size(source.image)

  def problems(self) -> Sequence[errors.BadFile]:
    """What the listings found."""
    return [p for found in self.listings().values() for p in found.problems]

  def warnings(self) -> Sequence[str]:
    """What the listings found."""
    return [w for found in self.listings().values() for w in found.warnings]


class Official(FileBuilder):
  """A benchmark, made of the files that its site hands out.

  A benchmark is whole or it is not that benchmark: a bad file refuses all.

  Attributes:
    patterns: what its archives are called, with wildcards.
    counts: the official number of images of each split.
    layout: where its files are, for people.
  """

  patterns: ClassVar[Sequence[str]] = ()
  counts: ClassVar[Mapping[str, int]] = {}
  layout: ClassVar[str] = ''
  remedy = 'get that file again: the records are whole or not made'

  def __init__(self, source: str = '', **kwargs: Any):
    """Opens no file yet.

    Args:
      source: folder of the archives or of what was in them, or one archive; not
        needed once it is prepared.
      **kwargs: `config`, and `data_dir`, where records are prepared.
    """
    self._source = source
    super().__init__(**kwargs)
    self._original_state['source'] = source  # What pickling sends.

  def prepared_contents(self) -> records.Contents | None:
    """What is in records that are there; None if there are none.

    Where the classes are found in the files, those need not be looked for then.
    """
    path = pathlib.Path(self.data_dir) / 'metadata.json'
    if not path.exists():
      return None
    known = json.loads(path.read_text())
    return records.Contents(
      tuple(known['classes']),
      tuple(tuple(color) for color in known['palette']),
      labels=known['labels'],
      tags=known['tags'],
    )

  def find(self, files: Files) -> Mapping[str, audit.Listing]:
    """Picks the examples of each split out of all files.

    Raises:
      UserError: what is needed is not among them.
    """
    raise NotImplementedError

  def require(self) -> None:
    """Raises Missing unless there is a folder or an archive."""
    remedy = (
      f'give the folder of {self.name} ({self.layout}), or set SEG_DATA_DIR to '
      f'the folder that holds a folder {self.name}'
    )
    if not self._source:
      raise errors.MissingInput(f'source is empty: {remedy}')
    if not pathlib.Path(self._source).expanduser().exists():
      raise errors.MissingInput(
        errors.one_line(
          f'source: there is no file or folder {self._source}: {remedy}'
        )
      )

  def scan(self) -> Mapping[str, audit.Listing]:
    """Looks into folders and archives."""
    self.require()
    cache = pathlib.Path(self.data_dir_root) / '.unpacked'
    files = archives.find(pathlib.Path(self._source), self.patterns, cache)
    return self.find(files)

  def warnings(self) -> Sequence[str]:
    """Counts other than the official ones, too."""
    found = {split: len(s.examples) for split, s in self.listings().items()}
    return [
      *super().warnings(),
      *(
        f'{self.name} {split}: found {found.get(split, 0):,} images, the '
        f'official number is {count:,}: scores on it cannot be compared with '
        'published ones'
        for split, count in self.counts.items()
        if found.get(split, 0) != count
      ),
    ]

  def missing(self, what: str) -> errors.UserError:
    """The error for something that is not in the source."""
    return errors.UserError(
      errors.one_line(
        f'source: found no {what} in {self._source}; {self.name} is expected '
        f'as {self.layout}'
      )
    )


def pick(files: Files, pattern: str) -> dict[str, archives.File]:
  """Files whose path ends like a pattern, by the pattern's group `id`.

  Args:
    files: by path.
    pattern: a regular expression of whole parts of a path.

  Returns:
    Files sorted by id, wherever they are.

  Raises:
    BadFile: two files have the same id, or an id is not UTF-8.
  """
  return {name: file for name, (file, _) in pick_with(files, pattern).items()}


def pick_with(
  files: Files, pattern: str, group: str = 'id'
) -> dict[str, tuple[archives.File, str | None]]:
  """The same, with what another group of the pattern matched."""
  # What is before the pattern is as short as can be: parts may be optional.
  whole = re.compile(rf'(?:.*?/)??{pattern}')
  found: dict[str, tuple[archives.File, str | None]] = {}
  for path, file in files.items():
    match = whole.fullmatch(path)
    if match is None:
      continue
    if match['id'] in found:
      raise errors.BadFile(
        file,
        f'has the same id {match["id"]!r} as {found[match["id"]][0]}: keep one '
        'of them',
      )
    if not audit.is_utf8(match['id']):
      raise errors.BadFile(file, audit.NOT_UTF8)
    found[match['id']] = (file, match[group])
  return dict(sorted(found.items()))


def read_list(file: archives.File) -> list[str]:
  """The lines of a text file that are not empty.

  Raises:
    BadFile: it cannot be read, has nothing in it or a line twice.
  """
  try:
    text = file.read_bytes().decode()
  except OSError as error:
    raise errors.BadFile(
      file, f'cannot be read: {error.strerror or error}: get it again'
    ) from error
  except UnicodeDecodeError:
    raise errors.BadFile(file, 'is not UTF-8 text: get it again') from None
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if not lines:
    raise errors.BadFile(file, 'is empty: get it again')
  seen: set[str] = set()
  for line in lines:
    if line in seen:
      raise errors.BadFile(file, f'lists {line!r} twice: get it again')
    seen.add(line)
  return lines


def examples_of(
  ids: Iterable[str],
  images: Files,
  masks: Files | None,
  what: str,
  name: Callable[[str], str] = str,
) -> audit.Listing:
  """The listed examples; what has no image or mask is a problem.

  Args:
    ids: in order.
    images: by id.
    masks: by id; None for images without masks.
    what: the list they are from, for people.
    name: from an id to the official name.
  """
  examples, problems = [], []
  for key in ids:
    if key not in images:
      problems.append(errors.BadFile(what, f'lists {key}, which has no image'))
    elif masks is not None and key not in masks:
      problems.append(errors.BadFile(images[key], 'has no mask'))
    else:
      mask = None if masks is None else masks[key]
      examples.append(audit.Example(name(key), images[key], mask))
  return audit.Listing(tuple(examples), tuple(problems))


def read_mat(file: archives.File, name: str, field: str = '') -> np.ndarray:
  """A variable of a MATLAB file, or a field of a variable that is one struct.

  Raises:
    UserError: it is no such file, or has no such variable or field.
  """
  try:
    found = scipy.io.loadmat(io.BytesIO(file.read_bytes()))
  except OSError:
    raise
  except Exception as error:  # Damaged files make scipy raise anything.
    raise errors.UserError(
      errors.one_line(f'cannot be read as a MATLAB file: {error}')
    ) from error
  if name not in found:
    raise errors.UserError(f'has no variable {name}: take the official file')
  if not field:
    return found[name]
  if field not in (found[name].dtype.names or ()) or found[name].size != 1:
    raise errors.UserError(
      f'has no field {field} in {name}: take the official file'
    )
  return found[name][field].item()
