"""Describes labels from which little can be learned, by their counts."""

from collections.abc import Mapping, Sequence

from input_pipeline.sources import class_counts
from runtime import errors

# At most so many classes are named one a line.
_MAX_LINES = 10


def describe_label_problems(
  counts: Mapping[str, class_counts.ClassCounts], classes: Sequence[str]
) -> list[str]:
  """Describes what is odd about the labels of a data set, a line each.

  Args:
    counts: numbers of images and labeled pixels of each split, by its name.
    classes: name of each class id.
  """
  total = class_counts.total_class_counts(counts.values())
  absent = [
    name
    for name, images in zip(classes, total.images, strict=False)
    if not images
  ]
  lines = _describe_absent(absent, 'mask' if sum(total.pixels) else 'image')
  if total.has_masks:
    lines += _describe_ignored(total, absent)
    lines += _describe_single_class(total, classes)
    for split, split_counts in counts.items():
      lines += _describe_blank(split, split_counts)
    lines += _describe_unlearned(counts, classes)
  return lines


def _describe_absent(absent: Sequence[str], where: str) -> list[str]:
  lines = [f'class {name!r} occurs in no {where}' for name in absent]
  if len(lines) > _MAX_LINES:
    rest = len(lines) - _MAX_LINES
    others = errors.format_count(
      rest, 'other class occurs', 'other classes occur'
    )
    lines[_MAX_LINES:] = [f'{others} in no {where}, either']
  return lines


def _describe_ignored(
  total: class_counts.ClassCounts, absent: Sequence[str]
) -> list[str]:
  """Describes ignored pixels that may belong to classes that never occur."""
  if not (absent and total.ignored):
    return []
  share = total.ignored / (sum(total.pixels) + total.ignored)
  named = ', '.join(map(repr, absent[:_MAX_LINES]))
  return [
    f'{share:.2%} of the pixels are ignored and {named} '
    f'{"occurs" if len(absent) == 1 else "occur"} nowhere: check that the '
    'ignored value does not stand for a class'
  ]


def _describe_single_class(
  total: class_counts.ClassCounts, classes: Sequence[str]
) -> list[str]:
  present = [i for i, pixels in enumerate(total.pixels) if pixels]
  if len(present) != 1 or len(classes) == 1:
    return []
  return [
    f'every pixel that is not ignored is {classes[present[0]]!r}: the masks '
    'hold a single value'
  ]


def _describe_blank(split: str, counts: class_counts.ClassCounts) -> list[str]:
  """Describes masks without a pixel of a class."""
  if not counts.has_masks or not counts.blank:
    return []
  if not sum(counts.pixels):
    return [
      f'no pixel of {split} has a class, all are ignored: nothing can be '
      'learned from it, and scores on it are undefined'
    ]
  return [
    f'{counts.blank:,} of {counts.num_images:,} masks of {split} '
    f'{"is" if counts.blank == 1 else "are"} ignored as a whole'
  ]


def _describe_unlearned(
  counts: Mapping[str, class_counts.ClassCounts], classes: Sequence[str]
) -> list[str]:
  """Describes classes that occur, but not in the split train."""
  train = counts.get('train')
  if train is None or not sum(train.pixels):
    return []
  return [
    f'class {name!r} occurs in {split} but not in train: it cannot be learned'
    for split, other in counts.items()
    for name, seen, pixels in zip(
      classes, train.images, other.pixels, strict=False
    )
    if pixels and not seen
  ]
