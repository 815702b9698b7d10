"""Which images of a split are labeled: a seeded subset, or a list in a file.

Subset(fraction=0.1, seed=0, run=3).labeled_indices(split.ids())
Subset(list='splits/92/labeled.txt').labeled_indices(split.ids())
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from runtime import errors

# The images that a subset sets aside, where a config names a split.
HELD_OUT = 'held_out'

# What lists write behind the name of an image.
_SUFFIXES = ('.jpg', '.jpeg', '.png', '_leftImg8bit')


@dataclasses.dataclass(frozen=True)
class Subset:
  """A subset of the training images.

  Attributes:
    labels: number of images; 0 means that `fraction` or `list` decides. With
      `list` it must be the list's.
    fraction: share of the images in (0, 1], rounded half up, at least 1.
    seed: which subset; the same for every method, so that runs are paired.
    run: of several with one seed, each another subset.
    nested: whether the 50 images of a seed and run are among its 100; else
      every number of images is drawn anew.
    list: file that names the images, one a line, as U2PL's `labeled.txt`
      does: a name or a path, with or without its suffix.
    held_out: images that are set aside, none of them labeled: to decide on
      learning rates without looking at a benchmark's val.
  """

  labels: int = 0
  fraction: float = 1.0
  seed: int = 0
  run: int = 0
  nested: bool = True
  list: str = ''
  held_out: int = 0

  def __post_init__(self):
    for name in ('seed', 'run', 'labels', 'held_out'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 0 or more'
        )
    if not 0 < self.fraction <= 1:
      raise ValueError(f'fraction: found {self.fraction}, expected (0, 1]')
    if self.fraction != 1.0:
      for name in ('labels', 'list'):
        if getattr(self, name):
          raise ValueError(
            f'{name}={getattr(self, name)} and fraction={self.fraction} '
            'contradict each other: give one of them'
          )

  def labeled_indices(self, ids: Sequence[str]) -> Int[np.ndarray, 'chosen']:
    """Returns the sorted indices of the chosen images.

    Args:
      ids: names of all images.

    Raises:
      UserError: more labels are asked for than there are images, or the list
        cannot be followed.
    """
    if self.list:
      found = find(ids, self.list)
      if self.labels not in (0, len(found)):
        raise errors.UserError(
          f'list: {self.list} names {len(found)} images, but labels='
          f'{self.labels}: expected the same number'
        )
      return found
    return np.sort(self._order(ids)[: self._count(len(ids))])

  def held_out_indices(self, ids: Sequence[str]) -> Int[np.ndarray, 'held']:
    """Returns the sorted indices of the images that are held out.

    Raises:
      UserError: none are, or there are too few.
    """
    if not self.held_out:
      raise errors.UserError(
        f'the split {HELD_OUT!r} is empty: expected subset.held_out above 0'
      )
    order = self._order(ids)
    if self.list:
      order = order[~np.isin(order, find(ids, self.list))]
    if self.held_out > len(order):
      raise errors.UserError(
        f'held_out: found {self.held_out}, but only {len(order)} images are '
        'not labeled: hold out fewer'
      )
    return np.sort(order[-self.held_out :])

  def _order(self, ids: Sequence[str]) -> Int[np.ndarray, 'all']:
    """All images; the first ones are labeled, the last ones held out."""
    key = () if self.nested and not self.run else (self.run,)
    if not self.nested and not self.list:
      key += (self._count(len(ids)),)
    rng = np.random.default_rng(
      np.random.SeedSequence(self.seed, spawn_key=key)
    )
    return rng.permutation(len(ids))

  def _count(self, num_images: int) -> int:
    """How many images are labeled."""
    left = num_images - self.held_out
    # 50 · 0.29 is 14.499999999999998 in floating point, and means 14.5.
    share = round(num_images * self.fraction, 6)
    count = self.labels or max(1, math.floor(share + 0.5))
    if self.fraction == 1.0 and not self.labels:
      count = max(left, 0)  # All that are not held out.
    if not 0 < count <= left:
      held = f', {self.held_out} of them held out' if self.held_out else ''
      raise errors.UserError(
        f'{count} labeled images were asked for, the split has {num_images}'
        f'{held}: ask for fewer'
      )
    return count


def repeat_to_length(
  num_images: int, length: int, seed: int
) -> Int[np.ndarray, 'length']:
  """Indices of images, each about equally often.

  The images are repeated until there are enough, and `length` of the entries
  are drawn without replacement (spec U2PL §5.2).
  """
  times = -(-length // num_images)
  entries = np.random.default_rng(seed).permutation(times * num_images)
  return np.sort(entries[:length] % num_images)


def find(ids: Sequence[str], path: str) -> Int[np.ndarray, 'listed']:
  """The sorted indices of the images that a list names.

  An entry names an image by its id, or by the last part of it.

  Raises:
    UserError: the list cannot be read, is empty, names an image twice or one
      that is not there.
  """
  try:
    text = pathlib.Path(path).expanduser().read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      errors.one_line(f'list: cannot read {path}: {error}')
    ) from error
  entries = [line.strip() for line in text.splitlines() if line.strip()]
  if not entries:
    raise errors.UserError(f'list: {path} is empty: expected an image a line')
  places = collections.defaultdict(list)
  for i, name in enumerate(ids):
    for known in {name, _last(name)}:
      places[known].append(i)
  found: dict[int, str] = {}
  for entry in entries:
    at = places.get(entry) or places.get(_last(entry), [])
    if len(at) != 1:
      what = f'{len(at)} images' if at else 'no image'
      raise errors.UserError(
        errors.one_line(
          f'list: {path} has the line {entry!r}, which names {what} of the '
          f'split (its names are like {ids[0]!r})'
        )
      )
    if at[0] in found:
      raise errors.UserError(
        errors.one_line(
          f'list: {path} has {entry!r} and {found[at[0]]!r}, which are the '
          'same image'
        )
      )
    found[at[0]] = entry
  return np.array(sorted(found))


def _last(name: str) -> str:
  """The last part of a path, without what lists write behind it."""
  name = name.rpartition('/')[2]
  for suffix in _SUFFIXES:  # In the order in which they are taken off.
    name = name.removesuffix(suffix)
  return name


def evenly_spaced(count: int, most: int) -> list[int]:
  """Returns at most `most` of `count` positions, evenly spaced, in order.

  >>> evenly_spaced(10, 3)
  [0, 4, 9]
  """
  return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
