"""DDeP's networks in plain numpy, as a reference for tests.

Transcribed from the specification (cited as §) and from nothing else. float64
throughout, NHWC, kernels HWIO. Weights are a
flat dict with the keys and shapes of the public npz checkpoints, so that one
fake checkpoint serves this module and the tested code. Dropout is off.

Feature maps are named by their stride: skip2, skip4, skip8, feat16, feat32;
`tokens` is the ViT's map at stride 16.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from tests.transcriptions import ddep_layers


def module_names(numbering):
  """Returns the names of attention, second norm and MLP in a block."""
  return {
    'old': ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3'),
    'new': ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'),
  }[numbering]


def _without_prefix(weights, prefix):
  """Returns float64 copies of the arrays under a prefix, without heads."""
  return {
    key.removeprefix(prefix): np.asarray(value, np.float64)
    for key, value in weights.items()
    if key.startswith(prefix)
    and not {'head', 'pre_logits'} & set(key.split('/'))
  }


def _units(weights, stage, folder, digits):
  """Counts the units of a stage in a file; 0 if there is no such stage."""
  at = f'{folder}block{stage}/'
  names = {
    key.removeprefix(at).split('/')[0] for key in weights if key.startswith(at)
  }
  count = len(names)
  assert names == {f'unit{u:0{digits}d}' for u in range(1, count + 1)}, names
  return count


_MAPS = ('skip4', 'skip8', 'feat16', 'feat32')  # of stages 1, 2, 3, 4


def stem(
  image: np.ndarray,
  checkpoint: ddep_layers.Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  eps: float = 1e-6,
  standardize_eps: float = 1e-5,
) -> dict[str, np.ndarray]:
  """Computes the post-activation ResNet, with the stages of the file (§1.1).

  Args:
    image: (B, H, W, 3) in [-1, 1], any H and W.
    checkpoint: see `hybrid_vit_checkpoint`.
    prefix: of its keys.
    groups: of every GroupNorm; 32 in the public files.
    eps: of every GroupNorm.
    standardize_eps: added to the std of the kernels.

  Returns:
    skip2 (after root, norm and ReLU, before the pool), skip4, skip8, feat16
    and, with a fourth stage, feat32.
  """
  weights = _without_prefix(checkpoint, prefix)

  def conv(x, key, stride=1):
    kernel = ddep_layers.standardize(weights[f'{key}/kernel'], standardize_eps)
    return ddep_layers.conv2d(x, kernel, stride=stride)

  def norm(x, key):
    scale, bias = weights[f'{key}/scale'], weights[f'{key}/bias']
    return ddep_layers.group_norm(x, scale, bias, groups, eps)

  x = conv(np.asarray(image, np.float64), 'conv_root', stride=2)
  x = ddep_layers.relu(norm(x, 'gn_root'))
  maps = {'skip2': x}
  x = ddep_layers.max_pool(x)
  for stage, name in enumerate(_MAPS, 1):
    units = _units(weights, stage, '', 1)
    for unit in range(1, units + 1):
      at = f'block{stage}/unit{unit}'
      stride = 2 if stage > 1 and unit == 1 else 1
      shortcut = x
      if f'{at}/conv_proj/kernel' in weights:
        shortcut = norm(conv(x, f'{at}/conv_proj', stride), f'{at}/gn_proj')
      h = ddep_layers.relu(norm(conv(x, f'{at}/conv1'), f'{at}/gn1'))
      h = ddep_layers.relu(norm(conv(h, f'{at}/conv2', stride), f'{at}/gn2'))
      h = norm(conv(h, f'{at}/conv3'), f'{at}/gn3')
      x = ddep_layers.relu(shortcut + h)
    if units:
      maps[name] = x
  return maps


def _encoder_blocks(weights):
  """Returns the weights of each ViT block, renamed to the old numbering."""
  at = 'Transformer/encoderblock'
  numbering = 'old' if any('/MlpBlock_3/' in key for key in weights) else 'new'
  names = dict(zip(module_names(numbering), module_names('old'), strict=True))
  flat = {}
  for key, value in weights.items():
    if not key.startswith(at):
      continue
    folder, module, rest = key.removeprefix('Transformer/').split('/', 2)
    index = folder.removeprefix('encoderblock').removeprefix('_')
    values = {int(index): value} if index else dict(enumerate(value))
    for layer, part in values.items():
      name = f'{names.get(module, module)}/{rest}'
      flat.setdefault(layer, {})[name] = part
  return [flat[layer] for layer in range(len(flat))]


def _under(weights, folder):
  return {
    key.removeprefix(folder): value
    for key, value in weights.items()
    if key.startswith(folder)
  }


def _transformer(x, weights, layer_norm_eps, gelu):
  """Applies the encoder blocks and the last norm to tokens (B, T, D)."""
  for block in _encoder_blocks(weights):

    def norm(x, name, block=block):
      scale, bias = block[f'{name}/scale'], block[f'{name}/bias']
      return ddep_layers.layer_norm(x, scale, bias, layer_norm_eps)

    def dense(x, name, block=block):
      return x @ block[f'{name}/kernel'] + block[f'{name}/bias']

    x = x + ddep_layers.attention(
      norm(x, 'LayerNorm_0'), _under(block, 'MultiHeadDotProductAttention_1/')
    )
    h = gelu(dense(norm(x, 'LayerNorm_2'), 'MlpBlock_3/Dense_0'))
    x = x + dense(h, 'MlpBlock_3/Dense_1')

  return ddep_layers.layer_norm(
    x,
    weights['Transformer/encoder_norm/scale'],
    weights['Transformer/encoder_norm/bias'],
    layer_norm_eps,
  )


def hybrid_encoder(
  image: np.ndarray,
  checkpoint: ddep_layers.Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  group_norm_eps: float = 1e-6,
  standardize_eps: float = 1e-5,
  layer_norm_eps: float = 1e-6,
  gelu=ddep_layers.gelu_tanh,
  use_cls_token: bool = True,
) -> dict[str, np.ndarray]:
  """Computes stem and ViT of `R50+ViT-B_16`, without dropout (§1.1 to §1.3).

  Args:
    image: (B, H, W, 3) in [-1, 1], any H and W; the position table is resized
      to the grid of the stem's last map.
    checkpoint: any variant of `hybrid_vit_checkpoint`.
    prefix: of its keys.
    groups: of every GroupNorm; 32 in the public files.
    group_norm_eps: of the stem.
    standardize_eps: of the stem's kernels, added to the std.
    layer_norm_eps: of the ViT.
    gelu: of the ViT.
    use_cls_token: whether there is a class token, and its position.

  Returns:
    skip2, skip4, skip8, feat16 (feat32 with four stages), and tokens: a map
    of the normalized tokens without the class token.
  """
  weights = _without_prefix(checkpoint, prefix)
  maps = stem(
    image,
    weights,
    groups=groups,
    eps=group_norm_eps,
    standardize_eps=standardize_eps,
  )
  x = ddep_layers.conv2d(
    list(maps.values())[-1],
    weights['embedding/kernel'],
    weights['embedding/bias'],
  )
  batch, height, width, hidden = x.shape
  x = x.reshape(batch, height * width, hidden)
  positions = weights.get('pos_embedding')
  if positions is None:
    positions = weights['Transformer/posembed_input/pos_embedding']
  positions = ddep_layers.resize_positions(positions, (height, width))
  if use_cls_token:
    first = np.broadcast_to(weights['cls'], (batch, 1, hidden))
    x = np.concatenate([first, x], 1)
  else:
    positions = positions[:, 1:]
  x = _transformer(x + positions, weights, layer_norm_eps, gelu)
  x = x[:, int(use_cls_token) :]
  return {**maps, 'tokens': x.reshape(batch, height, width, hidden)}


def bit_encoder(
  image: np.ndarray,
  checkpoint: ddep_layers.Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  eps: float = 1e-5,
  standardize_eps: float = 1e-10,
  pool_value: float = 0.0,
  final_norm: bool = True,
  skip_norms: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
  """Computes BiT's pre-activation ResNet, padded symmetrically (§2a, §3.2).

  Args:
    image: (B, H, W, 3) in [-1, 1].
    checkpoint: see `bit_checkpoint`.
    prefix: of its keys.
    groups: of every GroupNorm; 32 in the public file.
    eps: of every GroupNorm.
    standardize_eps: added to the variance of the kernels.
    pool_value: padding of the pool: 0, or -inf as in big_vision.
    final_norm: whether feat32 is normalized and rectified.
    skip_norms: scale and bias of a GroupNorm, by the name of a skip.

  Returns:
    skip2 (the root convolution alone), skip4, skip8, feat16 (outputs of the
    stages, without norm and ReLU) and feat32.
  """
  weights = _without_prefix(checkpoint, prefix)

  def conv(x, key, stride=1):
    kernel = weights[f'{key}/standardized_conv2d/kernel']
    kernel = ddep_layers.standardize(kernel, standardize_eps, 'var')
    padding = (kernel.shape[0] - 1) // 2
    return ddep_layers.conv2d(x, kernel, stride=stride, padding=padding)

  def norm_relu(x, key):
    gamma = weights[f'{key}/group_norm/gamma']
    beta = weights[f'{key}/group_norm/beta']
    return ddep_layers.relu(ddep_layers.group_norm(x, gamma, beta, groups, eps))

  x = conv(np.asarray(image, np.float64), 'resnet/root_block', stride=2)
  maps = {'skip2': x}
  x = ddep_layers.max_pool(x, padding=1, value=pool_value)
  for stage, name in enumerate(_MAPS, 1):
    for unit in range(1, _units(weights, stage, 'resnet/', 2) + 1):
      at = f'resnet/block{stage}/unit{unit:02d}'
      stride = 2 if stage > 1 and unit == 1 else 1
      h = norm_relu(x, f'{at}/a')
      shortcut = conv(h, f'{at}/a/proj', stride) if unit == 1 else x
      h = norm_relu(conv(h, f'{at}/a'), f'{at}/b')
      h = norm_relu(conv(h, f'{at}/b', stride), f'{at}/c')
      x = shortcut + conv(h, f'{at}/c')
    maps[name] = x
  if final_norm:
    maps['feat32'] = norm_relu(x, 'resnet')
  for name, (scale, bias) in (skip_norms or {}).items():
    maps[name] = ddep_layers.group_norm(maps[name], scale, bias, groups, eps)
  return maps


WIDTHS = (1024, 512, 256, 128, 64)


class Block(NamedTuple):
  """A row of the table in §1.4: upsampling, then the skip to concatenate."""

  upsample: bool
  skip: str | None
  convs: int = 2


LAYOUTS = {
  'A': (
    Block(False, None),
    Block(True, 'skip8'),
    Block(True, 'skip4'),
    Block(True, 'skip2'),
    Block(True, None),
  ),
  'A1': (
    Block(False, None, convs=1),
    Block(True, 'skip8'),
    Block(True, 'skip4'),
    Block(True, 'skip2'),
    Block(True, None),
  ),
  'A2': (
    Block(False, 'feat16'),
    Block(True, 'skip8'),
    Block(True, 'skip4'),
    Block(True, 'skip2'),
    Block(True, None),
  ),
  'B': (
    Block(True, 'skip8'),
    Block(True, 'skip4'),
    Block(True, 'skip2'),
    Block(True, None),
    Block(False, None),
  ),
  'unet': (
    Block(True, 'feat16'),
    Block(True, 'skip8'),
    Block(True, 'skip4'),
    Block(True, 'skip2'),
    Block(True, None),
  ),
}

HYBRID_CHANNELS = {
  'skip2': 64,
  'skip4': 256,
  'skip8': 512,
  'feat16': 1024,
  'tokens': 768,
}
RESNET_CHANNELS = {
  'skip2': 64,
  'skip4': 256,
  'skip8': 512,
  'feat16': 1024,
  'feat32': 2048,
}


def source_map(layout):
  """Returns name and stride of the map that the first block reads."""
  return ('feat32', 32) if layout == 'unet' else ('tokens', 16)


def decoder_blocks(
  maps: Mapping[str, np.ndarray],
  weights: ddep_layers.Weights,
  *,
  layout: str = 'A',
  groups: int = 32,
  eps: float = 1e-6,
  aligned: bool = False,
  level: np.ndarray | None = None,
) -> list[np.ndarray]:
  """Computes the maps of the five blocks (§1.4).

  A block upsamples by 2, concatenates [x, skip], and applies twice a
  convolution, a norm and a ReLU; LAYOUTS has the exceptions.

  Args:
    maps: of an encoder, by name.
    weights: 'block{i}/conv{j}/kernel' (HWIO), 'block{i}/norm{j}/scale|bias',
      j = 1, 2; the blocks are counted from 0.
    layout: key of LAYOUTS.
    groups: of every GroupNorm.
    eps: of every GroupNorm.
    aligned: whether upsampling aligns corners, as TransUNet's.
    level: (B, E) embedding of the noise level; each norm's output becomes
      (1 + s) norm + b with [s, b] = level @ kernel + bias of
      'block{i}/film{j}'.
  """
  weights = {k: np.asarray(v, np.float64) for k, v in weights.items()}
  x = np.asarray(maps[source_map(layout)[0]], np.float64)
  blocks = []
  for index, block in enumerate(LAYOUTS[layout]):
    if block.upsample:
      x = ddep_layers.resize(x, (2 * x.shape[1], 2 * x.shape[2]), aligned)
    if block.skip:
      x = np.concatenate([x, maps[block.skip]], -1)
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      x = ddep_layers.conv2d(x, weights[f'{at}/conv{conv}/kernel'])
      x = ddep_layers.group_norm(
        x,
        weights[f'{at}/norm{conv}/scale'],
        weights[f'{at}/norm{conv}/bias'],
        groups,
        eps,
      )
      if level is not None:
        film = level @ weights[f'{at}/film{conv}/kernel']
        film = film + weights[f'{at}/film{conv}/bias']
        scale, shift = np.split(film[:, None, None, :], 2, -1)
        x = (1 + scale) * x + shift
      x = ddep_layers.relu(x)
    blocks.append(x)
  return blocks


def decoder(
  maps: Mapping[str, np.ndarray], weights: ddep_layers.Weights, **options
) -> np.ndarray:
  """Computes the logits (B, H, W, C): all blocks, then the head's 3x3.

  Arguments are those of `decoder_blocks`; weights include 'head/kernel|bias'.
  """
  x = decoder_blocks(maps, weights, **options)[-1]
  kernel, bias = weights['head/kernel'], weights['head/bias']
  return ddep_layers.conv2d(
    x, kernel.astype(np.float64), bias.astype(np.float64)
  )


def sinusoidal(
  level: np.ndarray, features: int, max_period: float = 1e4
) -> np.ndarray:
  """Computes sines, then cosines, of level · max_period^(-k/n) (§4.3).

  The specification has "sinusoidal" alone: n = features / 2, and frequencies
  are those of the Transformer's positions. Returns (B, features).
  """
  half = features // 2
  frequencies = max_period ** (-np.arange(half) / half)
  angles = np.asarray(level, np.float64)[:, None] * frequencies
  return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def silu(x: np.ndarray) -> np.ndarray:
  """Computes x sigmoid(x) of each element."""
  return x * special.expit(x)


def embed_level(
  level: np.ndarray, weights: ddep_layers.Weights, activation=silu, **options
) -> np.ndarray:
  """Embeds noise levels: sinusoids and a two-layer MLP (§4.3).

  Args:
    level: (B,), gamma or time step.
    weights: 'level/dense{1,2}/kernel|bias'; the first kernel has as many
      inputs as there are sinusoids.
    activation: between the layers; the specification names none.
    **options: of `sinusoidal`.
  """
  features = weights['level/dense1/kernel'].shape[0]
  x = sinusoidal(level, features, **options)
  x = x @ weights['level/dense1/kernel'] + weights['level/dense1/bias']
  x = activation(x)
  return x @ weights['level/dense2/kernel'] + weights['level/dense2/bias']
