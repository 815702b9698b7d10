"""Decoding of image files in which any damage is an error.

content = image_files.read_image_file(data, ImageOptions(follow_exif=True))
content.encoded, content.pixels   # Of a record: JPEG or PNG, and RGB.
"""

import dataclasses
import io
import threading
from collections.abc import Sequence

import numpy as np
from etils import epy
from jaxtyping import Shaped, UInt8, UInt16

from input_pipeline.sources import jpeg_markers
from runtime import errors

with epy.lazy_imports():
  import cv2
  import PIL.Image

  from input_pipeline.sources import records

# Formats of images by their names in PIL. Records hold the first two.
FORMATS = ('JPEG', 'PNG', 'TIFF', 'BMP', 'WEBP', 'GIF')
_STORED = ('JPEG', 'PNG')
# PIL's name of a JPEG of several pictures, as phones write them.
_MPO = 'MPO'
# Formats whose files may hold several pictures, of which none is the image.
_OF_FRAMES = ('TIFF', 'WEBP', 'GIF')

# PIL refuses larger images. OpenCV has a limit of its own, of 2**30 pixels.
MAX_MEGAPIXELS = 178
_LARGEST_LIMIT = 1073

# The EXIF tag that says how an image is turned for display, and its value for
# one that is not.
_ORIENTATION = 0x0112
UPRIGHT = 1
# PIL's name of each orientation's operation, and the orientation that undoes it
# if it is another.
_TURNS = {
  2: 'FLIP_LEFT_RIGHT',
  3: 'ROTATE_180',
  4: 'FLIP_TOP_BOTTOM',
  5: 'TRANSPOSE',
  6: 'ROTATE_270',
  7: 'TRANSVERSE',
  8: 'ROTATE_90',
}
_INVERSE = {6: 8, 8: 6}

# PIL's modes of 8 bits or less per sample.
_CONVERTED = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')

_PNG_DEPTH = 24  # Offset of the bits per sample in a PNG.
_TIFF_DEPTH = 258  # The tag of a TIFF.

# PIL's limit is a global variable.
_PIL_LIMIT_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class ImageOptions:
  """Defines the pixels of image files where their content leaves a choice.

  Attributes:
    follow_exif: whether images are turned by their EXIF tag, as viewers do;
      otherwise the pixels stay as they are stored.
    image_depth: bits of the values in files of 16 bits: 12 scales 0…4095 to
      0…255.
    max_megapixels: limit above which images are refused.
  """

  follow_exif: bool = False
  image_depth: int = 16
  max_megapixels: int = MAX_MEGAPIXELS

  def __post_init__(self):
    for field, low, high in (
      ('image_depth', 8, 16),
      ('max_megapixels', 1, _LARGEST_LIMIT),
    ):
      value = getattr(self, field)
      if not low <= value <= high:
        raise errors.UserError(
          f'{field}: expected {low} to {high}, got {value}'
        )


# The pixels as they are stored, of at most Pillow's limit.
AS_STORED = ImageOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """An image as its file stores it, before any conversion.

  Attributes:
    image: pixels in the mode and orientation in which they are stored.
    format: one of `FORMATS`.
    depth: bits per sample in the file.
    orientation: EXIF value, 1 to 8; 1 is upright.
  """

  image: 'PIL.Image.Image'
  format: str
  depth: int
  orientation: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageContent:
  """An image as it enters a record.

  Attributes:
    encoded: JPEG or PNG; the bytes of the file where they decode to `pixels`.
    pixels: RGB.
    depth: bits per sample in the file.
    orientation: EXIF value in the file.
    peak: largest sample in the file.
    as_stored: whether `encoded` are the bytes of the file.
  """

  encoded: bytes
  pixels: UInt8[np.ndarray, 'H W 3']
  depth: int
  orientation: int
  peak: int
  as_stored: bool


def read_image_file(
  data: bytes, options: ImageOptions = AS_STORED
) -> ImageContent:
  """Decodes the bytes of an image file to those of a record and its pixels.

  JPEG and PNG files stay as they are. Others, those that are turned, and those
  of another depth are encoded as PNG, which is lossless.

  Raises:
    UserError: the image is damaged, too large, or of an unknown format or kind;
      the message does not name the file.
  """
  if jpeg_markers.is_plain_jpeg(data, options.max_megapixels):
    pixels = _decode_as_in_training(data)
    return ImageContent(data, pixels, 8, UPRIGHT, int(pixels.max()), True)
  decoded = decode_stored_image(data, FORMATS, options.max_megapixels)
  turned = options.follow_exif and decoded.orientation != UPRIGHT
  deep = decoded.depth == 16
  rescaled = deep and options.image_depth < 16
  values = _deep_values(data, decoded) if deep else None
  if rescaled or (deep and decoded.format not in _STORED):
    pixels = _scale(values, options.image_depth)
  elif decoded.format in _STORED:
    # PIL detects damage that OpenCV accepts, and OpenCV refuses some files that
    # PIL reads.
    pixels = _decode_as_in_training(data)
  else:
    pixels = _convert(decoded.image)
  peak = int((pixels if values is None else values).max())
  as_stored = not (turned or rescaled or decoded.format not in _STORED)
  encoded = data
  if not as_stored:
    pixels = turn_by_exif(pixels, decoded.orientation) if turned else pixels
    is_written, png = cv2.imencode('.png', pixels[..., ::-1])
    if not is_written:  # A side exceeds libpng's limit.
      raise errors.UserError(
        'cannot be stored as PNG: expected sides of at most 1,000,000 pixels, '
        f'got {pixels.shape[1]}x{pixels.shape[0]}'
      )
    encoded = png.tobytes()
  return ImageContent(
    encoded, pixels, decoded.depth, decoded.orientation, peak, as_stored
  )


def decode_image_file(data: bytes, formats: Sequence[str]) -> 'PIL.Image.Image':
  """Decodes a whole image in the mode in which it is stored.

  Args:
    data: bytes of the encoded image.
    formats: names of the allowed formats in PIL: 'JPEG', 'PNG'.

  Raises:
    UserError: as `decode_stored_image`.
  """
  return decode_stored_image(data, formats).image


def decode_stored_image(
  data: bytes, formats: Sequence[str], max_megapixels: int = MAX_MEGAPIXELS
) -> Decoded:
  """Decodes a whole image in the mode and orientation in which it is stored.

  Args:
    data: the encoded image.
    formats: allowed formats by their names in PIL: 'JPEG', 'PNG'.
    max_megapixels: limit above which images are refused.

  Raises:
    UserError: the image is of another format, too large, damaged, truncated or
      one of several in its file; the message does not name the file.
  """
  try:
    image = open_image_header(data, formats)
    _check_size(*image.size, max_megapixels)
    kind = 'JPEG' if image.format == _MPO else image.format
    _check_frames(image)
    depth = _depth(image, data)
    orientation = _orientation(image)
    is_complete = kind == 'JPEG' and jpeg_markers.is_complete_jpeg(data)
    if not is_complete:
      image.load()
    if kind == 'PNG':  # Decoding does not verify its checksums.
      open_image_header(data, ('PNG',)).verify()
  except errors.UserError:
    raise
  except PIL.UnidentifiedImageError:
    raise errors.UserError(
      f'is no {_alternatives(formats)} file, or its header is damaged'
    ) from None
  except Exception as error:  # PIL raises any exception for damaged files.
    raise errors.UserError(
      errors.format_on_one_line(f'cannot be decoded: {error}')
    ) from error
  # PIL accepts a download that was truncated and padded with zeros.
  if (
    kind == 'JPEG' and not is_complete and not jpeg_markers.has_end_marker(data)
  ):
    raise errors.UserError('cannot be decoded: the JPEG has no end, truncated?')
  if kind == 'TIFF' and orientation != UPRIGHT:  # PIL has turned it.
    name = _TURNS[_INVERSE.get(orientation, orientation)]
    image = image.transpose(PIL.Image.Transpose[name])
  return Decoded(image, kind, depth, orientation)


def turn_by_exif(
  pixels: Shaped[np.ndarray, 'H W *channels'], orientation: int
) -> Shaped[np.ndarray, 'h w *channels']:
  """Turns stored pixels as viewers do for an EXIF orientation, 1 to 8.

  It is a transposition for 5 to 8, followed by a reversal of the rows for 3, 4,
  7 and 8 and of the columns for 2, 3, 6 and 7.
  """
  if orientation in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return np.ascontiguousarray(pixels)


def turn_back_by_exif(
  pixels: Shaped[np.ndarray, 'h w *channels'], orientation: int
) -> Shaped[np.ndarray, 'H W *channels']:
  """Turns an upright image or label map back to the pixels of its file."""
  return turn_by_exif(pixels, _INVERSE.get(orientation, orientation))


def decode_16_bit_colors(data: bytes) -> UInt16[np.ndarray, 'H W 3']:
  """Decodes the RGB values of a PNG or TIFF of 16 bits, which PIL reduces to 8.

  Raises:
    UserError: the bytes cannot be decoded.
  """
  return _deep_values(data, decode_stored_image(data, ('PNG', 'TIFF')))


def open_image_header(data: bytes, formats: Sequence[str]) -> 'PIL.Image.Image':
  """Reads the header of an image of any size, and decodes no pixel."""
  with _PIL_LIMIT_LOCK:
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
      return PIL.Image.open(io.BytesIO(data), formats=formats)
    finally:
      PIL.Image.MAX_IMAGE_PIXELS = limit


def _check_size(width: int, height: int, max_megapixels: int) -> None:
  megapixels = width * height / 1e6
  if megapixels > max_megapixels:
    raise errors.UserError(
      f'expected at most max_megapixels={max_megapixels}, got '
      f'{megapixels:,.1f} megapixels ({width}x{height}): cut it into tiles, or '
      'raise max_megapixels if the memory suffices'
    )


def _check_frames(image: 'PIL.Image.Image') -> None:
  count = getattr(image, 'n_frames', 1)
  if image.format in _OF_FRAMES and count > 1:
    raise errors.UserError(
      f'expected one picture, got {count} frames or pages: save the one that '
      'is meant as a file of its own'
    )


def _depth(image: 'PIL.Image.Image', data: bytes) -> int:
  """Returns the bits per sample in a file."""
  if image.format == 'PNG':
    return data[_PNG_DEPTH]
  if image.format == 'TIFF':
    return max(image.tag_v2.get(_TIFF_DEPTH, (1,)))
  return 1 if image.mode == '1' else 8


def _orientation(image: 'PIL.Image.Image') -> int:
  """Returns the EXIF value; 1 for one that is missing or not defined."""
  try:
    value = image.getexif().get(_ORIENTATION, UPRIGHT)
  except Exception:  # EXIF data may be damaged where the pixels are not.
    return UPRIGHT
  return value if value in _TURNS else UPRIGHT


def _deep_values(data: bytes, decoded: Decoded) -> UInt16[np.ndarray, 'H W 3']:
  """Decodes a file of 16 bits per sample, as RGB without transparency."""
  try:
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:  # As where memory is short.
    values = None
  if values is None or values.dtype != np.uint16:
    raise errors.UserError('cannot be decoded by OpenCV as 16 bits per value')
  if decoded.format == 'TIFF':  # OpenCV turns these, asked or not.
    values = turn_back_by_exif(values, decoded.orientation)
  if values.ndim == 2:
    return np.stack([values] * 3, axis=-1)
  return values[..., 2::-1]  # From BGR or BGRA.


def _decode_as_in_training(data: bytes) -> UInt8[np.ndarray, 'H W 3']:
  """Decodes a JPEG or PNG by the decoder of records."""
  try:
    return records.decode_record_image(data)
  # OpenCV's own is raised where memory is short. The other is for users who
  # read records: this file is not yet one.
  except (cv2.error, errors.UserError):
    raise errors.UserError('cannot be decoded by OpenCV') from None


def _scale(
  values: UInt16[np.ndarray, 'H W 3'], depth: int
) -> UInt8[np.ndarray, 'H W 3']:
  """Reduces values of `depth` bits to 8 by dropping the lowest bits."""
  if (peak := int(values.max())) >= 2**depth:
    raise errors.UserError(
      f'expected values of at most {2**depth - 1:,}, as image_depth={depth}, '
      f'got {peak:,}'
    )
  return (values >> (depth - 8)).astype(np.uint8)


def _convert(image: 'PIL.Image.Image') -> UInt8[np.ndarray, 'H W 3']:
  """Converts an image of 8 bits or less per sample to RGB."""
  if image.mode not in _CONVERTED:
    raise errors.UserError(
      'expected gray, a palette, RGB or CMYK of at most 16 bits per value, got '
      f'pixels of PIL mode {image.mode!r}'
    )
  return np.array(image.convert('RGB'))


def _alternatives(names: Sequence[str]) -> str:
  """Formats names as 'JPEG, PNG or GIF'."""
  *first, last = names
  return f'{", ".join(first)} or {last}' if first else last
