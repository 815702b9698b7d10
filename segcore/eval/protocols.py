"""How the networks of a benchmark look at an image: geometry, without pixels.

  protocol = flip_averaged(multi_scale(whole(16), (0.75, 1.0, 1.25)))
  views = protocol((375, 500))       # six views of an image of this size

A protocol maps the size of an image to views. A view says what the network is
shown and where its scores count, as linear maps of rows and of columns; so
resizing, cropping, padding and mirroring compose by matrix products, and what
views of several windows share of a pixel sums to 1. `inference` applies them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from segcore.models.layers import resize

Size = tuple[int, int]
# A linear map from one axis to another: as many rows as the latter has cells.
Map = scipy.sparse.csr_array


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """One look at an image of H x W pixels by an input of h x w.

  Attributes:
    read_rows: the input's rows from the image's.
    read_columns: the input's columns from the image's.
    write_rows: what the input's rows give to the image's; a row sums to the
      weight of the view there, 0 where it does not reach.
    write_columns: the same of columns; a pixel's weight is the product.
  """

  read_rows: Map
  read_columns: Map
  write_rows: Map
  write_columns: Map

  @property
  def input_size(self) -> Size:
    """Height and width of what the network is shown."""
    return self.read_rows.shape[0], self.read_columns.shape[0]

  def weights(self) -> Float[np.ndarray, 'H W']:
    """The view's share of each pixel's prediction."""
    return np.outer(self.write_rows.sum(axis=1), self.write_columns.sum(axis=1))


# From the height and width of an image to views whose weights sum to 1.
Protocol = Callable[[Size], list[View]]


def whole(multiple: int) -> Protocol:
  """The image once, continued by reflection to a multiple of a stride."""

  def views(size: Size) -> list[View]:
    padded = [-(-n // multiple) * multiple for n in size]
    pairs = [_continued(n, m) for n, m in zip(size, padded, strict=True)]
    return [_view(*pairs)]

  return views


def flip_averaged(protocol: Protocol) -> Protocol:
  """Each view, and the view of the image mirrored left to right."""

  def views(size: Size) -> list[View]:
    found = []
    for view in protocol(size):
      half = dataclasses.replace(view, write_rows=view.write_rows / 2)
      mirrored = dataclasses.replace(
        half,
        read_columns=view.read_columns @ _reversal(size[1]),
        write_columns=_reversal(size[1]) @ view.write_columns,
      )
      found += [half, mirrored]
    return found

  return views


def multi_scale(
  protocol: Protocol, scales: Sequence[float], antialias: bool = False
) -> Protocol:
  """The views of the image at several scales; scores come back bilinearly.

  Args:
    protocol: of the resized image.
    scales: factors of height and width, which are rounded.
    antialias: blur before shrinking the image; its scores never are.
  """
  if not scales or min(scales) <= 0:
    raise ValueError(f'scales: expected numbers above 0, got {tuple(scales)}')

  def views(size: Size) -> list[View]:
    found = []
    for scale in scales:
      scaled = tuple(max(1, int(n * scale + 0.5)) for n in size)
      found += rescaled(protocol, scaled, antialias)(size)
    return [
      dataclasses.replace(view, write_rows=view.write_rows / len(scales))
      for view in found
    ]

  return views


def rescaled(
  protocol: Protocol, scaled: Size, antialias: bool = False
) -> Protocol:
  """The views of the image after resizing it to a size."""

  def views(size: Size) -> list[View]:
    pairs = [
      (
        Map(resize.bilinear_matrix(n, m, antialias=antialias)),
        Map(resize.bilinear_matrix(m, n)),
      )
      for n, m in zip(size, scaled, strict=True)
    ]
    return [_seen_through(view, *pairs) for view in protocol(scaled)]

  return views


def sliding_window(
  protocol: Protocol, window: Size, stride: Size, bordered: bool = False
) -> Protocol:
  """Windows side by side; where they overlap, each counts the same.

  The last window of a row or column is moved inside. An image smaller than the
  window is continued by reflection, or lies in its middle.

  Args:
    protocol: of a window.
    window: height and width in pixels.
    stride: distance of windows, downwards and to the right.
    bordered: show the image in the middle of a window that is larger, and
      nothing around it.
  """
  for name, pair in (('window', window), ('stride', stride)):
    if len(pair) != 2 or min(pair) < 1:
      raise ValueError(f'{name}: expected (height, width) >= 1, got {pair}')
  if stride[0] > window[0] or stride[1] > window[1]:
    raise ValueError(
      f'stride: expected at most the window {window}, got {stride}: pixels '
      'between windows would have no prediction'
    )

  def views(size: Size) -> list[View]:
    rows, columns = (
      [_bordered(n, w)]
      if bordered and n < w
      else _tiles(n, [(start, w) for start in _starts(n, w, s)])
      for n, w, s in zip(size, window, stride, strict=True)
    )
    return _tiled(protocol, rows, columns)

  return views


def halves(protocol: Protocol) -> Protocol:
  """The left and the right half of the image, without overlap."""

  def views(size: Size) -> list[View]:
    height, width = size
    middle = width // 2
    parts = [(0, middle), (middle, width - middle)] if middle else [(0, width)]
    return _tiled(protocol, _tiles(height, [(0, height)]), _tiles(width, parts))

  return views


@dataclasses.dataclass(frozen=True)
class ProtocolOptions:
  """The evaluation protocol of a benchmark.

  Attributes:
    tiling: parts of an image that the network is applied to: 'whole', 'halves'
      (left and right), 'sliding_window'.
    window: height and width of windows, in pixels.
    stride: distance of windows, (down, right), in pixels.
    padding_mode: padding of an image that is smaller than the window:
      'reflection' at the bottom and right, or 'mean', the mean color on all
      sides.
    scales: factors by which the image is resized; their scores are averaged.
    flip: average with the horizontally flipped image.
    average: what is averaged over views before the argmax: 'logits', or
      'probs' (softmax of each view at the size of the image).
    antialias: blur images before shrinking them.
    align_corners: by which rule a network's scores are enlarged to its input:
      corners on corners, or half-pixel centers.
    size_multiple: images are padded to multiples of this, and one program is
      compiled for each padded size and size of input; 0: the network's stride.
      A single view of the whole image applies the network to the padded image,
      padded by reflection.
  """

  tiling: Literal['whole', 'halves', 'sliding_window'] = 'whole'
  window: tuple[int, int] = (0, 0)
  stride: tuple[int, int] = (0, 0)
  padding_mode: Literal['reflection', 'mean'] = 'reflection'
  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  average: Literal['logits', 'probs'] = 'logits'
  antialias: bool = False
  align_corners: bool = False
  size_multiple: int = 0

  def __post_init__(self):
    if (self.tiling == 'sliding_window') != any((*self.window, *self.stride)):
      raise ValueError(
        "window, stride: expected both with tiling='sliding_window', and none "
        f'otherwise, got window={self.window}, stride={self.stride} with '
        f'tiling={self.tiling!r}'
      )
    if self.padding_mode == 'mean' and self.tiling != 'sliding_window':
      raise ValueError(
        "padding_mode='mean': expected tiling='sliding_window', got "
        f'{self.tiling!r}'
      )
    if self.size_multiple < 0:
      raise ValueError(
        f'size_multiple: expected >= 0, got {self.size_multiple}'
      )
    self.build(1)

  def single_view(self) -> 'ProtocolOptions':
    """One view of the whole image: what is followed while training.

    Of several scales it is the one nearest to 1. Windows stay where the network
    has learned with the border that they show.
    """
    nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
    plain = dataclasses.replace(
      self, scales=(nearest,), flip=False, average='logits'
    )
    if self.padding_mode == 'mean':
      return plain
    return dataclasses.replace(
      plain, tiling='whole', window=(0, 0), stride=(0, 0)
    )

  @property
  def is_single_view(self) -> bool:
    """Whether it is a single view of the whole image."""
    return self.tiling == 'whole' and self.scales == (1.0,) and not self.flip

  @property
  def max_taps(self) -> tuple[int, int]:
    """Of how many cells a cell of an input, and of the image, is a mean.

    At most; the same for images of every size.
    """
    if self.scales == (1.0,):
      return 1, 1
    blurred = math.ceil(2 / min(*self.scales, 1.0)) + 2
    return (blurred if self.antialias else 2), 2

  def build(self, multiple: int) -> Protocol:
    """The protocol for a network whose inputs are multiples of a stride."""
    protocol = whole(multiple)
    if self.tiling == 'sliding_window':
      protocol = sliding_window(
        *(protocol, self.window, self.stride), self.padding_mode == 'mean'
      )
    elif self.tiling == 'halves':
      protocol = halves(protocol)
    if self.scales != (1.0,):
      protocol = multi_scale(protocol, self.scales, self.antialias)
    return flip_averaged(protocol) if self.flip else protocol

  def describe(self) -> str:
    """In words, for `results.json`.

    >>> ProtocolOptions(flip=True, average='probs').describe()
    'whole image, single scale, with its mirror image; averaged probs'
    """
    if self.tiling == 'sliding_window':
      window, stride = (f'{a}x{b}' for a, b in (self.window, self.stride))
      tiles = f'windows of {window} every {stride}'
      if self.padding_mode == 'mean':
        tiles += ' (smaller images amid the mean color)'
    else:
      tiles = {'whole': 'whole image', 'halves': 'left and right half'}[
        self.tiling
      ]
    scales = (
      'single scale'
      if self.scales == (1.0,)
      else 'scales ' + ', '.join(map(str, self.scales))
    )
    parts = [tiles, scales]
    if self.antialias and min(self.scales) < 1:
      parts.append('antialiased')
    if self.flip:
      parts.append('with its mirror image')
    if self.is_single_view and self.size_multiple:
      parts.append(f'continued to multiples of {self.size_multiple}')
    if self.align_corners:
      parts.append('corners aligned')
    shared = (
      self.flip or self.scales != (1.0,) or self.tiling == 'sliding_window'
    )
    return ', '.join(parts) + (f'; averaged {self.average}' if shared else '')


# A linear map of one axis of the image to one of the input, and back.
_Pair = tuple[Map, Map]


def _view(rows: _Pair, columns: _Pair) -> View:
  return View(rows[0], columns[0], rows[1], columns[1])


def _seen_through(view: View, rows: _Pair, columns: _Pair) -> View:
  """The view of an image that is itself a linear map of another one."""
  return View(
    view.read_rows @ rows[0],
    view.read_columns @ columns[0],
    rows[1] @ view.write_rows,
    columns[1] @ view.write_columns,
  )


def _continued(length: int, padded: int) -> _Pair:
  """An axis continued by reflection, edges repeated; and cut off again."""
  position = np.arange(padded) % (2 * length)
  source = np.minimum(position, 2 * length - 1 - position)
  return _picking(source, length), _picking(np.arange(length), padded)


def _bordered(length: int, padded: int) -> _Pair:
  """An axis amid nothing, the smaller half of it before; and cut out again."""
  before = (padded - length) // 2
  cut = _picking(np.arange(before, before + length), padded)
  return Map(cut.T), cut


def _picking(source: Int[np.ndarray, 'n'], length: int) -> Map:
  """Cell i of the result is cell source[i] of an axis."""
  ones, rows = np.ones(len(source)), np.arange(len(source))
  return Map((ones, (rows, source)), shape=(len(source), length))


def _reversal(length: int) -> Map:
  return _picking(np.arange(length)[::-1], length)


def _starts(length: int, window: int, stride: int) -> list[int]:
  """Where windows start; the last one ends at the end."""
  last = max(length - window, 0)
  return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def _tiles(length: int, parts: Sequence[tuple[int, int]]) -> list[_Pair]:
  """Parts (start, size) of an axis, and their equal shares of each cell."""
  cells = [np.arange(start, start + size) for start, size in parts]
  counts = np.zeros(max(length, max(c[-1] + 1 for c in cells)))
  for cell in cells:
    counts[cell] += 1
  pairs = []
  for cell in cells:
    pad, cut = _continued(length, len(counts))
    part = _picking(cell, len(counts))
    shares = scipy.sparse.diags_array(1 / counts[cell])
    pairs.append((part @ pad, Map(cut @ part.T @ shares)))
  return pairs


def _tiled(
  protocol: Protocol, rows: Sequence[_Pair], columns: Sequence[_Pair]
) -> list[View]:
  """The views of every combination of a part of rows and one of columns."""
  return [
    _seen_through(view, row, column)
    for row in rows
    for column in columns
    for view in protocol((row[0].shape[0], column[0].shape[0]))
  ]
