"""Compares depthwise convolutions on a CPU with XLA's and with torch's.

  python benchmarks/depthwise.py [--images=8] [--side=224] [--threads=2]
      [--rounds=5] [--out=FILE.json]

Times the depthwise convolutions of EfficientNet-Lite0 for images of this side,
one of each shape: the forward pass, and the gradients of map and kernel. All
versions get the same inputs and run in turns on the same number of threads.
torch's maps are in channels_last, as those of jax are. Without torch, this code
is compared with XLA alone.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import command_line
import jax
import jax.numpy as jnp
import numpy as np

from segcore.models.layers import depthwise

try:
  import torch
except ImportError:
  torch = None

# Stride of the input, channels, kernel and stride of each different layer.
LAYERS = (
  (2, 32, 3, 1),
  (2, 96, 3, 2),
  (4, 144, 3, 1),
  (4, 144, 5, 2),
  (8, 240, 5, 1),
  (8, 240, 3, 2),
  (16, 480, 3, 1),
  (16, 480, 5, 1),
  (16, 672, 5, 1),
  (16, 672, 5, 2),
  (32, 1152, 5, 1),
  (32, 1152, 3, 1),
)
PASSES = ('forward', 'backward')


class Layer(NamedTuple):
  """Sizes of a layer: images, side of its map in cells, D, kernel, stride."""

  images: int
  side: int
  channels: int
  kernel: int
  stride: int


def make_inputs(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws maps, kernels and the gradient with respect to the result."""
  rng = np.random.default_rng(0)
  cells = -(-layer.side // layer.stride)
  shapes = (
    (layer.images, layer.side, layer.side, layer.channels),
    (layer.kernel, layer.kernel, 1, layer.channels),
    (layer.images, cells, cells, layer.channels),
  )
  return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def in_jax(convolve: Callable, inputs: Sequence[np.ndarray]) -> dict:
  """Builds the two passes of a function of maps and kernels."""
  x, kernel, gradient = map(jnp.asarray, inputs)

  @jax.jit
  def backward(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    return jax.vjp(convolve, x, kernel)[1](gradient)

  forward = jax.jit(convolve)
  return {
    'forward': lambda: jax.block_until_ready(forward(x, kernel)),
    'backward': lambda: jax.block_until_ready(backward(x, kernel, gradient)),
  }


def by_xla(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies XLA's convolution with a group for each channel."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def in_torch(layer: Layer, inputs: Sequence[np.ndarray]) -> dict:
  """Builds the two passes of torch; the padding is not timed."""
  x, kernel, gradient = inputs
  pads = jax.lax.padtype_to_pads(
    x.shape[1:3], kernel.shape[:2], (layer.stride,) * 2, 'SAME'
  )
  maps = np.pad(x, ((0, 0), *pads, (0, 0)))
  # From numpy's [B, h, w, D], so that the memory is that of channels_last.
  maps = torch.from_numpy(maps).permute(0, 3, 1, 2)
  weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
  outer = torch.from_numpy(gradient).permute(0, 3, 1, 2)
  options = (None, (layer.stride,) * 2, (0, 0), (1, 1))

  def forward() -> Any:
    with torch.no_grad():
      return torch.conv2d(maps, weight, *options, groups=layer.channels)

  def backward() -> Any:
    return torch.ops.aten.convolution_backward(
      outer,
      maps,
      weight,
      *options,
      False,
      (0, 0),
      layer.channels,
      (True, True, False),
    )

  return {'forward': forward, 'backward': backward}


def compare(layer: Layer, rounds: int) -> dict[str, dict[str, float]]:
  """Measures the median seconds of both passes of all versions, in turns."""
  inputs = make_inputs(layer)
  strides = (layer.stride, layer.stride)
  versions = {
    'shifts': in_jax(
      functools.partial(depthwise.depthwise_conv, strides=strides), inputs
    ),
    'xla': in_jax(functools.partial(by_xla, layer.stride), inputs),
  }
  if torch:
    versions['torch'] = in_torch(layer, inputs)
  seconds: dict[str, dict[str, list[float]]] = {
    name: {part: [] for part in PASSES} for name in versions
  }
  # The first round compiles and is not counted.
  for number in range(rounds + 1):
    for name, passes in versions.items():
      for part, run in passes.items():
        start = time.perf_counter()
        run()
        if number:
          seconds[name][part].append(time.perf_counter() - start)
  return {
    name: {part: statistics.median(values) for part, values in passes.items()}
    for name, passes in seconds.items()
  }


def ratios(times: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
  """Divides the time of all layers by that of each other version."""
  totals = {
    name: {part: sum(layer[name][part] for layer in times) for part in PASSES}
    for name in times[0]
  }
  return {
    **{f'seconds_of_{name}': total for name, total in totals.items()},
    **{
      f'relative_to_{name}': {
        part: totals['shifts'][part] / total[part] for part in PASSES
      }
      for name, total in totals.items()
      if name != 'shifts'
    },
  }


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv, __doc__, images=8, side=224, rounds=5
  )
  if torch:
    torch.set_num_threads(arguments.threads)
  layers, times = [], []
  for stride, *sizes in LAYERS:
    layer = Layer(arguments.images, -(-arguments.side // stride), *sizes)
    layers.append(layer._asdict())
    times.append(compare(layer, arguments.rounds))
    shown = '  '.join(
      f'{name} {1000 * passes["forward"]:.2f} + '
      f'{1000 * passes["backward"]:.2f} ms'
      for name, passes in times[-1].items()
    )
    print(f'{layer}: {shown}', flush=True)
  results = ratios(times)
  for name, parts in results.items():
    shown = ', '.join(f'{part} {value:.3f}' for part, value in parts.items())
    print(f'{name}: {shown}')
  results['layers'] = [
    {'layer': layer, 'seconds': seconds}
    for layer, seconds in zip(layers, times, strict=True)
  ]
  results['threads'] = arguments.threads
  lines = [
    command_line.Line(
      f'depthwise convolutions, {part}',
      f'{1000 * results["seconds_of_shifts"][part]:.0f} ms',
      other,
      results[f'relative_to_{other}'][part],
    )
    for other in times[0]
    if other != 'shifts'
    for part in PASSES
  ]
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
