"""Depthwise convolution: one kernel for each channel, fast on CPUs, too.

  depthwise_conv(x, kernel, strides=(2, 2))    # [B, ⌈h/2⌉, ⌈w/2⌉, D]

XLA's convolution with as many groups as channels uses one multiplication at a
time on a CPU. There the sum over the taps of the kernel is written out instead:
each tap multiplies a shifted view of the map by one value a channel, and all
taps become one loop over the map, whose inner loop over channels is vectorized.
Programs for other platforms have XLA's convolution.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.types import Cells, ResizedCells

Pair = tuple[int, int]
Padding = tuple[tuple[Any, Any], tuple[Any, Any]]

Kernel = Float[Array, 'k_h k_w 1 D']


class _Geometry(NamedTuple):
  """Strides, padding before and after, and distances of the taps, by axis."""

  strides: Pair
  padding: Padding
  dilation: Pair


_he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
# Products of a row that are added before they are added to the sums in memory.
_UNROLLED = 16


def depthwise_conv(
  x: Cells,
  kernel: Float[Array, 'k_h k_w _ _'],
  strides: Pair = (1, 1),
  padding: Literal['SAME'] | Sequence[Pair] = 'SAME',
  dilation: Pair = (1, 1),
) -> ResizedCells:
  """Convolves each channel with its own kernel.

  Equal to `lax.conv_general_dilated` with feature_group_count=D, up to
  rounding: sums are in float32 at least. Differentiable in reverse mode.

  >>> x = jnp.arange(4.0).reshape(1, 1, 4, 1)
  >>> depthwise_conv(x, jnp.ones((1, 3, 1, 1)), strides=(1, 2)).ravel()
  Array([3., 5.], dtype=float32)

  Args:
    x: maps.
    kernel: kernels [k_h, k_w, 1, D], as of `flax.linen.Conv` with D groups.
    strides: vertical and horizontal stride.
    padding: zeros before and after rows and columns; or 'SAME' for ⌈h/stride⌉
      rows, with the larger half of the zeros after, as in TensorFlow.
    dilation: vertical and horizontal distance of the taps.

  Raises:
    ValueError: the kernel is for another number of channels, or padding is
      negative.
  """
  if kernel.shape[2:] != (1, x.shape[-1]):
    raise ValueError(
      f'kernel: expected [k_h, k_w, 1, {x.shape[-1]}] for maps of '
      f'{x.shape[-1]} channels, got {list(kernel.shape)}'
    )
  extent = [
    (k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)
  ]
  if padding == 'SAME':
    padding = lax.padtype_to_pads(x.shape[1:3], extent, strides, 'SAME')
  elif min(itertools.chain(*padding)) < 0:
    raise ValueError(f'padding: expected no negative numbers, got {padding}')
  geometry = _Geometry(
    tuple(strides), tuple(map(tuple, padding)), tuple(dilation)
  )
  return _convolve(x, kernel, geometry)


class DepthwiseConv(nn.Module):
  """A depthwise convolution with TensorFlow's 'SAME' padding.

  Attributes:
    kernel: height and width of the kernels.
    stride: stride of rows and columns.
    dilation: distance of the taps.
    dtype: dtype of the result; parameters are float32.
    use_bias: whether a bias is added.
    kernel_init: initializer of the kernels; He's normal by default, with the
      fan-in of a channel, the taps of its kernel.
  """

  kernel: int
  stride: int = 1
  dilation: int = 1
  dtype: DTypeLike = jnp.float32
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = _he_normal

  @nn.compact
  def __call__(self, x: Cells) -> ResizedCells:
    """Convolves each channel; h_out is ⌈h/stride⌉."""
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (self.kernel, self.kernel, 1, x.shape[-1]),
      jnp.float32,
    )
    # XLA's convolution requires maps and kernels of one dtype.
    x = depthwise_conv(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      dilation=(self.dilation, self.dilation),
    )
    if not self.use_bias:
      return x
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return x + bias.astype(self.dtype)


# The platform is known when a program is lowered, not when it is traced: one
# that is compiled here for TPUs has XLA's convolution.
#
# The gradient is defined here: jax's own would pad the gradient of each tap's
# slice to the whole map, and add up the padded maps.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Cells, kernel: Kernel, geometry: _Geometry) -> ResizedCells:
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_convolve_by_shifts, geometry=geometry),
    default=functools.partial(_convolve_by_xla, geometry=geometry),
  )


def _convolve_forward(
  x: Cells, kernel: Kernel, geometry: _Geometry
) -> tuple[ResizedCells, tuple[Array, Array]]:
  return _convolve(x, kernel, geometry), (x, kernel)


def _convolve_backward(
  geometry: _Geometry, residuals: tuple[Array, Array], gradient: ResizedCells
) -> tuple[Cells, Kernel]:
  return lax.platform_dependent(
    *residuals,
    gradient,
    cpu=functools.partial(_gradients_by_shifts, geometry=geometry),
    default=functools.partial(_gradients_by_xla, geometry=geometry),
  )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _convolve_by_xla(
  x: Cells, kernel: Kernel, geometry: _Geometry
) -> ResizedCells:
  return lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    rhs_dilation=geometry.dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def _gradients_by_xla(
  x: Cells, kernel: Kernel, gradient: ResizedCells, geometry: _Geometry
) -> tuple[Cells, Kernel]:
  convolve = functools.partial(_convolve_by_xla, geometry=geometry)
  # The result of the forward pass is not used, so XLA removes it.
  return jax.vjp(convolve, x, kernel)[1](gradient)


def _convolve_by_shifts(
  x: Cells, kernel: Kernel, geometry: _Geometry
) -> ResizedCells:
  strides, padding, dilation = geometry
  # In bfloat16 the sum would be rounded after each tap.
  padded = _pad(_at_least_float32(x), padding)
  size = [
    (n - (k - 1) * d - 1) // s + 1
    for n, k, s, d in zip(
      padded.shape[1:3], kernel.shape[:2], strides, dilation, strict=True
    )
  ]
  # One expression over all taps, which XLA fuses into one loop over the map;
  # stacked views would be k² copies of it.
  result = sum(
    _window(padded, (i * dilation[0], j * dilation[1]), size, strides)
    * kernel[i, j, 0]
    for i, j in itertools.product(*map(range, kernel.shape[:2]))
  )
  return result.astype(x.dtype)


def _gradients_by_shifts(
  x: Cells, kernel: Kernel, gradient: ResizedCells, geometry: _Geometry
) -> tuple[Cells, Kernel]:
  strides, padding, dilation = geometry
  wide = _at_least_float32(gradient)
  of_x = _map_gradient(
    wide, kernel, x.shape[1:3], strides, [low for low, _ in padding], dilation
  )
  padded = _pad(_at_least_float32(x), padding)
  of_kernel = _kernel_gradient(
    padded, wide, kernel.shape[:2], strides, dilation
  )
  return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


def _map_gradient(
  gradient: ResizedCells,
  kernel: Kernel,
  size: Sequence[int],
  strides: Pair,
  before: Sequence[int],
  dilation: Pair,
) -> Cells:
  """Computes the gradient with respect to the maps.

  Output cell o reads input cell n through tap i where n + before = stride·o +
  dilation·i. So input cells n = stride·m + phase of one phase are read through
  the same taps, by the output cells m + shift; the phases are interleaved.

  Args:
    gradient: gradient with respect to the result.
    kernel: the kernels.
    size: height and width of the maps.
    strides: strides of the convolution.
    before: zeros before rows and columns.
    dilation: distances of the taps.
  """
  # Cells of a phase.
  counts = [-(-n // s) for n, s in zip(size, strides, strict=True)]
  axes = zip(kernel.shape[:2], strides, before, dilation, strict=True)
  taps = [_taps_by_phase(*axis) for axis in axes]
  pads = []
  for axis, count in enumerate(counts):
    # Shifts may point before or behind the result, whose gradient is 0 there:
    # padding once lets every window be a plain slice.
    shifts = [shift for phase in taps[axis] for _, shift in phase]
    after = max(shifts) + count - gradient.shape[axis + 1]
    pads.append((max(-min(shifts), 0), max(after, 0)))
  padded = _pad(gradient, pads)

  def phase(rows: list[Pair], columns: list[Pair]) -> Array:
    terms = (
      _window(padded, (pads[0][0] + y, pads[1][0] + x), counts, (1, 1))
      * kernel[i, j, 0]
      for (i, y), (j, x) in itertools.product(rows, columns)
    )
    shape = (len(gradient), *counts, gradient.shape[-1])
    # A stride beyond the kernel skips cells, whose gradient is 0.
    return sum(terms, jnp.zeros((), gradient.dtype)) + jnp.zeros(shape)

  # Stacking the phases as inner axes makes the interleaving a reshape, where
  # writing each phase with a stride would be a scatter.
  rows = [
    jnp.stack([phase(rows, columns) for columns in taps[1]], axis=3)
    for rows in taps[0]
  ]
  interleaved = jnp.stack(rows, axis=2).reshape(
    len(gradient),
    counts[0] * strides[0],
    counts[1] * strides[1],
    gradient.shape[-1],
  )
  # Phases have the same number of cells; the last ones may lie outside.
  return interleaved[:, : size[0], : size[1]]


def _taps_by_phase(
  num_taps: int, stride: int, before: int, dilation: int
) -> list[list[Pair]]:
  """Returns for each phase the taps that read it, with their shifts.

  Args:
    num_taps: size of the kernel along an axis.
    stride: stride of the convolution along it.
    before: zeros before the first cell.
    dilation: distance of the taps.
  """
  return [
    [
      (i, (phase + before - i * dilation) // stride)
      for i in range(num_taps)
      if (phase + before - i * dilation) % stride == 0
    ]
    for phase in range(stride)
  ]


def _kernel_gradient(
  padded: Cells,
  gradient: ResizedCells,
  kernel_size: Sequence[int],
  strides: Pair,
  dilation: Pair,
) -> Kernel:
  """Computes the gradient with respect to the kernels.

  It is a sum over images and cells for each tap and channel. XLA's loop for the
  sum of a product over leading axes reads memory channel by channel; so a loop
  adds the products of one row after the other to sums whose inner axis is the
  channels. Images are summed in the end, as they may be on several devices.

  Args:
    padded: maps with their padding.
    gradient: gradient with respect to the result.
    kernel_size: height and width of the kernels.
    strides: strides of the convolution.
    dilation: distances of the taps.
  """
  batch, height, width, channels = gradient.shape
  k_h, k_w = kernel_size
  # A row is split into parts of equal length, whose products are added in
  # registers: the sums are loaded and stored once for all parts.
  num_parts = min(_UNROLLED, width)
  cells = -(-width // num_parts)
  # Cells that are added to fill the last part have gradient 0.
  gradient = _pad(gradient, ((0, 0), (0, num_parts * cells - width)))
  extent = (k_w - 1) * dilation[1] + strides[1] * (num_parts * cells - 1) + 1
  padded = _pad(padded, ((0, 0), (0, max(extent - padded.shape[2], 0))))
  num_rows = (k_h - 1) * dilation[0] + 1

  def add_row(row: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
    maps = lax.dynamic_slice_in_dim(padded, row * strides[0], num_rows, 1)
    outer = lax.dynamic_slice_in_dim(gradient, row, 1, 1)

    def products(j: int, start: int) -> Float[Array, 'B k_h cells D']:
      """Multiplies one part of the row by the cells that tap j reads."""
      corner = (0, j * dilation[1] + start * strides[1])
      read = _window(maps, corner, (k_h, cells), (dilation[0], strides[1]))
      return read * outer[:, :, start : start + cells]

    starts = range(0, num_parts * cells, cells)
    return tuple(
      total + sum(products(j, start) for start in starts)
      for j, total in enumerate(sums)
    )

  zeros = jnp.zeros((batch, k_h, cells, channels), gradient.dtype)
  sums = lax.fori_loop(0, height, add_row, (zeros,) * k_w)
  return jnp.stack([jnp.sum(x, (0, 2)) for x in sums], axis=1)[:, :, None]


def _at_least_float32(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pad(x: Cells, padding: Sequence[tuple[Any, Any]]) -> ResizedCells:
  """Adds zeros before and after rows and columns."""
  sides = ((0, 0), *padding, (0, 0))
  return lax.pad(
    x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in sides]
  )


def _window(
  x: Cells, start: Sequence[int], size: Sequence[Any], strides: Pair
) -> ResizedCells:
  """Returns cells start, start + stride, … of both axes of maps."""
  (y, x_start), (height, width) = start, size
  return lax.slice(
    x,
    (0, y, x_start, 0),
    (
      x.shape[0],
      y + strides[0] * (height - 1) + 1,
      x_start + strides[1] * (width - 1) + 1,
      x.shape[3],
    ),
    (1, *strides, 1),
  )
