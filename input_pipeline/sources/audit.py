"""Checks the files of a data set, and reports what they hold.

  listing = pairing.list_image_examples(images, masks)
  read = functools.partial(audit.read_image_example, read_mask=read_mask)
  counts, bad = audit.count_source_classes(
    {'train': listing.examples}, read, len(classes)
  )
  result = audit.conclude_audit(counts, [*listing.problems, *bad], classes)
  print(result.report())

Every image and every mask is decoded once, in threads. The result is either an
error that names the bad files, or an `Audit` that lists the skipped ones.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from input_pipeline.sources import (
  class_counts,
  image_files,
  label_checks,
  label_pixels,
  pairing,
  records,
)
from runtime import errors, progress, threads

# Values of `on_bad_example`: refuse the data set, or skip the file.
ON_BAD_EXAMPLE = ('error', 'skip')
SKIP_REMEDY = "repair or remove them, or set on_bad_example='skip'"

# Reports that this process has printed.
_PRINTED_REPORTS: set[pathlib.Path] = set()

Item = TypeVar('Item')
Result = TypeVar('Result')


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
      f'{split}: {errors.format_count(counts.num_images, "image", "images")}'
      for split, counts in self.counts.items()
    ]
    if self.classes:
      lines += ['', *self._table()]
    if self.warnings:
      lines += ['', *(f'warning: {warning}' for warning in self.warnings)]
    if self.skipped:
      count = errors.format_count(len(self.skipped), 'file is', 'files are')
      lines += ['', f'{count} skipped:']
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

    def read_and_count(item):
      sample = read(item)
      return sample, class_counts.count_sample(sample, num_classes)

    results = threads.map_in_threads(catch_bad_files(read_and_count), items)
    for result in progress.progress_bar(
      results, desc=f'checking {split}', total=len(items)
    ):
      if isinstance(result, errors.BadFile):
        bad.append(result)
      else:
        sample, sample_counts = result
        accumulator.merge(sample_counts)
        on_sample(split, sample)
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
  example: pairing.Example,
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
  with errors.naming_file(example.image):
    image = image_files.read_image_file(
      example.image.read_bytes(), image_options
    )
  label = None
  if read_mask is not None and example.mask is not None:
    with errors.naming_file(example.mask):
      label = read_mask(example.mask)
    if label.shape != image.pixels.shape[:2]:
      raise errors.BadFile(
        example.mask, _size_mismatch(label.shape, image, image_options)
      )
  # np.unique would sort the pixels, which takes as long as decoding.
  pixels = None if label is None else label_pixels.count_label_pixels(label)
  tags = example.tags
  if tags is None:
    tags = [] if pixels is None else np.flatnonzero(pixels).tolist()
  traits = records.Traits(
    image.orientation, image.depth, image.peak, image.as_stored
  )
  return records.Sample(
    example.id, image.encoded, image.pixels, label, tags, traits, pixels
  )


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


def _summarize(bad: Sequence[errors.BadFile], remedy: str) -> str:
  """Describes the problems, one a line, and the remedy."""
  # A file may be in several splits.
  problems = [*dict.fromkeys(map(str, bad))]
  if len(problems) == 1:
    return f'{problems[0]}; {remedy}'
  lines = errors.format_problem_lines(problems)
  return f'{lines}\n{len(problems):,} files cannot be used; {remedy}'


def print_stored_report(
  path: pathlib.Path, whole: bool, lists_skipped: bool
) -> None:
  """Prints the report of an audit, or what is odd in an earlier one.

  A run opens a data set several times, but reports its skipped files and the
  warnings once.

  Args:
    path: file of the report.
    whole: whether the data set was audited just now.
    lists_skipped: whether the report may list skipped files.
  """
  if not path.exists() or (path in _PRINTED_REPORTS and not whole):
    return
  _PRINTED_REPORTS.add(path)
  lines = path.read_text().splitlines()
  if not whole and not lists_skipped:
    lines = [line for line in lines if line.startswith('warning: ')]
  for line in lines:
    print(line, flush=True)
