"""Masks as data sets publish them: stored values or colors to class ids."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int16

from input_pipeline import batch
from input_pipeline.sources import archives, image_files
from runtime import errors

Color = tuple[int, int, int]

# Code of pixels without a class in the masks of ImageNet-S.
IMAGENET_S_IGNORED = 1000

# Codes below this are looked up in a dense array, larger ones by bisection.
_DENSE = 2**16
# An error lists at most so many colors.
_MAX_LISTED = 8


@dataclasses.dataclass(frozen=True)
class CodeTable:
  """Maps the codes of a mask's pixels to class ids.

  A code is the value of a pixel, or its color as one number, as
  `encode_mask_color` returns it.

  Attributes:
    ids: class id of each allowed code; a negative id is ignored.
    names: name of each class id if codes are colors, for messages; else empty.
  """

  ids: Mapping[int, int]
  names: Sequence[str] = ()

  def apply(self, codes: np.ndarray) -> Int16[np.ndarray, 'H W']:
    """Returns the class id of every pixel.

    Raises:
      UserError: a code is not allowed; the message does not name the file.
    """
    if codes.ndim != 2 or codes.dtype.kind not in 'biuf':
      raise errors.UserError(
        'expected numbers in rows and columns, got '
        f'{codes.dtype} values of shape {codes.shape}'
      )
    codes = codes.astype(np.int32)
    keys = np.array(sorted(self.ids), np.int64)
    ids = np.array([self.ids[int(key)] for key in keys], np.int16)
    ids = np.where(ids < 0, batch.IGNORE, ids).astype(np.int16)
    if keys[-1] < _DENSE:
      # The last element stands for all codes that are too large. Negative codes
      # index from the end and are refused as well.
      position = np.full(_DENSE + 1, -1, np.int16)
      position[keys] = np.arange(len(keys))
      position = position[np.minimum(codes, _DENSE)]
      unknown = (position < 0) | (codes < 0)
    else:
      position = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
      unknown = keys[position] != codes
    if unknown.any():
      raise errors.UserError(self._describe_unknown(codes[unknown]))
    return ids[position]

  def _describe_unknown(self, codes: np.ndarray) -> str:
    """Describes the allowed codes and the most frequent of the unknown ones."""
    unknown, counts = np.unique(codes, return_counts=True)
    first = int(counts.argmax())
    count = f'{counts[first]:,} pixels'
    kind = 'color' if self.names else 'value'
    if len(unknown) > 1:
      count += f'; the most frequent of {len(unknown):,} such {kind}s'
    code = int(unknown[first])
    shown = format_mask_color(decode_mask_color(code)) if self.names else code
    return (
      f'expected {kind}s {", ".join(self._allowed())}, got {shown} ({count})'
    )

  def _allowed(self) -> list[str]:
    known = {code: i for code, i in self.ids.items() if i >= 0}
    ignored = [code for code, i in self.ids.items() if i < 0]
    if not self.names:
      return [
        *format_code_ranges(known),
        *(f'{values} (ignored)' for values in format_code_ranges(ignored)),
      ]
    shown = [
      f'{format_mask_color(decode_mask_color(code))} {self.names[i]!r}'
      for code, i in sorted(known.items(), key=lambda item: item[1])
    ]
    if len(shown) > _MAX_LISTED:
      shown[_MAX_LISTED:] = [f'… ({len(shown)} classes)']
    return shown + [
      f'{format_mask_color(decode_mask_color(code))} (ignored)'
      for code in ignored
    ]


def make_code_table(
  codes: Iterable[int], ignored: Iterable[int] = (), names: Sequence[str] = ()
) -> CodeTable:
  """Builds the table in which the i-th code is class i.

  Args:
    codes: codes of the classes, in the order of their ids.
    ignored: codes of pixels without a class.
    names: names of the classes if codes are colors, else empty.
  """
  ids = {code: i for i, code in enumerate(codes)}
  return CodeTable({**ids, **dict.fromkeys(ignored, batch.IGNORE)}, names)


def encode_mask_color(color: Color) -> int:
  """Encodes a color as one number, 0xRRGGBB."""
  red, green, blue = color
  return (red << 16) | (green << 8) | blue


def decode_mask_color(code: int) -> Color:
  """Decodes a number 0xRRGGBB to its color (red, green, blue)."""
  return code >> 16, (code >> 8) & 255, code & 255


def format_mask_color(color: Color) -> str:
  """Formats a color as 'R,G,B'."""
  return ','.join(str(part) for part in color)


def format_code_ranges(values: Iterable[int]) -> list[str]:
  """Formats the codes of a mask, consecutive ones as a range.

  >>> format_code_ranges([0, 2, 3, 4])
  ['0', '2…4']
  """
  runs: list[list[int]] = []
  for value in sorted(values):
    if runs and value == runs[-1][-1] + 1:
      runs[-1].append(value)
    else:
      runs.append([value])
  return [
    f'{run[0]}…{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs
  ]


def read_mask_pixels(file: archives.File) -> np.ndarray:
  """Reads the pixels of a mask as they are stored in the PNG.

  Palette masks give their indices, not their colors (which OpenCV would give);
  gray masks of any bit depth give their values.

  Returns:
    Values [H, W], or colors uint8 [H, W, 3].

  Raises:
    UserError: the file is not such a PNG, or damaged; the message does not name
      the file.
  """
  data = file.read_bytes()
  image = image_files.decode_image_file(data, ('PNG',))
  depth = data[24]  # Bits per sample, in the PNG's header.
  if image.mode == 'L' and depth in (2, 4):
    # PIL scales these to 0…255.
    return np.asarray(image) // (255 // (2**depth - 1))
  if image.mode in ('1', 'L', 'P', 'I', 'I;16', 'RGB'):
    return np.asarray(image)
  if image.mode == 'RGBA' and image.getextrema()[3] == (255, 255):
    return np.asarray(image)[..., :3]
  raise errors.UserError(
    'expected a palette, gray of 8 or 16 bits, or RGB without transparency, '
    f'got pixels of PIL mode {image.mode!r}'
  )


def read_mask_values(file: archives.File) -> np.ndarray:
  """Reads the values [H, W] of a mask that must not be in color.

  Raises:
    UserError: the file is no PNG of gray or palette values, or is damaged; the
      message does not name the file.
  """
  values = read_mask_pixels(file)
  if values.ndim != 2:
    raise errors.UserError(
      'expected a mask of values, got an RGB mask: a viewer may have written '
      'its colors; take the official file'
    )
  return values


@functools.cache  # Asked for with every record.
def voc_palette(num_classes: int) -> tuple[Color, ...]:
  """Returns the colors of Pascal VOC, for classes without colors of their own.

  Bits 0, 3, 6, … of a class id are the highest bits of red, bits 1, 4, … those
  of green and 2, 5, … those of blue.
  """

  def channel(class_id: int, first: int) -> int:
    bits = ((class_id >> (3 * i + first)) & 1 for i in range(8))
    return sum(bit << (7 - i) for i, bit in enumerate(bits))

  return tuple(
    (channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes)
  )
