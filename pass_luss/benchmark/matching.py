"""Which generated category is which class: found once, by what occurs together.

  counts = matching.Cooccurrence.empty(num_generated=50, num_classes=50)
  for prediction, label, id in images:
    counts = counts.update(prediction, label, id)
  match = metrics.merge_across_hosts(counts).match()
  match.write(folder / 'match.json')
  matched = match.apply(prediction)

Without labels a network numbers its categories as it likes. They are matched
with the classes on val, and test uses the matching of val. Source: the
ImageNet-S benchmark (Gao et al., Large-scale unsupervised semantic
segmentation, 2022), fully unsupervised protocol. With labels the classes of two
data sets are matched by their names (`match_by_name`).
"""

import dataclasses
import errno
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Int, Int16, Int64

from runtime import errors, files
from segcore.eval import metrics

Pair = tuple[Int64[np.ndarray, '_'], Int64[np.ndarray, '_']]

# The largest category and class.
_MOST = np.iinfo(np.int16).max
# In the place of the class of a category of which nothing is said.
_UNSAID = -1


@dataclasses.dataclass(frozen=True)
class Match:
  """The class of each generated category.

  Categories without a class are 'other', 0: those left over where more were
  generated than there are classes, as by a network for ImageNet-S 919 that is
  evaluated on ImageNet-S 50. Several categories may have one class, as methods
  have it that cluster finer than the classes.

  Attributes:
    classes: of the categories 0…G. Category 0 is 'other', so its class is 0; -1
      for categories of which nothing is said, which predictions must not have.

  >>> Match((0, 2, 1)).apply(np.array([[0, 1, 2]])).tolist()
  [[0, 2, 1]]
  """

  classes: tuple[int, ...]

  def __post_init__(self):
    if not self.classes or self.classes[0] != 0:
      raise ValueError(
        f"category 0 has class {(*self.classes, None)[0]}; expected 0, 'other'"
      )
    if min(self.classes) < _UNSAID or max(self.classes) > _MOST:
      raise ValueError(
        f'classes {min(self.classes)}…{max(self.classes)} found; expected '
        f'0…{_MOST}'
      )

  @property
  def num_generated(self) -> int:
    """Number of categories without 'other'."""
    return len(self.classes) - 1

  def apply(
    self, prediction: Int[np.ndarray, 'H W']
  ) -> Int16[np.ndarray, 'H W']:
    """Replaces categories 0…G by classes.

    Raises:
      ValueError: the prediction has an id of which nothing is said.
    """
    known = np.array(self.classes, np.int16)
    for id in (prediction.min(initial=0), prediction.max(initial=0)):
      if not 0 <= id <= self.num_generated:
        raise ValueError(
          f'has id {id}, of which the matching says nothing: expected '
          f'0…{self.num_generated}'
        )
    matched = known.take(prediction)
    if (matched == _UNSAID).any():
      raise ValueError(
        f'has id {prediction[matched == _UNSAID].min()}, of which the matching '
        'says nothing'
      )
    return matched

  def write(self, path: files.Path) -> None:
    """Writes match.json, {category: class}, whole or not at all.

    Raises:
      UserError: the file system does not let it.
    """
    content = {str(i): of for i, of in enumerate(self.classes) if of != _UNSAID}
    try:
      files.write(path, json.dumps(content, indent=1) + '\n')
    except OSError as error:
      full = error.errno in (errno.ENOSPC, errno.EDQUOT)
      # Folders above are made: one of them may be what cannot be.
      where = f': {error.filename}' if error.filename else ''
      raise errors.UserError(
        errors.one_line(
          f'cannot write {path} ({error.strerror or error}{where}): '
          + ('free some space, or ' if full else '')
          + 'choose a folder that is there and can be written'
        )
      ) from error

  @classmethod
  def read(cls, path: files.Path, num_classes: int) -> 'Match':
    """Reads what `write`, the benchmark's toolbox or a person has written.

    Ids that are never predicted may be left out.

    Raises:
      BadFile: it cannot be read, is no JSON, or no matching to num_classes
        classes.
    """
    try:
      content = json.loads(path.read_bytes(), object_pairs_hook=_without_twins)
      match = cls(_in_order(content))
      if max(match.classes) > num_classes:
        raise ValueError(
          f'class {max(match.classes)} found; expected 0…{num_classes}'
        )
    except OSError as error:
      reason = f'cannot be read: {error.strerror or error}'
      raise errors.BadFile(path, reason) from error
    except (ValueError, RecursionError) as error:
      reason = (
        f'is no matching {{"0": 0, "1": class, …}}: {error}; write it with '
        '--write_match'
      )
      raise errors.BadFile(path, reason) from error
    return match


@dataclasses.dataclass(frozen=True, eq=False)
class Cooccurrence:
  """In how many images each category and each class both occur.

  One pixel is enough to occur, also one where the other map has 'other' or is
  ignored. 'other' itself is not counted.

  Attributes:
    counts: rows are the categories 1…G, columns the classes 1…C.

  >>> label, prediction = np.array([[1, 0, 2]]), np.array([[2, 2, 0]])
  >>> counts = Cooccurrence.empty(2, 2).update(prediction, label, 'cat')
  >>> counts.counts.tolist()
  [[0, 0], [1, 1]]
  """

  counts: Int64[np.ndarray, 'G C']

  @classmethod
  def empty(cls, num_generated: int, num_classes: int) -> 'Cooccurrence':
    """Returns the counts of no image; both numbers are without 'other'."""
    if min(num_generated, num_classes) < 1:
      raise ValueError(
        f'{num_generated} categories and {num_classes} classes; allowed: 1 or '
        'more'
      )
    return cls(np.zeros((num_generated, num_classes), np.int64))

  def update(
    self,
    prediction: Int[np.ndarray, 'H W'],
    label: Int[np.ndarray, 'H W'],
    id: bytes | str,
  ) -> 'Cooccurrence':
    """Returns the counts with one image more; negative labels are ignored.

    Raises:
      ValueError: an id is out of range; with the image's.
    """
    try:
      return self.update_all([present_ids(prediction, label)])
    except ValueError as error:
      name = id.decode() if isinstance(id, bytes) else id
      raise ValueError(f'image {name}: {error}') from None

  def update_all(self, pairs: Iterable[Pair]) -> 'Cooccurrence':
    """Returns the counts with several images more, each from `present_ids`.

    Raises:
      ValueError: an id is out of range.
    """
    counts = self.counts.copy()
    for categories, classes in pairs:
      for ids, most, what in (
        (categories, counts.shape[0], 'predictions'),
        (classes, counts.shape[1], 'labels'),
      ):
        if ids.size and ids[-1] > most:
          raise ValueError(f'{what} up to {ids[-1]} found; allowed: 0…{most}')
      counts[np.ix_(categories - 1, classes - 1)] += 1
    return type(self)(counts)

  def merge(self, other: 'Cooccurrence') -> 'Cooccurrence':
    """Returns the counts over the images of both."""
    if self.counts.shape != other.counts.shape:
      raise ValueError(
        f'cannot merge counts of shapes {self.counts.shape} and '
        f'{other.counts.shape}'
      )
    return type(self)(self.counts + other.counts)

  def match(self) -> Match:
    """The matching with the largest sum of counts (the Hungarian method).

    It is a bijection if there are as many categories as classes. Several can
    be the best; keep the one that was used.
    """
    rows, columns = scipy.optimize.linear_sum_assignment(
      self.counts, maximize=True
    )
    classes = np.zeros(len(self.counts) + 1, np.int64)
    classes[rows + 1] = columns + 1
    return Match(tuple(classes.tolist()))

  def compute(self) -> metrics.Values:
    """Returns matched_pairs, the sum of counts that `match` reaches."""
    classes = np.array(self.match().classes[1:])
    rows = np.flatnonzero(classes)
    total = self.counts[rows, classes[rows] - 1].sum()
    return {'matched_pairs': float(total)}


def match_by_name(known: Sequence[str], wanted: Sequence[str]) -> Match:
  """The classes of a data set as those of another one that have their names.

  The others are 'other', as class 0 of both is, whatever it is called
  (spec §1.2, §5.6).

  >>> match_by_name(('other', 'cat', 'dog', 'cow'), ('other', 'cow', 'cat'))
  Match(classes=(0, 2, 0, 1))

  Args:
    known: the classes that are predicted.
    wanted: those that masks have.

  Raises:
    UserError: they have no class in common.
  """
  ids = {name: i for i, name in enumerate(wanted) if i}
  classes = (0, *(ids.get(name, 0) for name in known[1:]))
  if not any(classes):
    raise errors.UserError(
      f'none of {len(known) - 1} classes ({", ".join(known[1:4])}, …) is among '
      f'the {len(wanted) - 1} of the data ({", ".join(wanted[1:4])}, …): '
      'classes are matched by their names, choose data that shares some'
    )
  return Match(classes)


def present_ids(
  prediction: Int[np.ndarray, 'H W'], label: Int[np.ndarray, 'H W']
) -> Pair:
  """The distinct ids of one image, from 1 and sorted: categories and classes.

  Raises:
    ValueError: the prediction has negative ids.
  """
  if prediction.size and prediction.min() < 0:
    raise ValueError(f'prediction {prediction.min()} found; allowed: 0 or more')
  return _present(prediction), _present(label)


def _present(ids: Int[np.ndarray, 'H W']) -> Int64[np.ndarray, 'N']:
  # Counting is faster than sorting the pixels; -1 and 0 become the first bin.
  counts = np.bincount(np.maximum(ids, 0).ravel())
  return np.flatnonzero(counts[1:]).astype(np.int64) + 1


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
  """A JSON object, none of whose keys stands there twice."""
  content = dict(pairs)
  if len(content) < len(pairs):
    keys = [key for key, _ in pairs]
    twin = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'key {twin!r} is there twice')
  return content


def _in_order(content: Any) -> tuple[int, ...]:
  """The values of the keys '0', '1', …; _UNSAID for those that are left out."""
  if not isinstance(content, Mapping):
    raise ValueError(f'found a JSON {type(content).__name__}, no object')
  content = {'0': 0, **content}
  for key, value in content.items():
    if not re.fullmatch('0|[1-9][0-9]{0,4}', key) or int(key) > _MOST:
      raise ValueError(f'key {key!r} found; expected whole numbers to {_MOST}')
    if type(value) is not int:  # JSON's true would pass for 1.
      raise ValueError(f'key {key!r} has the value {value!r}, no whole number')
    if value < 0:
      raise ValueError(f'key {key!r} has the class {value}; expected 0 or more')
  keys = range(max(map(int, content)) + 1)
  return tuple(content.get(str(key), _UNSAID) for key in keys)
