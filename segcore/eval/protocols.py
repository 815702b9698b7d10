"""Evaluation protocols: flip averaging, multiple scales, windows, halves.

  scales = multi_scale_views(whole_image_views(16), (0.75, 1.0, 1.25))
  protocol = flip_averaged_views(scales)
  views = protocol((375, 500))       # six views of an image of this size

A protocol maps the size of an image to views. A view consists of linear maps of
rows and of columns, from the image to the network's input, and from the input
back to the image. So resizing, cropping, padding and flipping compose by matrix
products, and overlapping views have weights that sum to 1 at each pixel. This
module computes the geometry; `inference` applies it to pixels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from etils import epy
from jaxtyping import Float, Int

from input_pipeline import resampling
from segcore.models.layers import resize

with epy.lazy_imports():
  import scipy.sparse

Size = tuple[int, int]
# A linear map from one axis to another, [cells of the target, of the source].
Map = scipy.sparse.csr_array


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """Linear maps between an image of H x W pixels and an input of h x w.

  Attributes:
    read_rows: [h, H], rows of the input from those of the image.
    read_columns: [w, W], columns of the input from those of the image.
    write_rows: [H, h], rows of the image from those of the input. A row sums to
      the weight of the view there, 0 outside of the view.
    write_columns: [W, w], the same for columns; the weight of a pixel is the
      product of the two.
  """

  read_rows: Map
  read_columns: Map
  write_rows: Map
  write_columns: Map

  @property
  def input_size(self) -> Size:
    """Returns height and width of the network's input."""
    return self.read_rows.shape[0], self.read_columns.shape[0]

  def weights(self) -> Float[np.ndarray, 'H W']:
    """Computes the weight of the view at each pixel of the image."""
    return np.outer(self.write_rows.sum(axis=1), self.write_columns.sum(axis=1))


# From the height and width of an image to views whose weights sum to 1.
Protocol = Callable[[Size], list[View]]


def whole_image_views(multiple: int) -> Protocol:
  """Builds the protocol of one view: the image, padded to multiples.

  Args:
    multiple: number that divides height and width after padding by reflection
      at the bottom and right.
  """

  def views(size: Size) -> list[View]:
    padded = [-(-n // multiple) * multiple for n in size]
    pairs = [
      _reflection_padding(n, m) for n, m in zip(size, padded, strict=True)
    ]
    return [_make_view(*pairs)]

  return views


def flip_averaged_views(protocol: Protocol) -> Protocol:
  """Adds the view of the horizontally flipped image to each view."""

  def views(size: Size) -> list[View]:
    pairs = []
    for view in protocol(size):
      half = dataclasses.replace(view, write_rows=view.write_rows / 2)
      flipped = dataclasses.replace(
        half,
        read_columns=view.read_columns @ _reversal(size[1]),
        write_columns=_reversal(size[1]) @ view.write_columns,
      )
      pairs += [half, flipped]
    return pairs

  return views


def multi_scale_views(
  protocol: Protocol, scales: Sequence[float], antialias: bool = False
) -> Protocol:
  """Averages the views of the image at several scales.

  Args:
    protocol: protocol that is applied to each resized image.
    scales: factors of height and width, which are rounded.
    antialias: whether to blur images before shrinking them. Scores are resized
      bilinearly, without antialiasing.

  Raises:
    ValueError: there is no scale, or one is not above 0.
  """
  if not scales or min(scales) <= 0:
    raise ValueError(f'scales: expected numbers above 0, got {tuple(scales)}')

  def views(size: Size) -> list[View]:
    scaled_views = []
    for scale in scales:
      scaled = tuple(max(1, int(n * scale + 0.5)) for n in size)
      scaled_views += rescaled_views(protocol, scaled, antialias)(size)
    return [
      dataclasses.replace(view, write_rows=view.write_rows / len(scales))
      for view in scaled_views
    ]

  return views


def rescaled_views(
  protocol: Protocol, scaled: Size, antialias: bool = False
) -> Protocol:
  """Applies a protocol to the image resized to (height, width) `scaled`."""

  def views(size: Size) -> list[View]:
    pairs = [
      (
        Map(resize.bilinear_resize_matrix(n, m, antialias=antialias)),
        Map(resize.bilinear_resize_matrix(m, n)),
      )
      for n, m in zip(size, scaled, strict=True)
    ]
    return [_compose(view, *pairs) for view in protocol(scaled)]

  return views


def enlarged_views(protocol: Protocol, resized: Size, size: Size) -> list[View]:
  """Builds the views of a resized image, whose outputs are enlarged again.

  Args:
    protocol: protocol that is applied to the resized image.
    resized: height and width of the image after resizing.
    size: height and width before, to which scores are resized bilinearly.
  """
  rows, columns = (
    Map(resize.bilinear_resize_matrix(m, n))
    for n, m in zip(size, resized, strict=True)
  )
  return [
    dataclasses.replace(
      view,
      write_rows=rows @ view.write_rows,
      write_columns=columns @ view.write_columns,
    )
    for view in protocol(resized)
  ]


def sliding_window_views(
  protocol: Protocol, window: Size, stride: Size, centered: bool = False
) -> Protocol:
  """Applies a protocol to windows; overlapping windows have equal weights.

  The last window of a row or column is shifted to end at the end of the image.
  An image smaller than the window is padded by reflection at the bottom and
  right, or on all sides.

  Args:
    protocol: protocol that is applied to each window.
    window: height and width in pixels.
    stride: distance of windows, downward and to the right.
    centered: whether to center an image smaller than the window; its padding
      reads no pixel, and `inference` fills it with a color.

  Raises:
    ValueError: a size is below 1, or the stride is above the window.
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
      [_centered_padding(n, w)]
      if centered and n < w
      else _split_axis(n, [(start, w) for start in _window_starts(n, w, s)])
      for n, w, s in zip(size, window, stride, strict=True)
    )
    return _tile(protocol, rows, columns)

  return views


def half_image_views(protocol: Protocol) -> Protocol:
  """Applies a protocol to the left and the right half of the image."""

  def views(size: Size) -> list[View]:
    height, width = size
    middle = width // 2
    parts = [(0, middle), (middle, width - middle)] if middle else [(0, width)]
    return _tile(
      protocol,
      _split_axis(height, [(0, height)]),
      _split_axis(width, parts),
    )

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
    short_side: length to which the shorter side of every image is resized
      first, antialiased, in pixels; 0 keeps the size of the image.
    fit_sides: long and short side in pixels that every image is resized to fit
      first, keeping its aspect ratio, without antialiasing (spec U2PL for
      domain adaptation §2.7); (0, 0) keeps the size of the image. Scores are
      enlarged to that size, then to the image's.
    scales: factors by which the image is resized; their scores are averaged.
    flip: whether to average with the horizontally flipped image.
    average: quantity averaged over views before the argmax: 'logits', or
      'probs' (softmax of each view at the size of the image).
    antialias: whether to blur images before shrinking them.
    align_corners: whether a network's scores are enlarged to the size of its
      input with corners on corners; else with half-pixel centers.
    size_multiple: images are padded to multiples of this, and one program is
      compiled for each padded size and size of input; 0: the network's stride.
      A single view of the whole image applies the network to the padded image,
      padded by reflection.
  """

  tiling: Literal['whole', 'halves', 'sliding_window'] = 'whole'
  window: tuple[int, int] = (0, 0)
  stride: tuple[int, int] = (0, 0)
  padding_mode: Literal['reflection', 'mean'] = 'reflection'
  short_side: int = 0
  fit_sides: tuple[int, int] = (0, 0)
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
    for name in ('short_side', 'size_multiple'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}: expected >= 0, got {getattr(self, name)}')
    resampling.check_fit_sides(self.fit_sides)
    if self.short_side and any(self.fit_sides):
      raise ValueError(
        f'short_side={self.short_side} and fit_sides={self.fit_sides} '
        'contradict each other: set one of them'
      )
    self.build(1)

  def single_view(self) -> 'ProtocolOptions':
    """Returns the protocol of one view, for evaluations during training.

    Of several scales the one nearest to 1 is kept. Windows are kept with
    padding_mode='mean', since the network was trained on such padding.
    """
    nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
    single = dataclasses.replace(
      self, scales=(nearest,), flip=False, average='logits'
    )
    if self.padding_mode == 'mean':
      return single
    return dataclasses.replace(
      single, tiling='whole', window=(0, 0), stride=(0, 0)
    )

  @property
  def is_single_view(self) -> bool:
    """Returns whether there is one view: the whole image at its own scale."""
    return self.is_whole_image and not self.resizes_images

  @property
  def resizes_images(self) -> bool:
    """Returns whether images are resized before all else."""
    return bool(self.short_side or any(self.fit_sides))

  @property
  def is_whole_image(self) -> bool:
    """Returns whether there is one view: the whole image, resized or not."""
    return self.tiling == 'whole' and self.scales == (1.0,) and not self.flip

  def resized_size(self, size: Size) -> Size:
    """Returns height and width of an image after it is resized first."""
    if any(self.fit_sides):
      return resampling.size_within_sides(size, self.fit_sides)
    if not self.short_side:
      return size
    shorter = min(size)
    height, width = (max(n * self.short_side // shorter, 1) for n in size)
    return height, width

  @property
  def max_taps(self) -> tuple[int, int]:
    """Returns the most nonzeros in a row of the read and of the write maps.

    An upper bound for images of every size, so that packed maps of images of
    different sizes have one shape.
    """
    # Scores that are resized twice have up to two times two neighbors.
    written = 2 if self.resizes_images else 1
    if self.scales == (1.0,):
      return 1, written
    antialiased = math.ceil(2 / min(*self.scales, 1.0)) + 2
    return (antialiased if self.antialias else 2), 2 * written

  def build(self, multiple: int) -> Protocol:
    """Builds the protocol of a network with inputs of a given size multiple.

    With `short_side` or `fit_sides` its views are those of the resized image.
    """
    protocol = whole_image_views(multiple)
    if self.tiling == 'sliding_window':
      protocol = sliding_window_views(
        protocol, self.window, self.stride, self.padding_mode == 'mean'
      )
    elif self.tiling == 'halves':
      protocol = half_image_views(protocol)
    if self.scales != (1.0,):
      protocol = multi_scale_views(protocol, self.scales, self.antialias)
    return flip_averaged_views(protocol) if self.flip else protocol

  def describe(self) -> str:
    """Describes the protocol in words, for `results.json`.

    >>> ProtocolOptions(flip=True, average='probs').describe()
    'whole image, single scale, flip; averaged probs'
    """
    parts = [self._describe_tiling()]
    if self.short_side:
      parts.append(f'short side {self.short_side}')
    if any(self.fit_sides):
      long, short = self.fit_sides
      parts.append(f'resized to fit {long}x{short}')
    parts.append(
      'single scale'
      if self.scales == (1.0,)
      else 'scales ' + ', '.join(map(str, self.scales))
    )
    if self.antialias and min(self.scales) < 1:
      parts.append('antialiased')
    if self.flip:
      parts.append('flip')
    if self.is_single_view and self.size_multiple:
      parts.append(f'padded to multiples of {self.size_multiple}')
    if self.align_corners:
      parts.append('aligned corners')
    averaged = (
      self.flip or self.scales != (1.0,) or self.tiling == 'sliding_window'
    )
    return ', '.join(parts) + (f'; averaged {self.average}' if averaged else '')

  def _describe_tiling(self) -> str:
    if self.tiling != 'sliding_window':
      return {'whole': 'whole image', 'halves': 'left and right half'}[
        self.tiling
      ]
    window, stride = (f'{a}x{b}' for a, b in (self.window, self.stride))
    text = f'sliding window {window}, stride {stride}'
    if self.padding_mode == 'mean':
      text += ' (smaller images padded with the mean color)'
    return text


# Linear maps of one axis: from the image to the input, and back.
_Pair = tuple[Map, Map]


def _make_view(rows: _Pair, columns: _Pair) -> View:
  return View(rows[0], columns[0], rows[1], columns[1])


def _compose(view: View, rows: _Pair, columns: _Pair) -> View:
  """Composes a view with linear maps from another image to the view's image."""
  return View(
    view.read_rows @ rows[0],
    view.read_columns @ columns[0],
    rows[1] @ view.write_rows,
    columns[1] @ view.write_columns,
  )


def _reflection_padding(length: int, padded: int) -> _Pair:
  """Pads the end of an axis by reflection (edges repeated); crops it again."""
  position = np.arange(padded) % (2 * length)
  source = np.minimum(position, 2 * length - 1 - position)
  return _selection(source, length), _selection(np.arange(length), padded)


def _centered_padding(length: int, padded: int) -> _Pair:
  """Pads an axis on both sides with zeros, fewer before; crops it again."""
  before = (padded - length) // 2
  crop = _selection(np.arange(before, before + length), padded)
  return Map(crop.T), crop


def _selection(source: Int[np.ndarray, 'n'], length: int) -> Map:
  """Builds the map whose cell i is cell source[i] of an axis."""
  ones, rows = np.ones(len(source)), np.arange(len(source))
  return Map((ones, (rows, source)), shape=(len(source), length))


def _reversal(length: int) -> Map:
  return _selection(np.arange(length)[::-1], length)


def _window_starts(length: int, window: int, stride: int) -> list[int]:
  """Computes where windows start; the last one ends at the end of the axis."""
  last = max(length - window, 0)
  return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def _split_axis(length: int, parts: Sequence[tuple[int, int]]) -> list[_Pair]:
  """Builds the maps of parts (start, size) of an axis, of equal weights.

  Each cell of the axis is the mean of the parts that contain it.
  """
  cells = [np.arange(start, start + size) for start, size in parts]
  # A part may exceed the axis, which is padded then.
  counts = np.zeros(max(length, max(c[-1] + 1 for c in cells)))
  for cell in cells:
    counts[cell] += 1
  pairs = []
  for cell in cells:
    pad, crop = _reflection_padding(length, len(counts))
    part = _selection(cell, len(counts))
    weights = scipy.sparse.diags_array(1 / counts[cell])
    pairs.append((part @ pad, Map(crop @ part.T @ weights)))
  return pairs


def _tile(
  protocol: Protocol, rows: Sequence[_Pair], columns: Sequence[_Pair]
) -> list[View]:
  """Applies a protocol to every combination of parts of rows and of columns."""
  return [
    _compose(view, row, column)
    for row in rows
    for column in columns
    for view in protocol((row[0].shape[0], column[0].shape[0]))
  ]
