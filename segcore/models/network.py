"""From a config's block to a `Segmenter`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from runtime import errors, options
from segcore.models import segmenter
from segcore.models.decoders import deeplabv3plus, unet
from segcore.models.encoders import bit, hybrid_vit, resnet_gn
from segcore.models.encoders import resnet as resnet_lib

ENCODERS = {
  'resnet': resnet_gn.ResNet,
  'bit': bit.BiT,
  'dilated_resnet': resnet_lib.DilatedResNet,
  'hybrid_vit': hybrid_vit.HybridViT,
}
DECODERS = {
  'unet': unet.UNetDecoder,
  'deeplabv3plus': deeplabv3plus.DeepLabV3Plus,
}


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
  """A network, but for its heads.

  Attributes:
    encoder: name (see `ENCODERS`) and fields of the module; a grid of
      (0, 0) is that of the images of training (see `with_position_grid`).
    decoder: name (see `DECODERS`) and fields of the module; None
      where all heads read the encoder.
    dtype: of activations; parameters are float32 always.
    remat: recompute blocks in the backward pass, to save memory.
  """

  encoder: Mapping[str, Any]
  decoder: Mapping[str, Any] | None = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False


def with_position_grid(
  network: NetworkOptions, size: tuple[int, int], path: str
) -> NetworkOptions:
  """The network for training on images of this (height, width).

  Raises:
    UserError: a name or field of the encoder is unknown.
  """
  if 'grid' not in network.encoder or list(network.encoder['grid']) != [0, 0]:
    return network
  module = options.build_named(ENCODERS, network.encoder, f'{path}.encoder')
  grid = tuple(n // module.size_multiple for n in size)
  return dataclasses.replace(network, encoder={**network.encoder, 'grid': grid})


def build(
  network: NetworkOptions, heads: Mapping[str, nn.Module], path: str
) -> segmenter.Segmenter:
  """The network with these heads; without a decoder if none of them reads it.

  Raises:
    UserError: a name or field is unknown.
  """
  fixed = {'dtype': jnp.dtype(network.dtype), 'remat': network.remat}
  encoder = options.build_named(
    ENCODERS, network.encoder, f'{path}.encoder', **fixed
  )
  decoder = None
  if any(head.reads == 'decoder' for head in heads.values()):
    if network.decoder is None:
      raise errors.UserError(
        f'{path}.decoder: found None, expected one: a head reads it'
      )
    decoder = options.build_named(
      DECODERS, network.decoder, f'{path}.decoder', **fixed
    )
  return segmenter.Segmenter(encoder, decoder, heads)


def check_image_size(
  network: segmenter.Segmenter, size: tuple[int, int], path: str
) -> None:
  """Raises UserError unless images of this (height, width) fit the network.

  Nothing is computed: only shapes are followed.
  """
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  try:
    jax.eval_shape(network.init, jax.random.PRNGKey(0), images)
  except (ArithmeticError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise errors.UserError(
      f'{path} = {size}: the network does not take it: {reason}'
    ) from error
