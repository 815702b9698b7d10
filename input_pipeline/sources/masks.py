"""Masks as data sets publish them: stored values or colors to class ids."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Int16, Int32, Integer, UInt8, UInt16

from input_pipeline import batch
from input_pipeline.sources import archives, image_files, plain_png
from runtime import errors

Color = tuple[int, int, int]

# Code of pixels without a class in the masks of ImageNet-S.
IMAGENET_S_IGNORED = 1000

# Formats of masks by their names in PIL; and formats that change values.
FORMATS = ('PNG', 'TIFF', 'BMP', 'GIF')
_LOSSY = ('JPEG', 'WEBP')

# Offset of the kind of pixels in a PNG, and one of its values.
_PNG_COLOR_TYPE, _GRAY_WITH_ALPHA = 25, 4

# The color of gray level g is g times this number.
GRAY = 0x010101

# Codes below this are looked up in a dense array, larger ones by bisection.
_DENSE = 2**16
# No class id.
_UNKNOWN = np.int16(-(2**15))
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

  def covers(self, codes: np.ndarray) -> bool:
    """Returns whether all codes are allowed."""
    return all(code in self.ids for code in codes.tolist())

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
    keys, ids, table = self._arrays
    if table is not None:
      if codes.dtype == np.uint8:
        result = cv2.LUT(codes, table[:256])  # Faster than NumPy.
      else:
        codes = codes.astype(np.int32)
        result = table[np.where(codes < 0, _DENSE, np.minimum(codes, _DENSE))]
    else:
      codes = codes.astype(np.int32)
      position = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
      result = np.where(keys[position] == codes, ids[position], _UNKNOWN)
    if result.min(initial=0) == _UNKNOWN:
      raise errors.UserError(self._describe_unknown(codes[result == _UNKNOWN]))
    return result

  @functools.cached_property
  def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the codes, sorted, their ids, and the ids of all small codes.

    The last element of these stands for all codes that are negative or too
    large. They are None if a code is too large for a dense array.
    """
    keys = np.array(sorted(self.ids), np.int64)
    ids = np.array([self.ids[int(key)] for key in keys], np.int16)
    ids = np.where(ids < 0, batch.IGNORE, ids).astype(np.int16)
    if keys[-1] >= _DENSE:
      return keys, ids, None
    table = np.full(_DENSE + 1, _UNKNOWN, np.int16)
    table[keys] = ids
    return keys, ids, table

  def _describe_unknown(self, codes: np.ndarray) -> str:
    """Describes the allowed codes and the most frequent of the unknown ones."""
    unknown, counts = np.unique(codes, return_counts=True)
    first = int(counts.argmax())
    count = errors.format_count(int(counts[first]), 'pixel', 'pixels')
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


def encode_mask_colors(
  colors: UInt8[np.ndarray, '*shape 3'],
) -> Int32[np.ndarray, '*shape']:
  """Returns colors as numbers 0xRRGGBB."""
  return colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def decode_mask_color(code: int) -> Color:
  """Returns the color of a number 0xRRGGBB."""
  return code >> 16, (code >> 8) & 255, code & 255


def is_gray_color(color: Color) -> bool:
  """Returns whether red, green and blue are equal."""
  return len(set(color)) == 1


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


@dataclasses.dataclass(frozen=True, eq=False)
class StoredMask:
  """The pixels of a mask as they are stored in its file.

  Attributes:
    pixels: values [H, W], of a palette or gray; or colors uint8 [H, W, 3].
    palette: color of each value, encoded by `encode_mask_color`; -1 for 16-bit
      gray values that are not multiples of 257. None for RGB masks.
    is_gray: whether it is a gray mask.
  """

  pixels: np.ndarray
  palette: Int32[np.ndarray, 'N'] | None = None
  is_gray: bool = False

  def used_values(self) -> Integer[np.ndarray, 'K']:
    """Returns the values that occur, sorted."""
    if self.pixels.dtype.itemsize > 1:
      return np.unique(self.pixels)
    # np.unique would sort the pixels.
    return np.flatnonzero(np.bincount(self.pixels.ravel()))

  def palette_colors(self, values: Iterable[int]) -> Mapping[int, int]:
    """Returns the color of each value of a palette mask; empty for others.

    Values without a color are omitted.
    """
    if self.palette is None or self.is_gray:
      return {}
    colors = self.palette.tolist()
    return {value: colors[value] for value in values if value < len(colors)}

  def turned(self, orientation: int) -> 'StoredMask':
    """Returns the mask turned by an EXIF orientation."""
    pixels = image_files.turn_by_exif(self.pixels, orientation)
    return dataclasses.replace(self, pixels=pixels)


def read_mask_pixels(
  file: archives.File, formats: Sequence[str] = ('PNG',)
) -> np.ndarray:
  """Reads the pixels of a mask as they are stored in the file.

  Palette masks give their indices, not their colors (which OpenCV would give);
  gray masks of any bit depth give their values.

  Returns:
    Values [H, W], or colors uint8 [H, W, 3].

  Raises:
    UserError: as `read_stored_mask`.
  """
  return read_stored_mask(file, formats).pixels


def read_stored_mask(
  file: archives.File,
  formats: Sequence[str] = FORMATS,
  follow_exif: bool = False,
) -> StoredMask:
  """Reads the values that a mask file stores, with its kind of pixels.

  Args:
    file: the mask.
    formats: allowed formats by their names in PIL.
    follow_exif: whether the mask is turned by its own EXIF orientation.

  Raises:
    UserError: the file is of a lossy or unknown format or kind, or damaged; the
      message does not name the file.
  """
  data = file.read_bytes()
  # Tried whatever the formats are: all of them contain PNG.
  plain = plain_png.decode_plain_png(data, image_files.MAX_MEGAPIXELS)
  if plain is not None:
    if plain.palette is None:
      return StoredMask(plain.values, _gray_palette(8), is_gray=True)
    return StoredMask(plain.values, encode_mask_colors(plain.palette))
  # Lossy formats are decoded to be refused with the reason.
  lossy = _LOSSY if len(formats) > 1 else ()
  decoded = image_files.decode_stored_image(data, (*formats, *lossy))
  compression = str(decoded.image.info.get('compression', ''))
  if decoded.format in lossy or compression.endswith(('jpeg', 'webp')):
    raise errors.UserError(
      f'is compressed as {decoded.format}, which may change the values of a '
      'mask: save it as PNG from its source'
    )
  mask = _stored(decoded, data)
  return mask.turned(decoded.orientation) if follow_exif else mask


def _stored(decoded: image_files.Decoded, data: bytes) -> StoredMask:
  """Returns the pixels of a decoded mask."""
  image, depth = decoded.image, decoded.depth
  if image.mode in ('LA', 'RGBA'):
    if image.getextrema()[-1] != (255, 255):
      raise _unknown_kind(image)
    image = image.convert(image.mode.removesuffix('A'))
  if depth == 16 and image.mode in ('L', 'RGB'):  # PIL reduced it to 8 bits.
    deep = image_files.decode_16_bit_colors(data)
    # PIL also reads gray with alpha as RGB with alpha.
    if image.mode == 'L' or data[_PNG_COLOR_TYPE] == _GRAY_WITH_ALPHA:
      return StoredMask(deep[..., 0], _gray_palette(depth), is_gray=True)
    return StoredMask(_eight_bits(deep))
  if image.mode == 'RGB':
    return StoredMask(np.asarray(image))
  values = np.asarray(image)
  if image.mode == '1':
    values = values.astype(np.uint8)
  if image.mode == 'P':
    colors = np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)
    return StoredMask(values, encode_mask_colors(colors))
  if image.mode == 'L' and depth in (2, 4):
    values = values // (255 // (2**depth - 1))  # PIL scales these to 0…255.
  elif image.mode == 'I' and not 0 <= values.min() <= values.max() < 2**16:
    raise errors.UserError(
      f'expected values of 0 to 65535, got {values.min()} to {values.max()}'
    )
  elif image.mode not in ('1', 'L', 'I') and not image.mode.startswith('I;16'):
    raise _unknown_kind(image)
  return StoredMask(values, _gray_palette(depth), is_gray=True)


def _gray_palette(depth: int) -> Int32[np.ndarray, 'N']:
  """Returns the colors of gray values, of which 0 is black and the last white.

  Values of 16 bits are colors if they are multiples of 257.
  """
  if depth <= 8:
    levels = np.arange(2**depth, dtype=np.int32) * 255 // (2**depth - 1)
  else:
    levels = np.arange(2**16, dtype=np.int32)
    levels = np.where(levels % 257 == 0, levels // 257, -1)
  return np.where(levels < 0, -1, levels * GRAY).astype(np.int32)


def _eight_bits(
  colors: UInt16[np.ndarray, 'H W 3'],
) -> UInt8[np.ndarray, 'H W 3']:
  """Returns the colors of 8 bits that a file of 16 bits holds.

  They are its values if none exceeds 255, else its values over 257 or 256, the
  usual factors.

  Raises:
    UserError: the file holds other colors.
  """
  if colors.max() <= 255:
    return colors.astype(np.uint8)
  for factor in (257, 256):
    if not (colors % factor).any():
      return (colors // factor).astype(np.uint8)
  other = colors[(colors % 257).any(axis=-1)]
  shown = format_mask_color(tuple(other[0].tolist()))
  raise errors.UserError(
    f'expected colors of 8 bits, also if stored in 16, got {shown} of 65535 '
    f'({errors.format_count(len(other), "pixel", "pixels")})'
  )


def _unknown_kind(image: PIL.Image.Image) -> errors.UserError:
  return errors.UserError(
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
