"""Ids of images, and the entries of lists that name them.

  index = IdIndex(['aachen/000', 'aachen/001'])
  index.find('images/aachen/000.JPG')  # [0]
  index.find('bochum/000.jpg')         # []

Names are compared in the composed Unicode form (NFC): macOS and zip files write
an accented letter as two characters where other systems write one.
"""

import collections
import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Sequence

# Endings of the names in lists.
_SUFFIX = re.compile(r'\.(jpe?g|png|tiff?|bmp|webp|gif)$', flags=re.IGNORECASE)
_IMAGE_ENDING = '_leftImg8bit'  # Of Cityscapes; no part of an id.
# Stands for the name of a split in the path of a folder of images.
SPLIT = '{split}'
# Images that the message about an unknown entry names.
_MAX_SIMILAR = 3


def compose_unicode(name: str) -> str:
  """Returns a name in the composed Unicode form (NFC)."""
  return unicodedata.normalize('NFC', name)


def image_name(path: str) -> str:
  """Returns the last part of a path, without the endings of images.

  >>> image_name('leftImg8bit/train/a_000_leftImg8bit.png')
  'a_000'
  """
  parts = _parts(_clean(path))
  return _without_ending(parts[-1]) if parts else ''


def has_image_suffix(path: str) -> bool:
  """Returns whether a path ends as a file of an image or a mask."""
  return _SUFFIX.search(path) is not None


@dataclasses.dataclass(frozen=True)
class IdRule:
  """Relates the ids of images to the paths of their files.

  Attributes:
    folder: path of the folder of the images, from which the ids are relative
      paths; with `{split}` in it, ids begin with the name of their split. '' if
      the ids are official names, whatever the folders.
    ending: end of the names of all files that is no part of ids, with or
      without the suffix: '_leftImg8bit.png'.
  """

  folder: str = ''
  ending: str = ''


# Ids that are names which were given to images, whatever their folders.
OFFICIAL = IdRule()


class IdIndex:
  """Index of image ids, to find the image that a line of a list names."""

  def __init__(self, ids: Sequence[str], rule: IdRule = OFFICIAL):
    """Indexes the ids by the parts of their paths.

    Args:
      ids: ids of all images.
      rule: relation of the ids to the paths of the images.
    """
    self._ending = rule.ending
    self._ids = [_parts(name) for name in map(compose_unicode, ids)]
    self._above = [
      compose_unicode(part) for part in pathlib.PurePath(rule.folder).parts
    ]
    self._by_id = collections.defaultdict(list)
    self._by_name = collections.defaultdict(list)
    for i, parts in enumerate(self._ids):
      self._by_id['/'.join(parts)].append(i)
      self._by_name[self._without_ending(parts[-1])].append(i)

  def find(self, entry: str) -> list[int]:
    """Returns the indices of the images that an entry can stand for.

    An entry is an id, the last parts of one, or the path of the image, with or
    without suffix. An entry with folders never names an image of others.
    """
    whole = '/'.join(_parts(_clean(entry)))
    for exact in (whole, _SUFFIX.sub('', whole)):
      if exact in self._by_id:
        return self._by_id[exact]
    parts = [*_parts(whole)]
    if not parts:
      return []
    parts[-1] = self._without_ending(parts[-1])
    agreeing = {
      i: length
      for i in self._by_name.get(parts[-1], ())
      if (length := self._agreement(parts, i))
    }
    # `a/b/x` names the image `a/b/x`, not `x`, if there are both.
    longest = max(agreeing.values(), default=0)
    return [i for i, length in agreeing.items() if length == longest]

  def similar(self, entry: str) -> list[str]:
    """Returns ids with the same last part, whatever their folders and case."""
    parts = _parts(_clean(entry))
    name = self._without_ending(parts[-1]).casefold() if parts else ''
    return [
      '/'.join(self._ids[i])
      for other, indices in self._by_name.items()
      if other.casefold() == name
      for i in indices
    ][:_MAX_SIMILAR]

  def _without_ending(self, name: str) -> str:
    """Returns a file name without suffix and ending."""
    end = compose_unicode(_SUFFIX.sub('', self._ending))
    return _without_ending(_SUFFIX.sub('', name).removesuffix(end))

  def _agreement(self, entry: Sequence[str], i: int) -> int:
    """Returns how many last parts an entry shares with image i; 0 if few.

    They must be all parts of the entry; or the id and, where that is known, the
    folder above it. In front of those, an absolute path of another machine, or
    of before the folder was moved, may differ.
    """
    name, path = self._ids[i], _path_parts(self._ids[i], self._above)
    path = [*path[:-1], self._without_ending(path[-1])]
    shared = 0
    for one, other in zip(reversed(entry), reversed(path), strict=False):
      if one != other:
        break
      shared += 1
    needed = len(name) + (path[:-1] != [*name[:-1]])
    return shared if shared >= min(len(entry), needed) else 0


def _clean(entry: str) -> str:
  """Returns the name of an entry without quotes, with slashes."""
  entry = compose_unicode(entry.strip().strip('"\'').strip())
  return entry.replace('\\', '/')


def _parts(path: str) -> list[str]:
  return [part for part in path.split('/') if part not in ('', '.', '..')]


def _path_parts(parts: Sequence[str], above: Sequence[str]) -> list[str]:
  """Returns the path of an image, from its id and the folder of the images."""
  if SPLIT in above:
    split, *parts = parts
    above = [split if part == SPLIT else part for part in above]
  return [*above, *parts]


def _without_ending(name: str) -> str:
  return _SUFFIX.sub('', name).removesuffix(_IMAGE_ENDING)
