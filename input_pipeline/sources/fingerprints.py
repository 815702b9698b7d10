"""Which images are the same: by name, by their bytes, by what they look like.

An `ImageIndex` stands beside the records of a split: what is asked of all its
images before a training starts (names, sizes, whether one is in two splits)
needs no image then.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8, UInt64

from input_pipeline.sources import records
from runtime import errors, progress

# Bits of 64 in which two looks of the same photograph may differ: JPEG of
# quality 30 to 95, PNG, and scaled by 0.5 to 2, in tests on CamVid.
NEAR = 6

_HELD_OUT = {'val', 'test'}
# So many pairs are named.
_SHOWN = 5
_SIDE = 32  # An image is looked at in this many pixels each way.
_LOW = 8  # Of its cosine transform, the lowest frequencies each way.


def digest(encoded: bytes) -> int:
  """64 bits that differ where the bytes do."""
  found = hashlib.blake2b(encoded, digest_size=8).digest()
  return int.from_bytes(found, 'little')


def look(pixels: UInt8[np.ndarray, 'H W 3']) -> int:
  """64 bits that are nearly the same where images look the same.

  Signs of the lowest frequencies of a gray thumbnail's cosine transform, with
  respect to their median (the "perceptual hash" of C. Zauner, 2010).
  """
  gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  low = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW].ravel()
  bits = low > np.median(low[1:])  # The first is the mean brightness.
  return int.from_bytes(np.packbits(bits).tobytes(), 'little')


@dataclasses.dataclass(frozen=True, eq=False)
class ImageIndex:
  """What is known of the images of a split without reading them, in order.

  Attributes:
    ids: the official names.
    sizes: height and width.
    digests: of the encoded images.
    looks: see `look`.
  """

  ids: Shaped[np.ndarray, 'N']
  sizes: Int32[np.ndarray, 'N 2']
  digests: UInt64[np.ndarray, 'N']
  looks: UInt64[np.ndarray, 'N']

  @classmethod
  def from_samples(cls, samples: Iterable[records.Sample]) -> 'ImageIndex':
    """The index of samples."""
    return cls.join([cls.from_sample(sample) for sample in samples])

  @classmethod
  def from_sample(cls, sample: records.Sample) -> 'ImageIndex':
    """The index of one sample."""
    return cls(
      np.array([sample.id.encode()]),
      np.array([sample.pixels.shape[:2]], np.int32),
      np.array([digest(sample.image)], np.uint64),
      np.array([look(sample.pixels)], np.uint64),
    )

  @classmethod
  def join(cls, parts: Sequence['ImageIndex']) -> 'Index':
    """One index after the other."""
    if not parts:
      nothing = np.zeros(0, np.uint64)
      return cls(
        np.zeros(0, 'S1'), np.zeros((0, 2), np.int32), nothing, nothing
      )
    return cls(
      *(
        np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(cls)
      )
    )

  @classmethod
  def read(cls, path: pathlib.Path) -> 'ImageIndex':
    """What `write` has written."""
    with np.load(path, allow_pickle=False) as arrays:
      return cls(**arrays)

  def write(self, path: pathlib.Path) -> None:
    """Writes an npz file."""
    with path.open('wb') as file:
      np.savez(file, **dataclasses.asdict(self))

  def __len__(self) -> int:
    return len(self.ids)

  def select(self, indices: np.ndarray) -> 'ImageIndex':
    """The index of some of the images."""
    return ImageIndex(
      *(getattr(self, f.name)[indices] for f in dataclasses.fields(self))
    )

  def names(self) -> list[str]:
    """The ids as text."""
    return [name.decode() for name in self.ids]


def check_disjoint(
  first: ImageIndex, second: ImageIndex, what: tuple[str, str]
) -> None:
  """Refuses splits which share an image.

  Args:
    first: of what is trained on.
    second: of what is evaluated on.
    what: names of both, for people.

  Raises:
    UserError: an image is in both, by its name or by its bytes.
  """
  for name, how in (('ids', 'name'), ('digests', 'content')):
    mine, theirs = getattr(first, name), getattr(second, name)
    shared, at, there = np.intersect1d(mine, theirs, return_indices=True)
    if len(shared):
      count = f' and {len(shared) - 1:,} more' if len(shared) > 1 else ''
      raise errors.UserError(
        f'{what[0]} and {what[1]} share images by their {how}: '
        f'{first.ids[at[0]].decode()} is {second.ids[there[0]].decode()}{count}'
        '; take them out of one of the two'
      )


def shared(indices: Mapping[str, ImageIndex]) -> list[str]:
  """Images that what is held out shares with the other splits, a line a pair.

  Args:
    indices: of the splits; `val` and `test` are held out.
  """
  lines = []
  for first, second in itertools.combinations(indices, 2):
    if not {first, second} & _HELD_OUT:
      continue
    mine, theirs = indices[first], indices[second]
    same = {
      'name': _equal(mine.ids, theirs.ids),
      'content': _equal(mine.digests, theirs.digests),
    }
    known = {pair for pairs in same.values() for pair in pairs}
    same['look'] = [
      pair for pair in near(mine.looks, theirs.looks) if pair not in known
    ]
    for how, pairs in same.items():
      if pairs:
        shown = ', '.join(
          f'{mine.ids[i].decode()} = {theirs.ids[j].decode()}'
          for i, j in pairs[:_SHOWN]
        )
        more = ' …' if len(pairs) > _SHOWN else ''
        lines.append(
          f'{first} and {second} share images by {how}, {len(pairs):,} pairs: '
          f'{shown}{more}; scores on {second if second in _HELD_OUT else first}'
          ' may be too good'
        )
  return lines


def _equal(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
  _, mine, theirs = np.intersect1d(first, second, return_indices=True)
  return list(zip(mine.tolist(), theirs.tolist(), strict=True))


def near(
  first: UInt64[np.ndarray, 'N'],
  second: UInt64[np.ndarray, 'M'],
  most: int = NEAR,
) -> list[tuple[int, int]]:
  """Pairs (i, j) of images that look the same, whatever their bytes."""
  pairs = []
  block = max(2**24 // max(len(second), 1), 1)
  for start in progress.bar(
    range(0, len(first), block),
    desc='comparing looks',
    unit='block',
    delay=1,
    leave=False,
  ):
    close = _close(first[start : start + block], second, most)
    pairs += [(start + int(i), int(j)) for i, j in np.argwhere(close)]
  return pairs


def _close(
  first: UInt64[np.ndarray, 'N'], second: UInt64[np.ndarray, 'M'], most: int
) -> Bool[np.ndarray, 'N M']:
  return np.bitwise_count(first[:, None] ^ second[None, :]) <= most
