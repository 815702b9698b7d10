"""Checks the files of a data set, and reports what they hold.

  listing = audit.list_image_examples(images, masks)
  read = functools.partial(audit.read_image_example, read_mask=read_mask)
  counts, bad = audit.count_source_classes(
    {'train': listing.examples}, read, len(classes)
  )
  result = audit.conclude_audit(counts, [*listing.problems, *bad], classes)
  print(result.report())

Every image and every mask is decoded once, in threads. The result is either an
error that names the first bad file, or an `Audit` that lists the skipped ones.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from input_pipeline.sources import (
  archives,
  class_counts,
  image_files,
  label_checks,
  records,
)
from runtime import errors, progress, threads

IMAGE_SUFFIXES = (
  *('.jpg', '.jpeg', '.png'),
  *('.tif', '.tiff', '.bmp', '.webp', '.gif'),
)
MASK_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp', '.gif')
# Endings of images that are no masks.
_LOSSY_SUFFIXES = ('.jpg', '.jpeg', '.webp')
_LOSSY = (
  'lossy compression changes the values of a mask: save it as PNG from its '
  'source'
)
# A summary names at most so many files.
_MAX_LISTED = 10
NOT_UTF8 = 'its name is not UTF-8: rename it'
# Values of `on_bad_example`: refuse the data set, or skip the file.
ON_BAD_EXAMPLE = ('error', 'skip')
SKIP_REMEDY = "repair or remove them, or set on_bad_example='skip'"
# Values of `without_mask`: refuse an image without a mask, or make it a part of
# the split 'unlabeled'.
WITHOUT_MASK = ('error', 'unlabeled')

Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """Names the files of an image and its labels; none is opened.

  Attributes:
    id: official name of the image.
    image: image file, or a member of an archive.
    mask: mask file, or a member of an archive; None without a mask.
    tags: class ids of the whole image; None for those that occur in the mask.
  """

  id: str
  image: archives.File
  mask: archives.File | None = None
  tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
  """Lists the examples of a folder, by the names of its files.

  Attributes:
    examples: examples sorted by id, without repeated ids; each has a mask if
      masks are expected and must not be missing.
    problems: files that cannot be examples.
    warnings: harmless oddities, a line each.
    left_out: files that are no image or mask by their ending, and links that
      are not followed.
  """

  examples: tuple[Example, ...]
  problems: tuple[errors.BadFile, ...] = ()
  warnings: tuple[str, ...] = ()
  left_out: tuple[errors.BadFile, ...] = ()

  def summarize_left_out(self) -> list[str]:
    """Returns a line that counts the files left out and names some, if any."""
    if not self.left_out:
      return []
    listed = [str(problem.file) for problem in self.left_out[:_MAX_LISTED]]
    more = ', …' if len(self.left_out) > _MAX_LISTED else ''
    return [
      errors.format_on_one_line(
        f'{len(self.left_out):,} files are left out, as they are no images or '
        f'masks by their endings: {", ".join(listed)}{more}'
      )
    ]


@dataclasses.dataclass(frozen=True)
class Audit:
  """The result of checking all files of a data set.

  Attributes:
    counts: numbers of usable images and labeled pixels of each split, by its
      name.
    classes: name of each class id; empty without masks.
    skipped: bad files that were skipped.
    warnings: harmless oddities, a line each.
  """

  counts: Mapping[str, class_counts.ClassCounts]
  classes: tuple[str, ...] = ()
  skipped: tuple[errors.BadFile, ...] = ()
  warnings: tuple[str, ...] = ()

  def report(self) -> str:
    """Formats a table of the classes, the warnings and the skipped files."""
    lines = [
      f'{split}: {counts.num_images:,} images'
      for split, counts in self.counts.items()
    ]
    if self.classes:
      lines += ['', *self._table()]
    if self.warnings:
      lines += ['', *(f'warning: {warning}' for warning in self.warnings)]
    if self.skipped:
      lines += ['', f'{len(self.skipped):,} files are skipped:']
      lines += [f'  {problem}' for problem in self.skipped]
    return '\n'.join(lines)

  def _table(self) -> Iterator[str]:
    """Yields a row per class: images and, in splits with masks, pixels."""
    masked = any(counts.has_masks for counts in self.counts.values())
    names = [*self.classes, *(['(ignored)'] if masked else [])]
    width = max(len(name) for name in [*names, 'class'])
    head = f'{"class":{width}}'
    for split, counts in self.counts.items():
      if counts.has_masks:
        head += f'  {split + " pixels":>15} {"share":>7} {"images":>9}'
      else:
        head += f'  {split + " images":>17}'
    yield head
    for i, name in enumerate(names):
      row = f'{name:{width}}'
      for counts in self.counts.values():
        pixels = (*counts.pixels, counts.ignored)
        images = f'{counts.images[i]:,}' if i < len(self.classes) else ''
        if counts.has_masks:
          share = pixels[i] / sum(pixels)
          row += f'  {pixels[i]:>15,} {share:>7.2%} {images:>9}'
        else:
          row += f'  {images:>17}'
      yield row.rstrip()


def list_image_examples(
  images: pathlib.Path,
  masks: pathlib.Path | None = None,
  prefix: str = '',
  without_mask: str | None = None,
) -> Listing:
  """Lists the images of a folder, with the masks of the same relative paths.

  Subfolders are included. Paths are compared without their suffix:
  `images/a/b.jpg` is the example `a/b`, whose mask is `masks/a/b.png`. Hidden
  files are ignored.

  Args:
    images: folder of files with `IMAGE_SUFFIXES`.
    masks: folder of files with `MASK_SUFFIXES`; None for images without masks.
    prefix: prepended to every id.
    without_mask: treatment of images that have no mask: 'unlabeled' lists them
      as examples without a mask; 'error' and None make them problems, and the
      message of 'error' mentions this option.

  Raises:
    UserError: a folder is missing, or holds no image.
  """
  images_by_stem, left_out = _files_by_stem(images, IMAGE_SUFFIXES)
  if not images_by_stem:
    there = f'; it holds {left_out[0].file.name}, …' if left_out else ''
    raise errors.UserError(
      errors.format_on_one_line(
        f'{images}: expected images ({_wildcards(IMAGE_SUFFIXES)}), got none'
        f'{there}'
      )
    )
  mask_files, other_masks = {}, []
  if masks is not None:
    mask_files, other_masks = _files_by_stem(masks, MASK_SUFFIXES)
  lossy = {
    problem.file.relative_to(masks).with_suffix('').as_posix(): problem.file
    for problem in other_masks
    if problem.file.suffix.lower() in _LOSSY_SUFFIXES
  }
  examples, problems = [], []
  for stem, files in sorted(images_by_stem.items()):
    if len(files) > 1:
      # It is unknown to which of them the mask, or the id, belongs.
      problems += _duplicate_ids(stem, files)
    elif not is_utf8_file_name(stem):
      problems.append(errors.BadFile(files[0], NOT_UTF8))
    elif stem not in mask_files and stem in lossy:
      problems.append(errors.BadFile(lossy[stem], _LOSSY))
    elif masks is None or (
      stem not in mask_files and without_mask == 'unlabeled'
    ):
      examples.append(Example(prefix + stem, files[0]))
    elif stem not in mask_files:
      reason = f'has no mask {masks / stem}.png'
      if without_mask:
        reason += (
          '; to train on it without one: option unlabeled=same of a folder '
          "config, or field without_mask='unlabeled'"
        )
      problems.append(errors.BadFile(files[0], reason))
    elif len(mask_files[stem]) > 1:
      problems += _duplicate_ids(stem, mask_files[stem])
    else:
      examples.append(Example(prefix + stem, files[0], mask_files[stem][0]))
  warnings = tuple(
    errors.format_on_one_line(f'{files[0]}: a mask without an image')
    for stem, files in sorted(mask_files.items())
    if stem not in images_by_stem
  )
  refused = {problem.file for problem in problems}
  return Listing(
    tuple(examples),
    tuple(problems),
    warnings,
    tuple(p for p in (*left_out, *other_masks) if p.file not in refused),
  )


def count_source_classes(
  sources: Mapping[str, Sequence[Item]],
  read: Callable[[Item], records.Sample],
  num_classes: int,
  on_sample: Callable[[str, records.Sample], None] = lambda split, sample: None,
) -> tuple[Mapping[str, class_counts.ClassCounts], Sequence[errors.BadFile]]:
  """Reads all sources and counts images and pixels per class.

  Args:
    sources: sources of each split, by its name.
    read: function that reads the sample of a source, or raises BadFile.
    num_classes: number of classes of the labels.
    on_sample: function that is called with the name of the split and each
      usable sample, in order.

  Returns:
    The counts of each split, and the files that cannot be used.
  """
  counts, bad = {}, []
  for split, items in sources.items():
    accumulator = class_counts.CountAccumulator(num_classes)
    results = threads.map_in_threads(catch_bad_files(read), items)
    for result in progress.progress_bar(
      results, desc=f'checking {split}', total=len(items)
    ):
      if isinstance(result, errors.BadFile):
        bad.append(result)
      else:
        accumulator.add(result)
        on_sample(split, result)
    counts[split] = accumulator.counts()
  return counts, bad


def conclude_audit(
  counts: Mapping[str, class_counts.ClassCounts],
  bad: Sequence[errors.BadFile],
  classes: Sequence[str],
  *,
  warnings: Sequence[str] = (),
  on_bad_example: str = 'error',
  remedy: str = SKIP_REMEDY,
) -> Audit:
  """Builds the result of an audit, unless bad files must not be skipped.

  Args:
    counts: numbers of images and labeled pixels of each split, by its name.
    bad: files that cannot be used.
    classes: name of each class id.
    warnings: harmless oddities that are already known, a line each.
    on_bad_example: treatment of a bad file: 'error' refuses the data set,
      'skip' skips the file.
    remedy: advice in the error message.

  Raises:
    UserError: a file is bad and `on_bad_example` is 'error', or no example of a
      split is usable.
  """
  if on_bad_example not in ON_BAD_EXAMPLE:
    raise errors.UserError(
      f'on_bad_example: expected one of {ON_BAD_EXAMPLE}, got '
      f'{on_bad_example!r}'
    )
  bad = sorted(bad, key=lambda problem: str(problem.file))
  if bad and on_bad_example == 'error':
    raise errors.UserError(_summarize(bad, remedy))
  for split, split_counts in counts.items():
    if not split_counts.num_images:
      reason = f'; {_summarize(bad, "repair them")}' if bad else ''
      raise errors.UserError(f'no image of split {split!r} is usable{reason}')
  return Audit(
    counts=counts,
    classes=tuple(classes),
    skipped=tuple(bad),
    warnings=(
      *warnings,
      *label_checks.describe_label_problems(counts, classes),
    ),
  )


def catch_bad_files(
  read: Callable[[Item], Result],
) -> Callable[[Item], Result | errors.BadFile]:
  """Wraps a function so that it returns a BadFile instead of raising it.

  In a map over threads, an exception would end the iteration at the first bad
  file.
  """

  def catching(item: Item) -> Result | errors.BadFile:
    try:
      return read(item)
    except errors.BadFile as error:
      return error

  return catching


def read_image_example(
  example: Example,
  read_mask: Callable[[Any], np.ndarray] | None = None,
  image_options: image_files.ImageOptions = image_files.AS_STORED,
) -> records.Sample:
  """Reads and decodes the files of an example.

  Args:
    example: names of the files.
    read_mask: function that reads the class ids [H, W] of a mask file, negative
      where ignored; its UserError need not name the file.
    image_options: definition of the pixels of image files.

  Raises:
    BadFile: image or mask cannot be used, or their sizes differ.
  """
  image = _naming_file(
    example.image,
    lambda file: image_files.read_image_file(file.read_bytes(), image_options),
  )
  label = None
  if read_mask is not None and example.mask is not None:
    label = _naming_file(example.mask, read_mask)
    if label.shape != image.pixels.shape[:2]:
      raise errors.BadFile(
        example.mask, _size_mismatch(label.shape, image, image_options)
      )
  tags = example.tags
  if tags is None:
    # np.unique would sort the pixels, which takes as long as decoding.
    present = () if label is None else np.bincount(label[label >= 0])
    tags = np.flatnonzero(present).tolist()
  traits = records.Traits(
    image.orientation, image.depth, image.peak, image.as_stored
  )
  return records.Sample(
    example.id, image.encoded, image.pixels, label, tags, traits
  )


def _naming_file(
  file: archives.File, read: Callable[[archives.File], Result]
) -> Result:
  """Returns `read(file)`; its errors become a BadFile that names the file."""
  try:
    return read(file)
  except errors.UserError as error:
    raise errors.BadFile(file, str(error)) from error
  except OSError as error:
    reason = f'cannot be read: {error.strerror or error}'
    raise errors.BadFile(file, reason) from error


def _size_mismatch(
  mask_size: tuple[int, ...],
  image: image_files.ImageContent,
  options: image_files.ImageOptions,
) -> str:
  height, width = image.pixels.shape[:2]
  reason = (
    f'expected a mask of {width}x{height} pixels as its image, got '
    f'{mask_size[1]}x{mask_size[0]}'
  )
  if mask_size == (width, height) and image.orientation >= 5:
    reason += '; the rotation in the EXIF tag of the image is '
    reason += (
      'applied: set follow_exif=False'
      if options.follow_exif
      else 'not applied: set follow_exif=True'
    )
  return reason


def is_utf8_file_name(text: str) -> bool:
  """Returns whether a file name is valid UTF-8.

  Python represents bytes that cannot be decoded by lone surrogates.
  """
  return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _files_by_stem(
  folder: pathlib.Path, suffixes: Sequence[str]
) -> tuple[dict[str, list[pathlib.Path]], list[errors.BadFile]]:
  """Lists the files of a folder.

  Returns:
    The files with one of the suffixes, by their path without it; and the
    others.
  """
  if not folder.is_dir():
    raise errors.UserError(
      errors.format_on_one_line(
        f'{folder}: expected a folder of {_wildcards(suffixes)}, got '
        f'{"a file" if folder.exists() else "no such folder"}'
      )
    )
  files, others = collections.defaultdict(list), []
  paths, loops = archives.list_folder_files(folder)
  for path in paths:
    if path.suffix.lower() in suffixes:
      stem = path.relative_to(folder).with_suffix('').as_posix()
      files[stem].append(path)
    else:
      reason = f'expected {_wildcards(suffixes)} by its ending'
      others.append(errors.BadFile(path, reason))
  others += [
    errors.BadFile(path, 'is a link to a folder that contains it')
    for path in loops
  ]
  return dict(files), others


def _wildcards(suffixes: Sequence[str]) -> str:
  """Formats suffixes as '*.jpg, *.png or *.gif'."""
  *first, last = (f'*{suffix}' for suffix in suffixes)
  return f'{", ".join(first)} or {last}'


def _duplicate_ids(
  stem: str, files: Sequence[pathlib.Path]
) -> list[errors.BadFile]:
  """Returns a problem for each of several files with one id."""
  names = ' and '.join(file.name for file in files)
  return [
    errors.BadFile(file, f'{names} have the same id {stem!r}') for file in files
  ]


def _summarize(bad: Sequence[errors.BadFile], remedy: str) -> str:
  """Describes the first problem, the number of problems, and the remedy."""
  count = f' (the first of {len(bad):,} bad files)' if len(bad) > 1 else ''
  return f'{bad[0]}{count}; {remedy}'
