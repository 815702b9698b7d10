"""Duplicate images across splits: by name, by content, by appearance.

The `ImageIndex` of a split is stored beside its records. Names and sizes of the
images, and images that two splits share, are read from it before training
starts, without reading an image.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped, UInt8, UInt64

from input_pipeline.sources import records
from runtime import errors, progress

# Largest number of the 64 bits in which the perceptual hashes of one photograph
# differ: as JPEG of quality 30 to 95, as PNG, and scaled by 0.5 to 2, measured
# on CamVid. Hashes of different photographs differ in 32 bits on average.
MAX_HASH_DISTANCE = 6

# Keys of the fields of an index in its file, which must not change: prepared
# data sets have such files.
_KEYS = ('ids', 'sizes', 'digests', 'looks')

_HELD_OUT = {'val', 'test'}
# A warning names at most so many pairs.
_MAX_LISTED = 5
_THUMBNAIL = 32  # Side of the image that is hashed, in pixels.
_FREQUENCIES = 8  # Lowest frequencies of its cosine transform along each axis.


def image_digest(encoded: bytes) -> int:
  """Computes 64 bits of a hash of the bytes of an image file."""
  blake = hashlib.blake2b(encoded, digest_size=8).digest()
  return int.from_bytes(blake, 'little')


def perceptual_hash(pixels: UInt8[np.ndarray, 'H W 3']) -> int:
  """Computes 64 bits of which few differ between images of similar appearance.

  A bit states whether one of the lowest frequencies of the cosine transform of
  a gray thumbnail is above their median (C. Zauner: Implementation and
  benchmarking of perceptual image hash functions, 2010).
  """
  gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  transform = cv2.dct(shrink_gray_image(gray))
  low = transform[:_FREQUENCIES, :_FREQUENCIES].ravel()
  # The first is the mean brightness; the others are compared with their median.
  bits = low > np.sort(low[1:])[(len(low) - 1) // 2]
  return int.from_bytes(np.packbits(bits).tobytes(), 'little')


def shrink_gray_image(
  gray: UInt8[np.ndarray, 'H W'],
) -> Float32[np.ndarray, 'side side']:
  """Computes the thumbnail that is hashed: `cv2.resize` with INTER_AREA.

  OpenCV adds the pixels of a row one after the other, each to the sum before.
  These are the same additions in the same order, but of columns of the
  transposed image, four at a time, which takes two thirds of the time.
  """
  sides = np.array(gray.shape)
  if sides.min() < _THUMBNAIL or not np.all(sides % _THUMBNAIL):
    # OpenCV has other ways to enlarge, and to divide by integers.
    small = _resize_by_area(gray, (_THUMBNAIL, _THUMBNAIL))
    return small.astype(np.float32)
  height, width = gray.shape
  padded = cv2.copyMakeBorder(gray, 0, -height % 4, 0, 0, cv2.BORDER_CONSTANT)
  pixels = cv2.transpose(padded).astype(np.float32).reshape(width, -1, 4)
  columns = _resize_by_area(pixels, (pixels.shape[1], _THUMBNAIL))
  rows = cv2.transpose(columns.reshape(_THUMBNAIL, -1)[:, :height])
  return np.rint(_resize_by_area(rows, (_THUMBNAIL, _THUMBNAIL)))


def _resize_by_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes to a width and height by the means of areas."""
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageIndex:
  """Names, sizes and hashes of the images of a split, in order.

  Attributes:
    ids: official name of each image, as bytes.
    sizes: height and width of each image in pixels.
    digests: hash of the bytes of each image file.
    perceptual_hashes: perceptual hash of the pixels of each image.
  """

  ids: Shaped[np.ndarray, 'N']
  sizes: Int32[np.ndarray, 'N 2']
  digests: UInt64[np.ndarray, 'N']
  perceptual_hashes: UInt64[np.ndarray, 'N']

  @classmethod
  def from_samples(cls, samples: Iterable[records.Sample]) -> 'ImageIndex':
    """Builds the index of several samples."""
    return cls.join([cls.from_sample(sample) for sample in samples])

  @classmethod
  def from_sample(cls, sample: records.Sample) -> 'ImageIndex':
    """Builds the index of one sample."""
    return cls(
      np.array([sample.id.encode()]),
      np.array([sample.pixels.shape[:2]], np.int32),
      np.array([image_digest(sample.image)], np.uint64),
      np.array([perceptual_hash(sample.pixels)], np.uint64),
    )

  @classmethod
  def join(cls, parts: Sequence['ImageIndex']) -> 'ImageIndex':
    """Concatenates several indices in order."""
    if not parts:
      empty = np.zeros(0, np.uint64)
      return cls(np.zeros(0, 'S1'), np.zeros((0, 2), np.int32), empty, empty)
    return cls(
      *(
        np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(cls)
      )
    )

  @classmethod
  def read(cls, path: pathlib.Path) -> 'ImageIndex':
    """Reads an index from a file that `write` has written."""
    with np.load(path, allow_pickle=False) as arrays:
      return cls(*(arrays[key] for key in _KEYS))

  def write(self, path: pathlib.Path) -> None:
    """Writes the arrays as an npz file."""
    with path.open('wb') as file:
      fields = dataclasses.astuple(self)
      np.savez(file, **dict(zip(_KEYS, fields, strict=True)))

  def __len__(self) -> int:
    return len(self.ids)

  def select(self, indices: np.ndarray) -> 'ImageIndex':
    """Returns the index of the images at the given positions, in that order."""
    return ImageIndex(
      *(getattr(self, f.name)[indices] for f in dataclasses.fields(self))
    )

  def names(self) -> list[str]:
    """Returns the ids as text."""
    return [name.decode() for name in self.ids]


def check_splits_disjoint(
  first: ImageIndex, second: ImageIndex, names: tuple[str, str]
) -> None:
  """Checks that two splits share no image.

  Args:
    first: index of the images that are trained on.
    second: index of the images that are evaluated on.
    names: names of both splits, for messages.

  Raises:
    UserError: both splits have an image of the same name or the same bytes.
  """
  for field, kind in (('ids', 'name'), ('digests', 'content')):
    shared, at, there = np.intersect1d(
      getattr(first, field), getattr(second, field), return_indices=True
    )
    if len(shared):
      count = f' and {len(shared) - 1:,} more' if len(shared) > 1 else ''
      raise errors.UserError(
        f'{names[0]} and {names[1]} share images by their {kind}: '
        f'{first.ids[at[0]].decode()} is {second.ids[there[0]].decode()}{count}'
        '; take them out of one of the two'
      )


def describe_shared_images(indices: Mapping[str, ImageIndex]) -> list[str]:
  """Describes images that a held-out split shares with another split.

  Args:
    indices: image index by split; `val` and `test` are held out.
  """
  lines = []
  for first, second in itertools.combinations(indices, 2):
    if not {first, second} & _HELD_OUT:
      continue
    left, right = indices[first], indices[second]
    shared = {
      'name': _equal(left.ids, right.ids),
      'content': _equal(left.digests, right.digests),
    }
    known = {pair for pairs in shared.values() for pair in pairs}
    shared['appearance'] = [
      pair
      for pair in near_duplicate_images(
        left.perceptual_hashes, right.perceptual_hashes
      )
      if pair not in known
    ]
    for kind, pairs in shared.items():
      if pairs:
        listed = ', '.join(
          f'{left.ids[i].decode()} = {right.ids[j].decode()}'
          for i, j in pairs[:_MAX_LISTED]
        )
        more = ' …' if len(pairs) > _MAX_LISTED else ''
        count = errors.format_count(len(pairs), 'pair', 'pairs')
        lines.append(
          f'{first} and {second} share images by {kind}, {count}: '
          f'{listed}{more}; scores on '
          f'{second if second in _HELD_OUT else first} may be too good'
        )
  return lines


def _equal(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
  _, left, right = np.intersect1d(first, second, return_indices=True)
  return list(zip(left.tolist(), right.tolist(), strict=True))


def near_duplicate_images(
  first: UInt64[np.ndarray, 'N'],
  second: UInt64[np.ndarray, 'M'],
  max_distance: int = MAX_HASH_DISTANCE,
) -> list[tuple[int, int]]:
  """Returns the pairs (i, j) whose perceptual hashes are close.

  Args:
    first: perceptual hashes of the images i.
    second: perceptual hashes of the images j.
    max_distance: largest number of bits that may differ.
  """
  pairs = []
  # So that a block of distances takes at most 16 MB.
  block = max(2**24 // max(len(second), 1), 1)
  for start in progress.progress_bar(
    range(0, len(first), block),
    desc='comparing images',
    unit='block',
    delay=1,
    leave=False,
  ):
    close = _is_close(first[start : start + block], second, max_distance)
    pairs += [(start + int(i), int(j)) for i, j in np.argwhere(close)]
  return pairs


def _is_close(
  first: UInt64[np.ndarray, 'N'],
  second: UInt64[np.ndarray, 'M'],
  max_distance: int,
) -> Bool[np.ndarray, 'N M']:
  return np.bitwise_count(first[:, None] ^ second[None, :]) <= max_distance
