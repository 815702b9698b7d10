"""The audit of files before and while records are made of them.

  listing = audit.list_examples(images, masks)
  read = functools.partial(audit.read_example, read_mask=read_mask)
  found = audit.run({'train': listing.examples}, classes, read)
  print(found.report())

Every image and every mask is decoded once, in threads; what is found is either
one error that names the first bad file, or the list of what is left out.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np

from input_pipeline.sources import archives, class_counts, image_files, records
from runtime import errors, progress, threads

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
MASK_SUFFIXES = ('.png',)
NOT_UTF8 = 'its name is not UTF-8: rename it'
ON_BAD_EXAMPLE = ('error', 'skip')
SKIP_REMEDY = "mend or remove them, or set on_bad_example='skip'"
# What may become of images without a mask where others have one.
WITHOUT_MASK = ('error', 'unlabeled')

Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """An image and what belongs to it; not opened yet.

  Attributes:
    id: its official name.
    image: a file, or a member of an archive.
    mask: likewise; None without.
    tags: class ids of the whole image; None are those in the mask.
  """

  id: str
  image: archives.File
  mask: archives.File | None = None
  tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files of a folder, by name only.

  Attributes:
    examples: sorted by id, no id twice, each with a mask if masks were asked
      for and none may be missing.
    problems: files that can be no example.
    warnings: what is odd and does no harm, a line each.
  """

  examples: tuple[Example, ...]
  problems: tuple[errors.BadFile, ...] = ()
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Audit:
  """What the audit settled.

  Attributes:
    counts: what occurs in the usable examples of each split.
    classes: names of the class ids; empty without masks.
    skipped: what was left out; empty unless that was asked for.
    warnings: what is odd and does no harm, a line each.
  """

  counts: Mapping[str, class_counts.ClassCounts]
  classes: tuple[str, ...] = ()
  skipped: tuple[errors.BadFile, ...] = ()
  warnings: tuple[str, ...] = ()

  def report(self) -> str:
    """A table of the classes and what was left out; several lines of text."""
    lines = [
      f'{split}: {counts.num_images:,} images'
      for split, counts in self.counts.items()
    ]
    if self.classes:
      lines += ['', *self._table()]
    if self.warnings:
      lines += ['', *(f'warning: {warning}' for warning in self.warnings)]
    if self.skipped:
      lines += ['', f'{len(self.skipped):,} files are left out:']
      lines += [f'  {problem}' for problem in self.skipped]
    return '\n'.join(lines)

  def write(self, path: pathlib.Path) -> None:
    """Writes the counts as JSON."""
    found = {name: dataclasses.asdict(c) for name, c in self.counts.items()}
    path.write_text(json.dumps(found))

  def _table(self) -> Iterator[str]:
    """Images of each class, split by split; with masks its pixels, too."""
    masked = any(map(_has_masks, self.counts.values()))
    names = [*self.classes, *(['(ignored)'] if masked else [])]
    width = max(len(name) for name in [*names, 'class'])
    head = f'{"class":{width}}'
    for split, counts in self.counts.items():
      if _has_masks(counts):
        head += f'  {split + " pixels":>15} {"share":>7} {"images":>9}'
      else:
        head += f'  {split + " images":>17}'
    yield head
    for i, name in enumerate(names):
      row = f'{name:{width}}'
      for counts in self.counts.values():
        pixels = (*counts.pixels, counts.ignored)
        images = f'{counts.images[i]:,}' if i < len(self.classes) else ''
        if _has_masks(counts):
          share = pixels[i] / sum(pixels)
          row += f'  {pixels[i]:>15,} {share:>7.2%} {images:>9}'
        else:
          row += f'  {images:>17}'
      yield row.rstrip()


def _has_masks(counts: class_counts.ClassCounts) -> bool:
  return sum(counts.pixels) + counts.ignored > 0


def list_examples(
  images: pathlib.Path,
  masks: pathlib.Path | None = None,
  prefix: str = '',
  without_mask: str | None = None,
) -> Listing:
  """Finds images, in subfolders too, and the mask of the same relative name.

  Names are compared without their suffix: `images/a/b.jpg` is the example
  `a/b`, whose mask is `masks/a/b.png`. Hidden files are passed over.

  Args:
    images: folder of JPEG and PNG files.
    masks: folder of PNG files; None for images without masks.
    prefix: put before every id.
    without_mask: an image that has none is a problem (None); one that says what
      this could be ('error'); or listed without ('unlabeled').

  Raises:
    UserError: there is no such folder, or no image in it.
  """
  found = _find(images, IMAGE_SUFFIXES)
  if not found:
    raise errors.UserError(
      errors.one_line(
        f'{images}: found no image, expected *.jpg, *.jpeg or *.png'
      )
    )
  masks_found = {} if masks is None else _find(masks, MASK_SUFFIXES)
  examples, problems = [], []
  for stem, files in sorted(found.items()):
    if len(files) > 1:
      # Which of them the mask, or the id, belongs to is not ours to guess.
      problems += _same_id(stem, files)
    elif not is_utf8(stem):
      problems.append(errors.BadFile(files[0], NOT_UTF8))
    elif masks is None or (
      stem not in masks_found and without_mask == 'unlabeled'
    ):
      examples.append(Example(prefix + stem, files[0]))
    elif stem not in masks_found:
      reason = f'has no mask {masks / stem}.png'
      if without_mask:
        reason += " (without_mask='unlabeled' takes it without)"
      problems.append(errors.BadFile(files[0], reason))
    elif len(masks_found[stem]) > 1:
      problems += _same_id(stem, masks_found[stem])
    else:
      examples.append(Example(prefix + stem, files[0], masks_found[stem][0]))
  warnings = tuple(
    errors.one_line(f'{files[0]}: a mask without an image')
    for stem, files in sorted(masks_found.items())
    if stem not in found
  )
  return Listing(tuple(examples), tuple(problems), warnings)


def run(
  sources: Mapping[str, Sequence[Item]],
  classes: Sequence[str],
  read: Callable[[Item], records.Sample],
  *,
  problems: Sequence[errors.BadFile] = (),
  warnings: Sequence[str] = (),
  on_bad_example: str = 'error',
  remedy: str = SKIP_REMEDY,
) -> Audit:
  """Reads all sources and counts the pixels of each class.

  Args:
    sources: of each split.
    classes: name of each class id.
    read: what is in a source; raises BadFile.
    problems: files found to be bad already.
    warnings: to be reported, too.
    on_bad_example: 'error' refuses all for one bad file, 'skip' leaves it out.
    remedy: what the error advises.

  Raises:
    UserError: a file is bad and `on_bad_example` is 'error', or no example of
      a split is left.
  """
  counts, bad = count(sources, read, len(classes))
  return settle(
    counts,
    [*problems, *bad],
    classes,
    warnings=warnings,
    on_bad_example=on_bad_example,
    remedy=remedy,
  )


def count(
  sources: Mapping[str, Sequence[Item]],
  read: Callable[[Item], records.Sample],
  num_classes: int,
  see: Callable[[str, records.Sample], None] = lambda split, sample: None,
) -> tuple[Mapping[str, class_counts.ClassCounts], Sequence[errors.BadFile]]:
  """What occurs in the sources, and which of them are bad.

  Args:
    sources: as for `run`.
    read: as for `run`.
    num_classes: of the labels.
    see: is shown the usable samples of each split, in order.
  """
  counts, bad = {}, []
  for split, listed in sources.items():
    tally = class_counts.CountAccumulator(num_classes)
    results = threads.ordered_map(catching(read), listed)
    for found in progress.bar(
      results, desc=f'checking {split}', total=len(listed)
    ):
      if isinstance(found, errors.BadFile):
        bad.append(found)
      else:
        tally.add(found)
        see(split, found)
    counts[split] = tally.counts()
  return counts, bad


def settle(
  counts: Mapping[str, class_counts.ClassCounts],
  bad: Sequence[errors.BadFile],
  classes: Sequence[str],
  *,
  warnings: Sequence[str] = (),
  on_bad_example: str = 'error',
  remedy: str = SKIP_REMEDY,
) -> Audit:
  """Judges what was found; arguments and errors are those of `run`."""
  if on_bad_example not in ON_BAD_EXAMPLE:
    raise errors.UserError(
      f'on_bad_example is {on_bad_example!r}: expected one of {ON_BAD_EXAMPLE}'
    )
  bad = sorted(bad, key=lambda problem: str(problem.file))
  if bad and on_bad_example == 'error':
    raise errors.UserError(_summary(bad, remedy))
  for split, found in counts.items():
    if not found.num_images:
      why = f'; {_summary(bad, "mend them")}' if bad else ''
      raise errors.UserError(f'no image of split {split!r} is usable{why}')
  labeled = any(sum(found.pixels) for found in counts.values())
  absent = [
    f'class {name!r} occurs in no {"mask" if labeled else "image"}'
    for i, name in enumerate(classes)
    if not any(found.images[i] for found in counts.values())
  ]
  return Audit(
    counts=counts,
    classes=tuple(classes),
    skipped=tuple(bad),
    warnings=(*warnings, *absent),
  )


def catching(
  read: Callable[[Item], Result],
) -> Callable[[Item], Result | errors.BadFile]:
  """The same function; what it raises of a bad file, it returns."""

  def caught(item: Item) -> Result | errors.BadFile:
    try:
      return read(item)
    except errors.BadFile as error:
      return error

  return caught


def read_example(
  example: Example,
  read_mask: Callable[[Any], np.ndarray] | None = None,
) -> records.Sample:
  """The content of an example.

  Args:
    example: where it is.
    read_mask: from a file to class ids [H, W], negative where ignored; raises
      a UserError that says what is wrong with it, without the file's name.

  Raises:
    BadFile: image or mask cannot be used, or their sizes differ.
  """
  image, pixels = _open(example.image, _read_image)
  label = None
  if read_mask is not None and example.mask is not None:
    label = _open(example.mask, read_mask)
    if label.shape != pixels.shape[:2]:
      raise errors.BadFile(
        example.mask, _size_mismatch(label.shape, pixels.shape[:2], image)
      )
  tags = example.tags
  if tags is None:
    # Sorting the pixels would take as long as decoding the image.
    present = () if label is None else np.bincount(label[label >= 0])
    tags = np.flatnonzero(present).tolist()
  return records.Sample(example.id, image, pixels, label, tags)


def _open(file: archives.File, read: Callable[[Any], Result]) -> Result:
  """Reads a file; whatever is wrong with it is said with its name."""
  try:
    return read(file)
  except errors.UserError as error:
    raise errors.BadFile(file, str(error)) from error
  except OSError as error:
    reason = f'cannot be read: {error.strerror or error}'
    raise errors.BadFile(file, reason) from error


def _read_image(file: archives.File) -> tuple[bytes, np.ndarray]:
  """Bytes and pixels of an image that can be decoded to its end."""
  data = file.read_bytes()
  image_files.decode(data, ('JPEG', 'PNG'))
  try:
    return data, records.decode_image(data)  # As training does.
  except (errors.UserError, cv2.error):
    raise errors.UserError('cannot be decoded by OpenCV') from None


def _size_mismatch(
  found: tuple[int, ...], expected: tuple[int, ...], image: bytes
) -> str:
  reason = (
    f'the mask is {found[1]}x{found[0]} pixels, its image '
    f'{expected[1]}x{expected[0]}'
  )
  if found == expected[::-1] and image_files.is_rotated_by_exif(image):
    reason += ' before the turn in its EXIF tag, which is not followed'
  return reason


def is_utf8(text: str) -> bool:
  """Whether no undecodable byte of a file's name hides in it."""
  return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _find(
  folder: pathlib.Path, suffixes: Sequence[str]
) -> dict[str, list[pathlib.Path]]:
  """Files with one of these suffixes, below their name without it."""
  if not folder.is_dir():
    raise errors.UserError(
      errors.one_line(
        f'{folder}: there is no such folder, expected one of '
        f'{", ".join(f"*{suffix}" for suffix in suffixes)}'
      )
    )
  found = collections.defaultdict(list)
  for where, folders, names in os.walk(folder, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(names):
      path = pathlib.Path(where, name)
      if path.suffix.lower() in suffixes and not name.startswith('.'):
        stem = path.relative_to(folder).with_suffix('').as_posix()
        found[stem].append(path)
  return dict(found)


def _same_id(stem: str, files: Sequence[pathlib.Path]) -> list[errors.BadFile]:
  """A problem for each of several files of one id."""
  names = ' and '.join(file.name for file in files)
  return [
    errors.BadFile(file, f'{names} have the same id {stem!r}') for file in files
  ]


def _summary(bad: Sequence[errors.BadFile], remedy: str) -> str:
  """The first problem, how many there are, and what to do."""
  count = f' (the first of {len(bad):,} bad files)' if len(bad) > 1 else ''
  return f'{bad[0]}{count}; {remedy}'
