"""Views of an image: linear maps from it to the network's input, and back.

  scales = multi_scale_views(whole_image_views(16), (0.75, 1.0, 1.25))
  protocol = flip_averaged_views(scales)
  views = protocol((375, 500))       # six views of an image of this size

A view consists of linear maps of rows and of columns. So resizing, cropping,
padding and flipping compose by matrix products, and overlapping views have
weights that sum to 1 at each pixel. This module computes the geometry;
`inference` applies it to pixels.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from etils import epy
from jaxtyping import Float, Int

from segcore.models.layers import resize

with epy.lazy_imports():
  import scipy.sparse

Size = tuple[int, int]
# A linear map from one axis to another, [cells of the target, of the source]; a
# name, as the library is imported where it is used.
Map = 'scipy.sparse.csr_array'


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
      pairs += [half, flip_view(half, size)]
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
  _check_scales(scales)

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


def unpadded_scale_views(
  scales: Sequence[float], multiple: int, flip: bool, antialias: bool = False
) -> Protocol:
  """Builds the protocol of whole images at several scales, without padding.

  Views have no weights: each reads, and predicts, the whole image, so that
  their scores can be compared cell by cell. With `flip`, that of the flipped
  image follows each of them.

  Args:
    scales: factors of height and width, which are rounded down.
    multiple: divisor of the sides of inputs, to which they are rounded down.
    flip: whether the flipped image is another view.
    antialias: whether to blur images before shrinking them.

  Raises:
    ValueError: there is no scale, or one is not above 0.
  """
  _check_scales(scales)

  def views(size: Size) -> list[View]:
    results = []
    for scale in scales:
      scaled = tuple(
        max(int(n * scale) // multiple, 1) * multiple for n in size
      )
      whole = whole_image_views(multiple)
      plain = rescaled_views(whole, scaled, antialias)(size)
      results += plain
      if flip:
        results += [flip_view(view, size) for view in plain]
    return results

  return views


def _check_scales(scales: Sequence[float]) -> None:
  if not scales or min(scales) <= 0:
    raise ValueError(f'scales: expected numbers above 0, got {tuple(scales)}')


def flip_view(view: View, size: Size) -> View:
  """Returns the view of the horizontally flipped image.

  Args:
    view: view of the image.
    size: height and width of the image.
  """
  return dataclasses.replace(
    view,
    read_columns=view.read_columns @ _reversal(size[1]),
    write_columns=_reversal(size[1]) @ view.write_columns,
  )


def rescaled_views(
  protocol: Protocol, scaled: Size, antialias: bool = False
) -> Protocol:
  """Applies a protocol to the image resized to (height, width) `scaled`."""

  def views(size: Size) -> list[View]:
    pairs = [
      (
        scipy.sparse.csr_array(
          resize.bilinear_resize_matrix(n, m, antialias=antialias)
        ),
        scipy.sparse.csr_array(resize.bilinear_resize_matrix(m, n)),
      )
      for n, m in zip(size, scaled, strict=True)
    ]
    return [_compose(view, *pairs) for view in protocol(scaled)]

  return views


def enlarged_views(
  protocol: Protocol, resized: Size, size: Size, align_corners: bool = False
) -> list[View]:
  """Builds the views of a resized image, whose outputs are enlarged again.

  Args:
    protocol: protocol that is applied to the resized image.
    resized: height and width of the image after resizing.
    size: height and width before, to which scores are resized bilinearly.
    align_corners: rule of this resizing.
  """
  rows, columns = (
    scipy.sparse.csr_array(resize.bilinear_resize_matrix(m, n, align_corners))
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


# Linear maps of one axis: from the image to the input, and back.
_Pair = tuple['scipy.sparse.csr_array', 'scipy.sparse.csr_array']


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
  return scipy.sparse.csr_array(crop.T), crop


def _selection(source: Int[np.ndarray, 'n'], length: int) -> Map:
  """Builds the map whose cell i is cell source[i] of an axis."""
  ones, rows = np.ones(len(source)), np.arange(len(source))
  return scipy.sparse.csr_array(
    (ones, (rows, source)), shape=(len(source), length)
  )


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
    pairs.append((part @ pad, scipy.sparse.csr_array(crop @ part.T @ weights)))
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
