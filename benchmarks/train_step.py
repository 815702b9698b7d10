"""Compares a training step on a CPU with torch's, whole and by layer.

  python benchmarks/train_step.py [--images=8] [--side=160] [--classes=8]
      [--threads=2] [--rounds=5] [--out=FILE.json]

The network is that of the configs of own data and of `make demo`,
EfficientNet-Lite0 with a U-Net (`network=efficientnet+unet`): from random
values, and with stem and first blocks frozen, as from public weights. A step is
the forward pass, the cross entropy at the size of the images, the gradient and
Adam. Layers are timed with their gradients, at sizes of the network, by the
processor time of all threads, since they take a few milliseconds. Both versions
run in turns on the same number of threads. Without torch, this code alone is
timed.
"""

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Before OpenMP is loaded: by default its idle threads spin, which slows both
# versions where another process needs the core.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import command_line
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import networks
from segcore.models import heads, network, network_options
from segcore.models.layers import depthwise, norm, resize
from segcore.ops import losses

try:
  import torch
  import torch_efficientnet
except ImportError:
  torch = None


class Shape(NamedTuple):
  """Sizes of a step: images, their side in pixels, classes."""

  images: int
  side: int
  classes: int


def make_batch(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
  """Draws images in [-1, 1] and labels, some of which are ignored."""
  rng = np.random.default_rng(0)
  size = (shape.images, shape.side, shape.side)
  images = rng.uniform(-1, 1, (*size, 3)).astype(np.float32)
  return images, rng.integers(-1, shape.classes, size).astype(np.int32)


def step_in_jax(shape: Shape, frozen: bool) -> Callable[[], Any]:
  """Builds the function that runs the next step, jitted as a whole."""
  options = networks.named('efficientnet+unet', frozen=frozen).to_dict()
  segmenter = network.build_network(
    network_options.NetworkOptions(**options),
    {'logits': heads.ConvHead(shape.classes, stride=4)},
    'network',
  )
  images, labels = map(jnp.asarray, make_batch(shape))
  optimizer = optax.adam(1e-3)

  def loss(params, statistics, images, labels) -> tuple[jax.Array, Any]:
    outputs, changed = segmenter.apply(
      {'params': params, **statistics},
      images,
      train=True,
      mutable=['batch_stats'],
    )
    logits = resize.resize_bilinear(outputs['logits'], images.shape[1:3])
    each = losses.cross_entropy(logits, labels)
    return losses.masked_mean(each, labels >= 0), changed

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
    params, statistics, moments = state
    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
      params, statistics, images, labels
    )
    changes, moments = optimizer.update(gradient, moments)
    params = optax.apply_updates(params, changes)
    return (params, statistics, moments), value

  @jax.jit
  def init() -> Any:
    variables = segmenter.init(jax.random.PRNGKey(0), images)
    params = variables.pop('params')
    return params, variables, optimizer.init(params)

  state = init()

  def run() -> None:
    nonlocal state
    state, value = jax.block_until_ready(step(state, images, labels))
    assert np.isfinite(value)

  return run


def step_in_torch(shape: Shape, frozen: bool) -> Callable[[], Any]:
  """Builds the function that runs the next step in torch."""
  model = torch_efficientnet.Network(
    shape.classes, networks._FROZEN_BLOCKS if frozen else None
  ).to(memory_format=torch.channels_last)
  model.train()
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)
  images, labels = map(torch.from_numpy, make_batch(shape))
  images, labels = images.permute(0, 3, 1, 2), labels.long()

  def run() -> None:
    optimizer.zero_grad()
    logits = torch.nn.functional.interpolate(
      model(images), images.shape[2:], mode='bilinear'
    )
    value = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    value.backward()
    optimizer.step()
    assert np.isfinite(value.item())

  return run


class Layer(NamedTuple):
  """A layer of the network with its input.

  Attributes:
    channels: channels of the input.
    stride: stride of the input.
    in_jax: the module, or a function of the input.
    in_torch: function that builds the same in torch.
  """

  channels: int
  stride: int
  in_jax: Any
  in_torch: Callable[[], Any]


def list_layers() -> dict[str, Layer]:
  """Lists the kinds of layers of which the network consists."""
  return {
    'group norm, ReLU': Layer(
      64,
      4,
      nn.Sequential([norm.GroupNorm(8), nn.relu]),
      lambda: torch.nn.Sequential(
        torch.nn.GroupNorm(8, 64, 1e-6), torch.nn.ReLU()
      ),
    ),
    'batch norm, ReLU6': Layer(
      96,
      2,
      nn.Sequential(
        [norm.batch_norm(train=True, dtype=jnp.float32, name='bn'), nn.relu6]
      ),
      lambda: torch.nn.Sequential(
        torch.nn.BatchNorm2d(96, 1e-5, 0.1), torch.nn.ReLU6()
      ),
    ),
    'upsampling by 2': Layer(
      64,
      8,
      resize.upsample2x,
      lambda: torch.nn.Upsample(scale_factor=2.0, mode='bilinear'),
    ),
    'logits to the size of the image': Layer(
      8,
      4,
      lambda x: resize.resize_bilinear(x, [4 * n for n in x.shape[1:3]]),
      lambda: torch.nn.Upsample(scale_factor=4.0, mode='bilinear'),
    ),
    'depthwise 5x5': Layer(
      480,
      16,
      depthwise.DepthwiseConv(5),
      lambda: torch.nn.Conv2d(480, 480, 5, padding=2, groups=480, bias=False),
    ),
    'convolution 1x1': Layer(
      24,
      4,
      nn.Conv(144, (1, 1), use_bias=False),
      lambda: torch.nn.Conv2d(24, 144, 1, bias=False),
    ),
    'convolution 3x3': Layer(
      64,
      4,
      nn.Conv(64, (3, 3), use_bias=False),
      lambda: torch.nn.Conv2d(64, 64, 3, padding=1, bias=False),
    ),
  }


def layer_in_jax(layer: Layer, x: np.ndarray) -> Callable[[], Any]:
  """Builds the layer and its gradient, of the input and of parameters."""
  x = jnp.asarray(x)
  if isinstance(layer.in_jax, nn.Module):
    variables = layer.in_jax.init(jax.random.PRNGKey(0), x)
    changing = [n for n in variables if n != 'params']

    def apply(params: Any, x: jax.Array) -> jax.Array:
      known = {**variables, 'params': params}
      if changing:
        return layer.in_jax.apply(known, x, mutable=changing)[0]
      return layer.in_jax.apply(known, x)

    params = variables.get('params', {})
  else:
    params, apply = {}, lambda _, x: layer.in_jax(x)

  @jax.jit
  def run(params: Any, x: jax.Array) -> Any:
    y, backward = jax.vjp(apply, params, x)
    return y, backward(y)

  return lambda: jax.block_until_ready(run(params, x))


def layer_in_torch(layer: Layer, x: np.ndarray) -> Callable[[], Any]:
  """Builds the layer and its gradient in torch."""
  module = layer.in_torch().to(memory_format=torch.channels_last)
  inputs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()

  def run() -> None:
    y = module(inputs)
    y.backward(y.detach())

  return run


def compare(
  name: str,
  sides: dict[str, Callable[[], Any]],
  rounds: int,
  clock: Callable[[], float],
) -> tuple[dict[str, list[float]], command_line.Line]:
  """Measures the seconds of the sides in turns; prints and returns them."""
  seconds = command_line.alternate(sides, rounds, clock)
  own = seconds['jax']
  value = f'{1000 * statistics.median(own):.1f} ms'
  if torch:
    line = command_line.Line.of_rounds(
      name, value, 'torch', own, seconds['torch']
    )
    shown = f'{line.share:.2f} of the time of torch'
    shown += f' ({command_line.format_range(line._asdict(), ".2f")})'
  else:
    line, shown = command_line.Line(name, value), 'torch is not installed'
  print(f'{name}: {value}, {shown}', flush=True)
  return seconds, line


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv, __doc__, images=8, side=160, classes=8, rounds=5
  )
  if torch:
    torch.set_num_threads(arguments.threads)
  shape = Shape(arguments.images, arguments.side, arguments.classes)
  results: dict[str, Any] = {
    'shape': shape._asdict(),
    'threads': arguments.threads,
    'seconds': {},
  }
  comparisons = {}
  for name, frozen in (('whole', False), ('frozen start', True)):
    sides = {'jax': step_in_jax(shape, frozen)}
    if torch:
      sides['torch'] = step_in_torch(shape, frozen)
    comparisons[f'training step, {name}'] = sides
  rng = np.random.default_rng(0)
  for name, layer in list_layers().items():
    cells = shape.side // layer.stride
    x = rng.standard_normal(
      (shape.images, cells, cells, layer.channels), np.float32
    )
    sides = {'jax': layer_in_jax(layer, x)}
    if torch:
      sides['torch'] = layer_in_torch(layer, x)
    comparisons[f'layer with gradient, {name}'] = sides
  lines = []
  for name, sides in comparisons.items():
    # More rounds of layers, of a few milliseconds each.
    options = (arguments.rounds, time.perf_counter)
    if name.startswith('layer'):
      options = (10 * arguments.rounds, time.process_time)
    results['seconds'][name], line = compare(name, sides, *options)
    lines.append(line)
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
