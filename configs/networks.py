"""Networks of the experiments: those of the papers, and small ones."""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import options as options_lib
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
# Fields of the ResNets of He et al. 2016, by depth.
_RESNETS = {
  18: {'unit': 'basic', 'blocks': (2, 2, 2, 2)},
  34: {'unit': 'basic', 'blocks': (3, 4, 6, 3)},
  50: {'blocks': (3, 4, 6, 3)},
  101: {'blocks': (3, 4, 23, 3)},
}
# Those with the stem of torchvision, whose weights most files have.
_PLAIN_RESNET = {
  'name': 'dilated_resnet',
  'stem': 'plain',
  'output_stride': 32,
  'zero_init': False,
}


def _vits() -> dict[str, dict[str, Any]]:
  """Builds the vision transformers of DINO (8, 16) and DINOv2 (14)."""
  sizes = {'s': (384, 12), 'b': (768, 12), 'l': (1024, 24)}
  encoders = {}
  for name in ('s16', 'b16', 's8', 'b8', 's14', 'b14', 'l14'):
    hidden_size, num_layers = sizes[name[0]]
    patch_size = int(name[1:])
    side = {16: 14, 8: 28, 14: 37}[patch_size]  # of the images of pretraining
    encoder = {
      'name': 'vit',
      'patch_size': patch_size,
      'hidden_size': hidden_size,
      'num_layers': num_layers,
      'num_heads': hidden_size // 64,
      'mlp_dim': 4 * hidden_size,
      'grid': (side, side),
    }
    if patch_size == 14:
      encoder['layer_scale'] = True
      registers = {'num_registers': 4, 'position_rule': 'timm'}
      encoders[f'vit_{name}_reg'] = encoder | registers
    encoders[f'vit_{name}'] = encoder
  return encoders


def _mits() -> dict[str, dict[str, Any]]:
  """Builds the encoders of SegFormer, MiT-B0 to B5."""
  num_layers = ((2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3))
  num_layers += ((3, 4, 18, 3), (3, 8, 27, 3), (3, 6, 40, 3))
  return {
    f'mit_b{i}': {
      'name': 'mit',
      'hidden_sizes': (64, 128, 320, 512) if i else (32, 64, 160, 256),
      'num_layers': num_layers[i],
    }
    for i in range(len(num_layers))
  }


# Encoders of `named`, as public weights have them; with a deep stem, those of
# U2PL's authors.
ENCODERS = {
  'efficientnet': {'name': 'efficientnet'},
  **{
    f'efficientnet_lite{i}': {'name': 'efficientnet', 'variant': f'lite{i}'}
    for i in range(5)
  },
  **{f'resnet{n}': _PLAIN_RESNET | fields for n, fields in _RESNETS.items()},
  **{
    f'resnet{n}_deep': _PLAIN_RESNET | {'stem': 'deep', **fields}
    for n, fields in _RESNETS.items()
  },
  **_vits(),
  **_mits(),
}
# Decoders of `named`.
DECODERS = ('unet', 'deeplabv3plus', 'dpt', 'daformer', 'segformer')
# Blocks of an EfficientNet that are frozen with its stem: those to stride 8.
_FROZEN_BLOCKS = 5
# By hidden size of a ViT: the widths of its four maps in a `dpt` decoder, and
# that of the fusion.
_DPT_WIDTHS = {
  384: ((48, 96, 192, 384), 64),
  768: ((96, 192, 384, 768), 128),
  1024: ((256, 512, 1024, 1024), 256),
}
# Public weights of the encoders of `transunet` and `unet`, of ResNets with a
# deep stem and of that of GCT's authors, of ViTs and of MiTs.
WEIGHTS = {
  'transunet': 'weights/R50+ViT-B_16.npz',
  'unet': 'weights/BiT-M-R50x1.npz',
  'resnet101': 'weights/resnet101_deep.safetensors',
  'resnet50': 'weights/resnet50_deep.safetensors',
  'resnet101_coco': 'weights/resnet101_coco.pth',
  'vit_s14': 'weights/dinov2_vits14.pth',
  'vit_b14': 'weights/dinov2_vitb14.pth',
  **{name: f'weights/{name}.pth' for name in _mits()},
}
# Networks of UniMatch V2, with DPT.
PLAIN_VITS = ('vit_s14', 'vit_b14')


def encoder_weights(options: SimpleNamespace) -> str:
  """Returns the weights of an encoder; '' for random values.

  Args:
    options: parsed options `network`, `encoder`, `tiny` and, where there is
      one, `start`; encoder='auto' stands for the public weights of the network,
      and for random values with `tiny` or `start`.
  """
  if options.encoder != 'auto':
    return options.encoder
  has_other = options.tiny or getattr(options, 'start', '')
  return '' if has_other else WEIGHTS[options.network]


def named(
  network: str,
  *,
  width: int = 1,
  skips: str = 'all',
  frozen: bool = False,
  full_resolution: bool = False,
) -> ml_collections.ConfigDict:
  """Builds the network named ENCODER+DECODER, such as 'efficientnet+unet'.

  Decoders are light, and all but the small networks' end at a quarter of the
  resolution or near it. Whether the decoder fits the encoder is checked when
  the network is built: a U-Net and DeepLabv3+ do not fit a ViT, DPT fits
  nothing else, and the decoders of DAFormer and SegFormer fit all.

  Args:
    network: one of `ENCODERS` and one of `DECODERS`, joined by '+'; or
      'small+NAME', a network for a CPU without public weights, where NAME is
      one of `SMALL` or 'deeplabv3plus'.
    width: factor of the decoder's channels.
    skips: strides whose maps reach a U-Net; see `parse_skips`.
    frozen: whether public weights stay as they are: all of a ViT, stem and
      first blocks (to stride 8) of an EfficientNet. A ResNet, a MiT and the
      small networks train as a whole.
    full_resolution: whether the maps of a U-Net have the resolution of the
      image, as those of the small ones do, or a quarter of it.

  Raises:
    ValueError: a name is unknown, and the message has the nearest one; or the
      network has no U-Net, to which an option applies.
  """
  encoder_name, _, decoder_name = network.partition('+')
  small_decoders = (*SMALL, 'deeplabv3plus')
  is_small = encoder_name == 'small'
  for part, name, expected in (
    ('encoder', encoder_name, ('small', *ENCODERS)),
    ('decoder', decoder_name, small_decoders if is_small else DECODERS),
  ):
    if name not in expected:
      hint = options_lib.describe_unknown_value(name, [*expected], 'one')
      raise ValueError(
        f'config option network={network}: expected ENCODER+DECODER, as '
        f'efficientnet+unet; the {part} {name!r} {hint}'
      )
  # The decoders of the small networks but one are U-Nets.
  is_unet = decoder_name == 'unet' or (is_small and decoder_name in SMALL)
  if not is_unet and (skips != 'all' or full_resolution):
    raise ValueError(_describe_no_unet(network))
  if is_small:
    if decoder_name == 'deeplabv3plus':
      return small_deeplabv3plus(width)
    return small(decoder_name, width, skips)
  encoder = _public_encoder(encoder_name, decoder_name, frozen)
  decoder = _light_decoder(decoder_name, encoder, width, full_resolution)
  decoder |= _skips(skips)
  return shared.block(encoder=encoder, decoder=decoder)


def _public_encoder(name: str, decoder: str, frozen: bool) -> dict[str, Any]:
  """Builds an encoder of `named`."""
  encoder = {**ENCODERS[name]}
  if frozen and encoder['name'] == 'efficientnet':
    encoder['frozen_blocks'] = _FROZEN_BLOCKS
  if frozen and encoder['name'] == 'vit':
    encoder['frozen'] = True
  if decoder == 'deeplabv3plus':
    # At output stride 16.
    if encoder['name'] == 'mit':
      encoder['strides'] = (4, 2, 2, 1)
    elif encoder['name'] != 'vit':
      encoder['output_stride'] = 16
  return encoder


def _light_decoder(
  name: str, encoder: dict[str, Any], width: int, full_resolution: bool
) -> dict[str, Any]:
  """Builds a decoder of `named`."""
  if name == 'dpt':
    # Other encoders are refused when the network is built.
    widths, fusion = _DPT_WIDTHS[encoder.get('hidden_size', 384)]
    return {
      'name': 'dpt',
      'widths': tuple(width * n for n in widths),
      'fusion_width': width * fusion,
    }
  if name == 'deeplabv3plus':
    # Half of Chen et al.'s dilations at output stride 16, for smaller crops.
    return {'name': name, 'width': 64 * width, 'dilations': (3, 6, 9)}
  if name == 'daformer':
    return {'name': name, 'width': 64 * width}  # a quarter of the published
  if name == 'segformer':
    return {'name': name, 'width': 256 * width}
  widths = (64, 64, 64, 32, 16) if full_resolution else (64, 64, 64)
  decoder = {
    'name': name,
    'widths': widths,
    'width_multiplier': width,
    'num_groups': 8,
    'output_stride': 1 if full_resolution else 4,
  }
  if encoder['name'] == 'mit' and full_resolution:
    decoder['skips'] = (16, 8, 4)  # It has no map at stride 2.
  return decoder


def _describe_no_unet(network: str) -> str:
  """Describes that options apply to a U-Net alone."""
  return (
    'config options skips and full_resolution: expected network='
    f'{network.partition("+")[0]}+unet, as they change a U-Net alone, got '
    f'{network}'
  )


def parse_skips(text: str, option: str = 'skips') -> bool | tuple[int, ...]:
  """Parses which maps of the encoder reach a U-Net, apart from the deepest.

  >>> parse_skips('16-8'), parse_skips('none')
  ((16, 8), False)

  Args:
    text: 'all', 'none', 'coarse' for strides of 8 and more, or strides joined
      by '-'.
    option: name of the config option with the text, for the message.

  Raises:
    ValueError: the text has another form, or a stride is not 2, 4, 8 or 16.
  """
  words = {'all': True, 'none': False, 'coarse': (16, 8)}
  if text in words:
    return words[text]
  strides = text.split('-')
  if not {*strides} <= {'2', '4', '8', '16'}:
    raise ValueError(
      f'config option {option}={text}: expected all, none, coarse, or some of '
      'the strides 16, 8, 4 and 2 joined by -, as 16-8'
    )
  return tuple(map(int, strides))


def _skips(text: str) -> dict[str, Any]:
  """Builds the field of a U-Net that `parse_skips` reads; nothing for all."""
  return {} if text == 'all' else {'skips': parse_skips(text)}


def small(
  name: str, width: int = 1, skips: str = 'all'
) -> ml_collections.ConfigDict:
  """Builds a network for a CPU, with a U-Net decoder.

  Args:
    name: one of `SMALL`.
    width: factor of the decoder's channels.
    skips: strides whose maps reach the decoder; see `parse_skips`.
  """
  encoder, decoder = SMALL[name]
  return shared.block(
    encoder=encoder,
    decoder={
      'name': 'unet',
      'width_multiplier': width,
      **decoder,
      **_skips(skips),
    },
  )


def unet(
  name: str, skips: str = 'all', **decoder: Any
) -> ml_collections.ConfigDict:
  """Builds the networks of DDeP: U-Net decoders on public encoders.

  Args:
    name: 'transunet' for a hybrid ViT, 'unet' for BiT-M R50x1.
    skips: strides whose maps reach the decoder; see `parse_skips`.
    **decoder: fields of the decoder that differ from its defaults.
  """
  # A grid of (0, 0) is that of the training images of each stage.
  hybrid_vit = {'name': 'hybrid_vit', 'grid': (0, 0)}
  return shared.block(
    encoder={'transunet': hybrid_vit, 'unet': {'name': 'bit'}}[name],
    decoder={'name': 'unet', **decoder, **_skips(skips)},
    dtype='bfloat16',
  )


def deeplabv3plus(name: str) -> ml_collections.ConfigDict:
  """Builds the networks of U2PL: DeepLabv3+ on a ResNet with a deep stem.

  Args:
    name: 'resnet101' or 'resnet50'; or 'resnet101_coco', with a plain stem.
  """
  fields = {
    'resnet101': _RESNETS[101],
    'resnet50': _RESNETS[50],
    'resnet101_coco': _RESNETS[101] | {'stem': 'plain'},
  }
  return shared.block(
    encoder={'name': 'dilated_resnet', **fields[name]},
    decoder={'name': 'deeplabv3plus'},
    dtype='bfloat16',
  )


def light_deeplabv3plus(name: str) -> ml_collections.ConfigDict:
  """Builds the DeepLabv3+ of UniMatch, of output stride 16, without dropout.

  Args:
    name: as in `deeplabv3plus`.
  """
  config = deeplabv3plus(name)
  config.encoder.output_stride = 16
  config.decoder.update(
    dilations=(6, 12, 18), low_width=48, fuse_kernel=1, dropout_rate=0.0
  )
  return config


def wide_deeplabv3plus(name: str) -> ml_collections.ConfigDict:
  """Builds the DeepLabv3+ of mmsegmentation, of output stride 8.

  Its last block has the dilation 4 throughout.

  Args:
    name: a ResNet of `ENCODERS`.
  """
  encoder = {**ENCODERS[name], 'output_stride': 8}
  encoder['multi_grid'] = (1,) * encoder['blocks'][-1]
  return shared.block(
    encoder=encoder,
    decoder={
      'name': 'deeplabv3plus',
      'width': 512,
      'low_width': 48,
      'separable': True,
      'align_corners': False,
      'dropout_rate': 0.0,  # The head has dropout.
      'num_refinements': 2,
    },
    dtype='bfloat16',
  )


def psp(name: str) -> ml_collections.ConfigDict:
  """Builds the network of CCT: pyramid pooling at output stride 8.

  Args:
    name: as in `deeplabv3plus`.
  """
  config = deeplabv3plus(name)
  config.decoder = {'name': 'psp'}
  # Without the multi-grid of DeepLab.
  config.encoder.multi_grid = (1, 1, 1)
  return config


def small_vit_dpt() -> ml_collections.ConfigDict:
  """Builds a plain ViT with patches of 14 pixels and DPT for a CPU."""
  encoder = {
    'name': 'vit',
    'patch_size': 14,
    'hidden_size': 32,
    'num_layers': 4,
    'num_heads': 2,
    'mlp_dim': 64,
    'grid': (5, 5),
    'depths': (0, 1, 2, 3),
  }
  return shared.block(
    encoder=encoder,
    decoder={'name': 'dpt', 'widths': (8, 16, 16, 16), 'fusion_width': 16},
  )


def small_deeplabv3plus(width: int = 1) -> ml_collections.ConfigDict:
  """Builds a DeepLabv3+ for a CPU.

  Args:
    width: factor of the decoder's channels.
  """
  return shared.block(
    encoder={'name': 'dilated_resnet', 'blocks': (1, 1, 1, 3), 'width': 8},
    decoder={
      'name': 'deeplabv3plus',
      'width': 16 * width,
      'dilations': (1, 2, 3),
    },
  )


def resnet(depth: int) -> ml_collections.ConfigDict:
  """Builds the encoders of PASS: ResNet-18 or -50, stride 32, no decoder."""
  return shared.block(encoder=_PLAIN_RESNET | _RESNETS[depth], dtype='bfloat16')


def small_pass() -> ml_collections.ConfigDict:
  """Builds the encoder of PASS for a CPU; no decoder."""
  encoder, _ = SMALL['pass']
  return shared.block(encoder=encoder)
