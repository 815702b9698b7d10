"""What the pixels of masks mean: files of values or colors to class ids."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int16

from input_pipeline import batch
from input_pipeline.sources import archives, image_files
from runtime import errors

Color = tuple[int, int, int]

# Up to this value a table is looked up directly.
_DIRECT = 2**16
# So many colors are named in an error.
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Table:
  """From the codes of a mask's pixels to class ids.

  Attributes:
    ids: class id of each allowed code; negative where ignored.
    names: of the class ids, where codes are colors (see `code_of`); else
      codes are values.
  """

  ids: Mapping[int, int]
  names: Sequence[str] = ()

  def apply(self, codes: np.ndarray) -> Int16[np.ndarray, 'H W']:
    """Looks every pixel up.

    Raises:
      UserError: a code is not allowed; without the file's name.
    """
    if codes.ndim != 2 or codes.dtype.kind not in 'biuf':
      raise errors.UserError(
        f'has {codes.dtype} values of shape {codes.shape}, expected numbers in '
        'rows and columns'
      )
    codes = codes.astype(np.int32)
    keys = np.array(sorted(self.ids), np.int64)
    ids = np.array([self.ids[int(key)] for key in keys], np.int16)
    ids = np.where(ids < 0, batch.IGNORE, ids).astype(np.int16)
    if keys[-1] < _DIRECT:
      at = np.full(_DIRECT + 1, -1, np.int16)
      at[keys] = np.arange(len(keys))
      at = at[np.minimum(codes, _DIRECT)]
      unknown = (at < 0) | (codes < 0)
    else:
      at = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
      unknown = keys[at] != codes
    if unknown.any():
      raise errors.UserError(self._refusal(codes[unknown]))
    return ids[at]

  def _refusal(self, codes: np.ndarray) -> str:
    """Says which pixels have no meaning, and which would."""
    found, counts = np.unique(codes, return_counts=True)
    first = int(counts.argmax())
    count = f'{counts[first]:,} pixels'
    kind = 'color' if self.names else 'value'
    if len(found) > 1:
      count += f'; the most frequent of {len(found):,} such {kind}s'
    code = int(found[first])
    shown = color_text(color_of(code)) if self.names else code
    return (
      f'{kind} {shown} ({count}) is no class: allowed are '
      f'{", ".join(self._allowed())}'
    )

  def _allowed(self) -> list[str]:
    known = {code: i for code, i in self.ids.items() if i >= 0}
    ignored = [code for code, i in self.ids.items() if i < 0]
    if not self.names:
      return [
        *ranges(known),
        *(f'{values} (ignored)' for values in ranges(ignored)),
      ]
    shown = [
      f'{color_text(color_of(code))} {self.names[i]!r}'
      for code, i in sorted(known.items(), key=lambda item: item[1])
    ]
    if len(shown) > _SHOWN:
      shown[_SHOWN:] = [f'… ({len(shown)} classes)']
    return shown + [
      f'{color_text(color_of(code))} (ignored)' for code in ignored
    ]


def table_of(
  values: Iterable[int], ignored: Iterable[int] = (), names: Sequence[str] = ()
) -> Table:
  """The table in which the i-th value is class i."""
  ids = {value: i for i, value in enumerate(values)}
  return Table({**ids, **dict.fromkeys(ignored, batch.IGNORE)}, names)


def code_of(color: Color) -> int:
  """A color as one number."""
  red, green, blue = color
  return (red << 16) | (green << 8) | blue


def color_of(code: int) -> Color:
  """Undoes `code_of`."""
  return code >> 16, (code >> 8) & 255, code & 255


def color_text(color: Color) -> str:
  """A color as 'R,G,B'."""
  return ','.join(str(part) for part in color)


def ranges(values: Iterable[int]) -> list[str]:
  """Runs of consecutive values: [0, 2, 3, 4] is ['0', '2…4']."""
  runs: list[list[int]] = []
  for value in sorted(values):
    if runs and value == runs[-1][-1] + 1:
      runs[-1].append(value)
    else:
      runs.append([value])
  return [
    f'{run[0]}…{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs
  ]


def read_pixels(file: archives.File) -> np.ndarray:
  """The pixels of a mask as they are stored in the PNG.

  Palette masks give their indices, not their colors (which OpenCV would
  give); gray ones of any depth their values.

  Returns:
    Values [H, W], or colors uint8 [H, W, 3].

  Raises:
    UserError: what is wrong with it; without the file's name.
  """
  data = file.read_bytes()
  image = image_files.decode(data, ('PNG',))
  depth = data[24]  # Of the PNG's header, in bits.
  if image.mode == 'L' and depth in (2, 4):
    # PIL stretches these to 0…255.
    return np.asarray(image) // (255 // (2**depth - 1))
  if image.mode in ('1', 'L', 'P', 'I', 'I;16', 'RGB'):
    return np.asarray(image)
  if image.mode == 'RGBA' and image.getextrema()[3] == (255, 255):
    return np.asarray(image)[..., :3]
  raise errors.UserError(
    f'has pixels of PIL mode {image.mode!r}: expected a palette, gray of 8 or '
    '16 bits, or RGB without transparency'
  )


def read_values(file: archives.File) -> np.ndarray:
  """The values [H, W] of a mask that must not be in color.

  Raises:
    UserError: what is wrong with it; without the file's name.
  """
  values = read_pixels(file)
  if values.ndim != 2:
    raise errors.UserError(
      'is an RGB mask, expected values: were its colors written out by a '
      'viewer? Take the official file'
    )
  return values


@functools.cache  # Asked for with every record.
def palette(num_classes: int) -> tuple[Color, ...]:
  """Colors for classes that come without: those of Pascal VOC.

  Bits 0, 3, 6, … of a class id are the highest bits of red, bits 1, 4, … those
  of green and 2, 5, … those of blue.
  """

  def channel(class_id: int, first: int) -> int:
    bits = ((class_id >> (3 * i + first)) & 1 for i in range(8))
    return sum(bit << (7 - i) for i, bit in enumerate(bits))

  return tuple(
    (channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes)
  )
