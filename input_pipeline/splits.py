"""Selection of the labeled images of a split, by a seed or by a list.

Subset(fraction=0.1, seed=0, run=3).labeled_indices(split.ids())
Subset(list='splits/92/labeled.txt').labeled_indices(split.ids())
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from input_pipeline.sources import image_ids, text_files
from runtime import errors
from runtime import options as options_lib
from runtime.option_ranges import CheckedOptions, NonNegative

# Name, in configs, of the split of a subset's held-out images.
HELD_OUT = 'held_out'
# Name, in configs, of the split of the training images that have a mask, but
# are neither labeled nor held out.
NOT_LABELED = 'not_labeled'


@dataclasses.dataclass(frozen=True)
class Subset(CheckedOptions):
  """Selects the labeled and the held-out images of a training split.

  Attributes:
    labels: number of labeled images; 0 if `fraction` or `list` determines it.
      With `list` it must be the list's length.
    fraction: fraction of the images that is labeled, in (0, 1]; the number of
      images is rounded half up and at least 1.
    seed: seed of the selection, which is the same for every method, so that the
      runs of several methods are paired.
    run: number of the selection; each number is another draw for one seed.
    nested: whether smaller subsets of a seed and run are part of larger ones;
      else every number of images is a new draw.
    list: path of a file that names the labeled images, one per line, as U2PL's
      `labeled.txt`: a name or a path, with or without suffix. Folders count:
      `bochum/000.jpg` is not the image `aachen/000`.
    held_out: number of images that are neither labeled nor trained on, for
      choosing hyperparameters without a benchmark's val.
    cover: whether each class is shown by a labeled image, if an image that is
      not held out shows it and there are enough labels: as many as classes
      always are (see `cover_classes`).
  """

  labels: NonNegative[int] = 0
  fraction: float = 1.0
  seed: NonNegative[int] = 0
  run: NonNegative[int] = 0
  nested: bool = True
  list: str = options_lib.location_option(default='')
  held_out: NonNegative[int] = 0
  cover: bool = False

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.fraction <= 1:
      raise ValueError(f'fraction: expected (0, 1], got {self.fraction}')
    if self.fraction != 1.0:
      for name in ('labels', 'list'):
        if getattr(self, name):
          raise ValueError(
            f'{name}={getattr(self, name)} and fraction={self.fraction} '
            'contradict each other: set one of them'
          )
    if self.list and self.cover:
      raise ValueError(
        f'list={self.list} and cover contradict each other: set one of them'
      )

  def labeled_indices(
    self,
    ids: Sequence[str],
    rule: image_ids.IdRule = image_ids.OFFICIAL,
    shown: Bool[np.ndarray, 'all C'] | None = None,
  ) -> Int[np.ndarray, 'labeled']:
    """Returns the sorted indices of the labeled images.

    Args:
      ids: names of all images.
      rule: relation of the ids to the paths of the images.
      shown: whether each image shows each class, which `cover` needs.

    Raises:
      UserError: there are fewer images than labels, or the list has an error.
    """
    if self.list:
      indices = read_image_list(self.list, ids, rule)
      if self.labels not in (0, len(indices)):
        raise errors.UserError(
          f'list: expected {self.labels} images as labels={self.labels}, got '
          f'{len(indices)} in {self.list}'
        )
      return indices
    count = self._count(len(ids))
    order = self._order(ids)[: len(ids) - self.held_out]
    if self.cover:
      order = cover_classes(order, shown)
    return np.sort(order[:count])

  def held_out_indices(
    self, ids: Sequence[str], rule: image_ids.IdRule = image_ids.OFFICIAL
  ) -> Int[np.ndarray, 'held_out']:
    """Returns the sorted indices of the held-out images.

    Args:
      ids: names of all images.
      rule: relation of the ids to the paths of the images.

    Raises:
      UserError: `held_out` is 0, or there are too few images.
    """
    if not self.held_out:
      raise errors.UserError(
        f'subset.held_out: expected above 0 for the split {HELD_OUT!r}, got 0'
      )
    order = self._order(ids)
    if self.list:
      order = order[~np.isin(order, read_image_list(self.list, ids, rule))]
    if self.held_out > len(order):
      raise errors.UserError(
        f'held_out: expected at most {len(order)}, the images that are not '
        f'labeled, got {self.held_out}'
      )
    return np.sort(order[-self.held_out :])

  def _order(self, ids: Sequence[str]) -> Int[np.ndarray, 'all']:
    """Returns a permutation: labeled images are first, held-out ones last."""
    key = () if self.nested and not self.run else (self.run,)
    if not self.nested and not self.list:
      key += (self._count(len(ids)),)
    rng = np.random.default_rng(
      np.random.SeedSequence(self.seed, spawn_key=key)
    )
    return rng.permutation(len(ids))

  def _count(self, num_images: int) -> int:
    """Computes the number of labeled images."""
    available = num_images - self.held_out
    # 50 · 0.29 is 14.499999999999998 in floating point, and must count as 14.5.
    exact = round(num_images * self.fraction, 6)
    count = self.labels or max(1, math.floor(exact + 0.5))
    if self.fraction == 1.0 and not self.labels:
      count = max(available, 0)
    if not 0 < count <= available:
      held_out = f' without {self.held_out} held out' if self.held_out else ''
      raise errors.UserError(
        f'labels: expected at most the {num_images} images of the split'
        f'{held_out}, got {count}'
      )
    return count


def cover_classes(
  order: Int[np.ndarray, 'some'], shown: Bool[np.ndarray, 'all C']
) -> Int[np.ndarray, 'some']:
  """Moves images to the front of an order, so that they show every class.

  Greedy: of the classes that no image at the front shows yet, the one that the
  fewest images show is next (of equally rare ones, the one that is shown first
  in the order), and its first image in the order joins the front. The other
  images follow in their order. The result does not depend on the number of
  labels, so smaller subsets stay part of larger ones.

  Args:
    order: indices of images.
    shown: whether each image shows each class.

  >>> shown = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], bool)
  >>> cover_classes(np.array([1, 0, 2, 3]), shown)
  array([2, 1, 0, 3])
  """
  shown = shown[order]
  counts = shown.sum(axis=0)
  ranks = np.lexsort((shown.argmax(axis=0), counts))
  covered = counts == 0
  front: list[int] = []
  for rarest in ranks:
    if not covered[rarest]:
      front.append(int(shown[:, rarest].argmax()))
      covered |= shown[front[-1]]
  return np.concatenate([order[front], np.delete(order, front)])


def repeat_images_to_length(
  num_images: int, length: int, seed: int
) -> Int[np.ndarray, 'length']:
  """Repeats images to a given number; returns their sorted indices.

  All images are repeated equally often until there are at least `length`
  entries, of which `length` are drawn without replacement (spec U2PL §5.2).

  Args:
    num_images: number of different images.
    length: number of indices to return.
    seed: seed of the draw.
  """
  times = -(-length // num_images)
  entries = np.random.default_rng(seed).permutation(times * num_images)
  return np.sort(entries[:length] % num_images)


def read_image_list(
  path: str,
  ids: Sequence[str],
  rule: image_ids.IdRule = image_ids.OFFICIAL,
) -> Int[np.ndarray, 'listed']:
  """Reads a list of images and returns their sorted indices.

  Args:
    path: path of a text file with one image per line: its id, the last parts of
      its id, or the path of its file. A second column is ignored if it is a
      file of the same name, as in `JPEGImages/a.jpg labels/a.png`.
    ids: ids of all images of the split.
    rule: relation of the ids to the paths of the images.

  Raises:
    UserError: the list cannot be read, is empty, names an image twice or one
      that does not exist.
  """
  entries = _read_lines(path)
  index = image_ids.IdIndex(ids, rule)
  entry_of: dict[int, str] = {}
  problems = []
  for entry in entries:
    matches = _find(index, entry)
    if len(matches) != 1:
      problems.append(
        f'list: expected one image per line, as {ids[0]!r}, got {entry!r} in '
        f'{path}, which names {_describe(index, entry, matches, ids)}'
      )
    elif matches[0] in entry_of:
      problems.append(
        f'list: expected every image once, got {entry_of[matches[0]]!r} and '
        f'{entry!r} in {path}, which are the same image'
      )
    else:
      entry_of[matches[0]] = entry
  if problems:
    raise errors.UserError(errors.format_problem_lines(problems))
  return np.array(sorted(entry_of))


def _read_lines(path: str) -> list[str]:
  """Reads the lines of a list that are not empty."""
  try:
    text = text_files.decode_text_file(
      pathlib.Path(path).expanduser().read_bytes()
    )
  except OSError as error:
    raise errors.UserError(
      errors.format_on_one_line(f'list: cannot read {path}: {error}')
    ) from error
  except errors.UserError as error:
    raise errors.UserError(
      errors.format_on_one_line(f'list: {path} {error}')
    ) from error
  entries = [line.strip() for line in text.split('\n') if line.strip()]
  if not entries:
    raise errors.UserError(
      f'list: expected an image per line, got the empty file {path}'
    )
  return entries


def _find(index: image_ids.IdIndex, entry: str) -> Sequence[int]:
  """Returns the images that a line names, by its first column if by none."""
  if matches := index.find(entry):
    return matches
  first, *others = re.split(r'[\s,;]+', entry)
  matches = index.find(first)
  for other in others:
    # Of another image, it would be a second one on the line.
    if image_ids.image_name(other) != image_ids.image_name(first) and (
      not image_ids.has_image_suffix(other) or index.find(other)
    ):
      return []
  return matches


def _describe(
  index: image_ids.IdIndex,
  entry: str,
  matches: Sequence[int],
  ids: Sequence[str],
) -> str:
  """Describes what an entry names, if not one image."""
  if matches:
    return (
      f'{len(matches)} images of the split: give the folders, as in '
      f'{ids[matches[0]]!r}'
    )
  similar = index.similar(entry)
  if similar:
    shown = ', '.join(repr(name) for name in similar)
    return (
      f'no image of the split; similar is {shown}: folders and upper case count'
    )
  return 'no image of the split'


def evenly_spaced_image_indices(count: int, max_length: int) -> list[int]:
  """Chooses evenly spaced images; returns their indices, from 0.

  Args:
    count: number of images.
    max_length: largest number of indices to return.

  >>> evenly_spaced_image_indices(10, 3)
  [0, 4, 9]
  """
  return np.linspace(0, count - 1, min(count, max_length)).astype(int).tolist()
