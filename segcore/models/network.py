"""Builds a `Segmenter` from the options of a config."""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from runtime import errors, options
from segcore.models import features, segmenter
from segcore.models.decoders import (
  daformer,
  deeplabv3plus,
  dpt,
  fpn,
  psp,
  segformer,
  unet,
)
from segcore.models.encoders import (
  bit,
  efficientnet,
  hybrid_vit,
  mit,
  resnet_gn,
  vit,
)
from segcore.models.encoders import resnet as resnet_lib
from segcore.models.network_options import NetworkOptions

ENCODERS = {
  'resnet': resnet_gn.ResNet,
  'bit': bit.BiT,
  'dilated_resnet': resnet_lib.DilatedResNet,
  'efficientnet': efficientnet.EfficientNet,
  'hybrid_vit': hybrid_vit.HybridViT,
  'mit': mit.MiT,
  'vit': vit.ViT,
}
DECODERS = {
  'unet': unet.UNetDecoder,
  'daformer': daformer.DAFormer,
  'deeplabv3plus': deeplabv3plus.DeepLabV3Plus,
  'dpt': dpt.DPT,
  'fpn': fpn.FPN,
  'psp': psp.PSP,
  'segformer': segformer.SegFormer,
}

# Side in pixels of images that encoders of any stride accept.
_SIDE = 64


def with_position_grid(
  network: NetworkOptions, size: tuple[int, int], path: str
) -> NetworkOptions:
  """Replaces a position grid of (0, 0) by that of the training images.

  Args:
    network: options of the network; returned unchanged unless the grid is
      (0, 0).
    size: height and width of the images.
    path: path of the options in the config, for messages.

  Raises:
    UserError: a name or field of the encoder is unknown.
  """
  if 'grid' not in network.encoder or list(network.encoder['grid']) != [0, 0]:
    return network
  module = options.build_named_options(
    ENCODERS, network.encoder, f'{path}.encoder'
  )
  grid = tuple(n // module.size_multiple for n in size)
  return dataclasses.replace(network, encoder={**network.encoder, 'grid': grid})


def build_network(
  network: NetworkOptions, heads: Mapping[str, nn.Module], path: str
) -> segmenter.Segmenter:
  """Builds the network with given heads; with a decoder only if one reads it.

  Raises:
    UserError: a name or field is unknown, or a head reads a decoder that the
      options lack.
  """
  common = {'dtype': jnp.dtype(network.dtype), 'remat': network.remat}
  encoder = options.build_named_options(
    ENCODERS, network.encoder, f'{path}.encoder', **common
  )
  decoder = None
  if any(head.reads == 'decoder' for head in heads.values()):
    if network.decoder is None:
      raise errors.UserError(
        f'{path}.decoder: expected one of {", ".join(DECODERS)}, since a head '
        'reads it, got None'
      )
    decoder = options.build_named_options(
      DECODERS, network.decoder, f'{path}.decoder', **common
    )
  return segmenter.Segmenter(encoder, decoder, heads)


def check_network_image_size(
  network: segmenter.Segmenter, size: tuple[int, int], path: str
) -> None:
  """Checks that its parts fit and accept images of a size, by shapes only.

  Args:
    network: the network.
    size: height and width of the images.
    path: path of the field with the size, for messages.

  Raises:
    UserError: decoder or heads lack a map, or the network cannot process images
      of this size.
  """
  try:
    _trace(network, size)
  except (ArithmeticError, TypeError, ValueError) as error:
    _check_maps(network)
    reason = ' '.join(str(error).split())
    raise errors.UserError(
      f'{path} = {size} does not fit the network: {reason}'
    ) from error


def _trace(network: segmenter.Segmenter, size: tuple[int, int]) -> None:
  """Initializes the network for images of a size; follows shapes only."""
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  jax.eval_shape(network.init, jax.random.PRNGKey(0), images)


def _check_maps(network: segmenter.Segmenter) -> None:
  """Raises UserError if decoder or heads lack a map at images of any size."""
  # Of a side that fits, so that the size is no reason.
  side = math.lcm(network.size_multiple, _SIDE)
  try:
    _trace(network, (side, side))
  except features.MissingMapError as error:
    encoders = {module: name for name, module in ENCODERS.items()}
    encoder = encoders[type(network.encoder)]
    advice = f'; {error.advice}' if error.advice else ''
    raise errors.UserError(
      f'{error.reason} (encoder {encoder}){advice}'
    ) from error
  except (ArithmeticError, TypeError, ValueError):
    return  # The caller reports it.
