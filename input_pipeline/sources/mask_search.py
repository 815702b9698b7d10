"""Files that seem to be the masks of images, under other names."""

import collections
import dataclasses
import enum
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.sources import image_ids

# Characters before the ending of a name.
_SEPARATOR = re.compile(r'[-_. ]')
# More files than this that begin alike are not masks of one image.
_MAX_ALIKE = 8
_PREFERRED = re.compile(r'label|mask|seg|annot', re.IGNORECASE)


class Difference(enum.Enum):
  """Difference between the name of a file and the expected one."""

  KIND = enum.auto()
  UPPER_CASE = enum.auto()
  ENDING = enum.auto()


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A file that seems to be the mask of an image.

  Attributes:
    file: the file.
    difference: description of how its name differs from the expected one.
    mask_ending: end of its name that is no part of the image's name, with the
      suffix: '_mask.png'.
    image_ending: end of the image's name that is no part of its name, without
      the suffix: '_leftImg8bit'.
  """

  file: pathlib.Path
  difference: Difference
  mask_ending: str = ''
  image_ending: str = ''


class MaskSearch:
  """Searches the masks of images without one, by names that are similar."""

  def __init__(
    self,
    folder: pathlib.Path,
    images: Mapping[str, pathlib.Path],
    masks: Sequence[pathlib.Path],
    others: Sequence[pathlib.Path],
  ):
    """Indexes the files that are no masks of other images.

    Args:
      folder: folder of the masks.
      images: images without a mask by their paths without endings.
      masks: masks without an image.
      others: further files in the folder of the masks.
    """
    self._exact: dict[str, pathlib.Path] = {}
    self._lower: dict[str, pathlib.Path] = {}
    self._beginning = collections.defaultdict(list)
    for path in (*masks, *others):
      stem = image_ids.compose_unicode(
        path.relative_to(folder).with_suffix('').as_posix()
      )
      self._exact.setdefault(stem, path)
      self._lower.setdefault(stem.casefold(), path)
      for start, end in _beginnings(stem):
        self._beginning[start].append((end + path.suffix, path))
    self._endings = self._count_endings(images)

  def find(self, stem: str) -> Candidate | None:
    """Returns the file that seems to be the mask of an image, if any.

    Args:
      stem: path of the image without its ending.
    """
    if stem in self._exact:
      return Candidate(self._exact[stem], Difference.KIND)
    if stem.casefold() in self._lower:
      return Candidate(self._lower[stem.casefold()], Difference.UPPER_CASE)
    if files := self._beginning.get(stem):
      ending, path = min(files, key=self._rank(''))
      return Candidate(path, Difference.ENDING, ending)
    for start, image_ending in reversed([*_beginnings(stem)]):
      files = [
        (ending, path)
        for ending, path in self._alike(start)
        # Names that are numbered differ in their ends, too.
        if self._endings[image_ending, ending] > 1
      ]
      if files:
        ending, path = min(files, key=self._rank(image_ending))
        return Candidate(path, Difference.ENDING, ending, image_ending)
    return None

  def _alike(self, start: str) -> Sequence[tuple[str, pathlib.Path]]:
    """Returns the files that begin like an image, unless they are many."""
    files = self._beginning.get(start, [])
    return files if len(files) <= _MAX_ALIKE else []

  def _count_endings(
    self, images: Mapping[str, pathlib.Path]
  ) -> collections.Counter[tuple[str, str]]:
    """Counts the images for each pair of endings of image and file."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for stem in images:
      counts.update(('', ending) for ending, _ in self._beginning.get(stem, ()))
      for start, image_ending in _beginnings(stem):
        counts.update(
          (image_ending, ending) for ending, _ in self._alike(start)
        )
    return counts

  def _rank(self, image_ending: str):
    """Returns a key that orders files, the most plausible mask first."""

    def rank(file: tuple[str, pathlib.Path]) -> tuple:
      ending, path = file
      return (
        -self._endings[image_ending, ending],
        path.suffix.lower() != '.png',
        not _PREFERRED.search(ending),
        ending,
      )

    return rank


def _beginnings(stem: str) -> Iterator[tuple[str, str]]:
  """Yields the parts before and after each separator in a file name."""
  folder_end = stem.rfind('/') + 1
  for match in _SEPARATOR.finditer(stem, folder_end + 1):
    yield stem[: match.start()], stem[match.start() :]
