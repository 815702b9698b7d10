"""FLOPs and parameters of DDeP's networks, counted from lists of layers.

Transcribed from the specification, §1.5: 2 FLOPs a multiply-add; norms,
activations and resizes are free.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.transcriptions import ddep_networks


class Layer(NamedTuple):
  """An entry of the list, with the multiply-adds of one image."""

  name: str
  macs: int
  params: int


def gflops(layers: Iterable[Layer]) -> float:
  """Sums a forward pass of one image, in 1e9 FLOPs."""
  return sum(layer.macs for layer in layers) * 2 / 1e9


def parameters(layers: Iterable[Layer]) -> int:
  """Sums the parameters of the layers."""
  return sum(layer.params for layer in layers)


def _sides(size, stride):
  height, width = (size, size) if isinstance(size, int) else size
  return math.ceil(height / stride), math.ceil(width / stride)


def _conv_layer(name, size, stride, kernel, inputs, outputs, bias=False):
  """Returns a convolution whose output has a stride against the image."""
  height, width = _sides(size, stride)
  weights = kernel * kernel * inputs * outputs
  params = weights + (outputs if bias else 0)
  return Layer(name, height * width * weights, params)


def stem_layers(
  size: int | tuple[int, int],
  *,
  root: int = 64,
  mids: Sequence[int] = (64, 128, 256),
  blocks: Sequence[int] = (3, 4, 9),
  preactivation: bool = False,
) -> list[Layer]:
  """Lists the layers of the ResNet; of four stages, that of §2."""
  layers = [_conv_layer('root', size, 2, 7, 3, root)]
  if not preactivation:
    layers.append(Layer('root norm', 0, 2 * root))
  stride, width = 4, root
  for stage, (mid, units) in enumerate(zip(mids, blocks, strict=True), 1):
    for unit in range(1, units + 1):
      at = f'block{stage}/unit{unit}'
      before, stride = stride, stride * (2 if stage > 1 and unit == 1 else 1)
      layers += [
        _conv_layer(f'{at}/conv1', size, before, 1, width, mid),
        _conv_layer(f'{at}/conv2', size, stride, 3, mid, mid),
        _conv_layer(f'{at}/conv3', size, stride, 1, mid, 4 * mid),
      ]
      norms = 2 * (width + mid + mid if preactivation else mid + mid + 4 * mid)
      if unit == 1 and (preactivation or stage > 1 or width != 4 * mid):
        name = f'{at}/proj'
        layers.append(_conv_layer(name, size, stride, 1, width, 4 * mid))
        norms += 0 if preactivation else 2 * 4 * mid
      layers.append(Layer(f'{at}/norms', 0, norms))
      width = 4 * mid
  if preactivation:
    layers.append(Layer('final norm', 0, 2 * width))
  return layers


def vit_layers(
  size: int | tuple[int, int],
  *,
  inputs: int = 1024,
  hidden: int = 768,
  mlp: int = 3072,
  layers: int = 12,
  grid: int = 14,
  stride: int = 16,
) -> list[Layer]:
  """Lists the layers of the ViT, with a table of grid² + 1 positions."""
  height, width = _sides(size, stride)
  tokens = height * width + 1
  result = [
    _conv_layer('embedding', size, stride, 1, inputs, hidden, bias=True),
    Layer('class token', 0, hidden),
    Layer('positions', 0, (grid * grid + 1) * hidden),
  ]
  for index in range(layers):
    result += [
      Layer(f'{index}/norms', 0, 4 * hidden),
      Layer(
        f'{index}/projections',
        4 * tokens * hidden * hidden,
        4 * (hidden * hidden + hidden),
      ),
      Layer(f'{index}/attention', 2 * tokens * tokens * hidden, 0),
      Layer(
        f'{index}/mlp',
        2 * tokens * hidden * mlp,
        2 * hidden * mlp + mlp + hidden,
      ),
    ]
  return [*result, Layer('final norm', 0, 2 * hidden)]


def decoder_layers(
  size: int | tuple[int, int],
  *,
  layout: str = 'A',
  widths: Sequence[int] = ddep_networks.WIDTHS,
  channels: Mapping[str, int] | None = None,
  outputs: int = 3,
) -> list[Layer]:
  """Lists the layers of a decoder; arguments are those of `decoder_weights`."""
  if channels is None:
    channels = (
      ddep_networks.RESNET_CHANNELS
      if layout == 'unet'
      else ddep_networks.HYBRID_CHANNELS
    )
  source, stride = ddep_networks.source_map(layout)
  inputs, result = channels[source], []
  for index, (block, width) in enumerate(
    zip(ddep_networks.LAYOUTS[layout], widths, strict=True)
  ):
    stride //= 2 if block.upsample else 1
    if block.skip:
      inputs += channels[block.skip]
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      result += [
        _conv_layer(f'{at}/conv{conv}', size, stride, 3, inputs, width),
        Layer(f'{at}/norm{conv}', 0, 2 * width),
      ]
      inputs = width
  result.append(_conv_layer('head', size, stride, 3, inputs, outputs, True))
  return result


def frozen_gflops(
  size: int | tuple[int, int],
  *,
  layout: str = 'A',
  widths: Sequence[int] = ddep_networks.WIDTHS,
  outputs: int = 3,
) -> float:
  """Computes the GFLOPs of a pretraining step with frozen encoder (§1.5).

  The encoder counts once and the decoder three times, without the gradients
  with respect to the maps of the encoder.
  """
  options = {'layout': layout, 'widths': widths, 'outputs': outputs}
  full = decoder_layers(size, **options)
  # Without channels of the encoder, only inputs from the decoder itself count.
  no_channels = dict.fromkeys(ddep_networks.HYBRID_CHANNELS, 0)
  own = decoder_layers(size, channels=no_channels, **options)
  encoder = gflops(stem_layers(size)) + gflops(vit_layers(size))
  return encoder + 2 * gflops(full) + gflops(own)
