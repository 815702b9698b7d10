"""Matches generated categories with classes by their cooccurrence in images.

  counts = matching.Cooccurrence.empty(num_generated=50, num_classes=50)
  for prediction, label, id in images:
    counts = counts.update(prediction, label, id)
  match = metrics.merge_metrics_across_hosts(counts).match()
  match.write(folder / 'match.json')
  matched = match.apply(prediction)

The numbers of categories that were learned without labels are arbitrary. They
are matched with the classes on val, and test uses the matching of val; classes
that were learned from labels are matched with those of another data set by name
(`match_classes_by_name`). Source: the ImageNet-S benchmark (Gao et al.,
Large-scale unsupervised semantic segmentation, 2022), fully unsupervised
protocol.
"""

import dataclasses
import errno
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy
from jaxtyping import Int, Int16, Int64

from runtime import errors, files
from segcore.eval import metrics

with epy.lazy_imports():
  import scipy.optimize

Pair = tuple[Int64[np.ndarray, '_'], Int64[np.ndarray, '_']]

# The largest category and class: label maps are int16.
_MAX_ID = np.iinfo(np.int16).max
# Stands for the class of a category that a match.json leaves out.
_UNMATCHED = -1


@dataclasses.dataclass(frozen=True)
class Match:
  """Mapping from generated categories to classes; may be many-to-one.

  Where there are more categories than classes, as when a network for
  ImageNet-S 919 is evaluated on ImageNet-S 50, surplus categories become
  'other', 0. Several categories may be mapped to one class, as by methods with
  more clusters than classes.

  Attributes:
    classes: class of each category 0…G. Category 0 is 'other', so its class is
      0; -1 for unmatched categories, which predictions must not have.

  >>> Match((0, 2, 1)).apply(np.array([[0, 1, 2]])).tolist()
  [[0, 2, 1]]
  """

  classes: tuple[int, ...]

  def __post_init__(self):
    if not self.classes or self.classes[0] != 0:
      raise ValueError(
        "expected class 0, 'other', for category 0, got "
        f'{self.classes[0] if self.classes else None}'
      )
    if min(self.classes) < _UNMATCHED or max(self.classes) > _MAX_ID:
      raise ValueError(
        f'expected classes 0…{_MAX_ID}, got '
        f'{min(self.classes)}…{max(self.classes)}'
      )

  @property
  def num_generated(self) -> int:
    """Returns the number of categories without 'other'."""
    return len(self.classes) - 1

  def apply(
    self, prediction: Int[np.ndarray, 'H W']
  ) -> Int16[np.ndarray, 'H W']:
    """Replaces categories 0…G by their classes.

    Raises:
      ValueError: the prediction has an unmatched category.
    """
    classes = np.array(self.classes, np.int16)
    for id in (prediction.min(initial=0), prediction.max(initial=0)):
      if not 0 <= id <= self.num_generated:
        raise ValueError(
          f'expected ids 0…{self.num_generated} of the matching, got {id}'
        )
    matched = classes.take(prediction)
    if (matched == _UNMATCHED).any():
      raise ValueError(
        'expected ids of the matching, got '
        f'{prediction[matched == _UNMATCHED].min()}, which has no class in it'
      )
    return matched

  def write(self, path: files.Path) -> None:
    """Writes match.json, {category: class}, atomically.

    Raises:
      UserError: the file cannot be written.
    """
    content = {
      str(category): class_id
      for category, class_id in enumerate(self.classes)
      if class_id != _UNMATCHED
    }
    try:
      files.write_atomically(path, json.dumps(content, indent=1) + '\n')
    except OSError as error:
      full = error.errno in (errno.ENOSPC, errno.EDQUOT)
      # Missing folders are created: the failing path may be one of them.
      where = f': {error.filename}' if error.filename else ''
      raise errors.UserError(
        errors.format_on_one_line(
          f'cannot write {path} ({error.strerror or error}{where}): '
          + ('free some space, or ' if full else '')
          + 'choose a folder that exists and is writable'
        )
      ) from error

  @classmethod
  def read(cls, path: files.Path, num_classes: int) -> 'Match':
    """Reads a match.json of `write`, the benchmark's toolbox or a person.

    Categories that are never predicted may be left out.

    Raises:
      BadFile: the file cannot be read, is no JSON, or no mapping to
        `num_classes` classes.
    """
    try:
      content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
      match = cls(_classes_in_order(content))
      if max(match.classes) > num_classes:
        raise ValueError(
          f'expected classes 0…{num_classes}, got {max(match.classes)}'
        )
    except OSError as error:
      reason = f'cannot be read: {error.strerror or error}'
      raise errors.BadFile(path, reason) from error
    except (ValueError, RecursionError) as error:
      reason = (
        f'expected a matching {{"0": 0, "1": class, …}}: {error}; write it '
        'with --write_match'
      )
      raise errors.BadFile(path, reason) from error
    return match


@dataclasses.dataclass(frozen=True, eq=False)
class Cooccurrence:
  """Number of images in which each category and each class both occur.

  One pixel is enough, also where the other map has 'other' or is ignored.
  'other' itself is not counted.

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
    """Returns the counts over no image; both numbers are without 'other'."""
    if min(num_generated, num_classes) < 1:
      raise ValueError(
        f'expected 1 or more, got {num_generated} categories and {num_classes} '
        'classes'
      )
    return cls(np.zeros((num_generated, num_classes), np.int64))

  def update(
    self,
    prediction: metrics.LabelMap,
    label: metrics.LabelMap,
    id: bytes | str,
  ) -> 'Cooccurrence':
    """Returns the counts with one more image; negative labels are ignored.

    Raises:
      ValueError: a category or a class is out of range.
    """
    try:
      return self.update_all([present_category_ids(prediction, label)])
    except ValueError as error:
      name = id.decode() if isinstance(id, bytes) else id
      raise ValueError(f'image {name}: {error}') from None

  def update_all(self, pairs: Iterable[Pair]) -> 'Cooccurrence':
    """Adds images, each given as its pair of `present_category_ids`.

    Raises:
      ValueError: a category or a class is out of range.
    """
    counts = self.counts.copy()
    for categories, classes in pairs:
      for ids, highest, name in (
        (categories, counts.shape[0], 'predictions'),
        (classes, counts.shape[1], 'labels'),
      ):
        if ids.size and ids[-1] > highest:
          raise ValueError(f'expected {name} 0…{highest}, got {ids[-1]}')
      counts[np.ix_(categories - 1, classes - 1)] += 1
    return type(self)(counts)

  def merge(self, other: 'Cooccurrence') -> 'Cooccurrence':
    """Returns the sum of these counts and those over other images."""
    if self.counts.shape != other.counts.shape:
      raise ValueError(
        f'cannot merge counts of shapes {self.counts.shape} and '
        f'{other.counts.shape}'
      )
    return type(self)(self.counts + other.counts)

  def match(self) -> Match:
    """Returns the matching with the largest sum of counts (Hungarian method).

    It is a bijection if there are as many categories as classes. Optimal
    matchings are not unique: store the one that was used.
    """
    rows, columns = scipy.optimize.linear_sum_assignment(
      self.counts, maximize=True
    )
    classes = np.zeros(len(self.counts) + 1, np.int64)
    classes[rows + 1] = columns + 1
    return Match(tuple(classes.tolist()))

  def compute(self) -> metrics.Values:
    """Returns `matched_pairs`, the sum of counts of the optimal matching."""
    classes = np.array(self.match().classes[1:])
    rows = np.flatnonzero(classes)
    total = self.counts[rows, classes[rows] - 1].sum()
    return {'matched_pairs': float(total)}


def match_classes_by_name(
  predicted: Sequence[str], target: Sequence[str]
) -> Match:
  """Matches the classes of two data sets by their names (spec §1.2, §5.6).

  Class 0 of both is 'other', whatever its name. Classes that the target lacks
  become 'other'.

  >>> predicted = ('other', 'cat', 'dog', 'cow')
  >>> match_classes_by_name(predicted, ('other', 'cow', 'cat'))
  Match(classes=(0, 2, 0, 1))

  Args:
    predicted: names of the classes that a network predicts.
    target: names of the classes of the masks.

  Raises:
    UserError: the data sets have no class in common.
  """
  ids = {name: i for i, name in enumerate(target) if i}
  classes = (0, *(ids.get(name, 0) for name in predicted[1:]))
  if not any(classes):
    raise errors.UserError(
      f'expected classes with names among the {len(target) - 1} of the data '
      f'({", ".join(target[1:4])}, …), got {len(predicted) - 1} others '
      f'({", ".join(predicted[1:4])}, …): choose data that shares classes'
    )
  return Match(classes)


def present_category_ids(
  prediction: Int[np.ndarray, 'H W'], label: Int[np.ndarray, 'H W']
) -> Pair:
  """Returns the sorted categories and classes of an image, without 0.

  Raises:
    ValueError: the prediction has negative ids.
  """
  if prediction.size and prediction.min() < 0:
    raise ValueError(f'expected predictions from 0, got {prediction.min()}')
  return _present(prediction), _present(label)


def _present(ids: Int[np.ndarray, 'H W']) -> Int64[np.ndarray, 'N']:
  # Faster than np.unique, which sorts the pixels; -1 and 0 share the first bin.
  counts = np.bincount(np.maximum(ids, 0).ravel())
  return np.flatnonzero(counts[1:]).astype(np.int64) + 1


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
  """Builds a JSON object; raises ValueError if a key is repeated."""
  content = dict(pairs)
  if len(content) < len(pairs):
    keys = [key for key, _ in pairs]
    repeated = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'expected key {repeated!r} once, got it twice')
  return content


def _classes_in_order(content: Any) -> tuple[int, ...]:
  """Returns the values of the keys '0', '1', …; _UNMATCHED for absent keys."""
  if not isinstance(content, Mapping):
    raise ValueError(f'expected an object, got a {type(content).__name__}')
  content = {'0': 0, **content}
  for key, value in content.items():
    if not re.fullmatch('0|[1-9][0-9]{0,4}', key) or int(key) > _MAX_ID:
      raise ValueError(f'expected keys 0…{_MAX_ID}, got {key!r}')
    if type(value) is not int:  # isinstance would accept JSON's true as 1.
      raise ValueError(f'expected an integer for key {key!r}, got {value!r}')
    if value < 0:
      raise ValueError(f'expected a class from 0 for key {key!r}, got {value}')
  keys = range(max(map(int, content)) + 1)
  return tuple(content.get(str(key), _UNMATCHED) for key in keys)
