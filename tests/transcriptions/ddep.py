"""DDeP's networks and noise in plain numpy, to hold the real ones against.

Transcribed from the specification (cited as §) and
from nothing else. float64 throughout, NHWC, kernels HWIO. Weights come in a
flat dict with the keys and the shapes of the public npz checkpoints, so that
one fake checkpoint feeds this file and the implementation under test. Nothing
is random in a forward pass: dropout is off.

| function | what it gives | § |
|---|---|---|
| `hybrid_vit_checkpoint(rng, …)` | fake `R50+ViT-B_16.npz`, any width | 3.1 |
| `bit_checkpoint(rng, …)` | fake `BiT-M-R50x1.npz`, any width | 3.2 |
| `decoder_weights(rng, …)` | fake decoder and head | 1.4 |
| `count_parameters(weights, …)` | number of values in such a dict | 1.5 |
| `same_padding(n, kernel, stride)` | TF's (low, high) | 1.1 |
| `conv2d`, `max_pool` | convolution and pooling, any padding | 1.1 |
| `standardize(kernel, eps, eps_on)` | weight standardization | 1.1 |
| `group_norm`, `layer_norm` | normalisations | 1.1, 1.3 |
| `gelu_tanh`, `gelu_erf` | Flax's default GELU, and timm's | 1.3 |
| `attention(x, …)` | multi-head self-attention | 1.3 |
| `resize(images, size, aligned)` | bilinear, without antialiasing | 1.3, 1.4 |
| `resize_positions(table, grid, …)` | position table for another grid | 1.3 |
| `stem(image, checkpoint, …)` | post-activation ResNet, 3 or 4 stages | 1.1 |
| `hybrid_encoder(image, checkpoint)` | stem and ViT: skips and tokens | 1.2 |
| `bit_encoder(image, checkpoint)` | pre-activation ResNet and its skips | 2 |
| `decoder_blocks`, `decoder` | maps of the five blocks; logits | 1.4, 2 |
| `sinusoidal`, `embed_level` | conditioning on the noise level | 4.3 |
| `gamma_of`, `sigma_of` | gamma = 1/(1 + sigma²) and back | 4.1 |
| `simple_noise`, `scaled_noise` | the noisy image | 4.1 |
| `noise_target(kind, …)` | eps, x or scaled eps | 4.2 |
| `denoising_loss(found, target)` | mean squared error | 4.2 |
| `clipped_uniform(u, low, high)` | gamma ~ U(low, high), at most 1 | 4.3 |
| `gamma_schedule(kind, …)` | gamma of every time step | 4.3 |
| `stem_layers`, `vit_layers`, `decoder_layers` | the counted lists | 1.5 |
| `gflops(layers)`, `parameters(layers)` | sums over such a list | 1.5 |
| `frozen_gflops(size, …)` | one pretraining step of an image | 1.5 |

Feature maps are named by their stride: skip2, skip4, skip8, feat16, feat32;
`tokens` is the ViT's map at 1/16.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

Weights = Mapping[str, np.ndarray]

# ----------------------------------------------------------------------------
# Fake checkpoints.


def _log_uniform(rng, low, high, count):
  return np.exp(rng.uniform(np.log(low), np.log(high), count))


class _Maker:
  """Fills a flat dict; `spread` 0 gives untouched zeros, which cost nothing."""

  def __init__(self, rng, prefix, spread):
    self.rng = rng
    self.prefix = prefix
    self.spread = spread
    self.weights = {}

  def add(self, key, shape, std, mean=0.0):
    if self.spread:
      value = self.rng.standard_normal(shape, np.float32)
      value = (value * std * self.spread + mean).astype(np.float32)
    else:
      value = np.zeros(shape, np.float32)
    self.weights[self.prefix + key] = value

  def standardized(self, key, shape):
    """A raw kernel whose channels differ in scale and are off zero.

    Channels of equal scale would hide a wrong epsilon: the GroupNorm after the
    convolution would divide it out.
    """
    if not self.spread:
      return self.add(key, shape, 0.0)
    std = _log_uniform(self.rng, 1e-3, 1e-1, shape[-1])
    self.add(key, shape, std, std * self.rng.normal(size=shape[-1]))

  def kernel(self, key, shape, fan_in, bias_shape=None):
    self.add(f'{key}/kernel', shape, fan_in**-0.5)
    if bias_shape is not None:
      self.add(f'{key}/bias', bias_shape, 0.1)

  def norm(self, key, shape, scale='scale', bias='bias'):
    self.add(f'{key}/{scale}', shape, 0.2, 1.0)
    self.add(f'{key}/{bias}', shape, 0.2)


def hybrid_vit_checkpoint(
  rng: np.random.Generator,
  *,
  root: int = 64,
  mids: Sequence[int] = (64, 128, 256),
  blocks: Sequence[int] = (3, 4, 9),
  hidden: int = 768,
  heads: int = 12,
  mlp: int = 3072,
  layers: int = 12,
  grid: int = 14,
  classes: int | None = 21843,
  pre_logits: bool = True,
  numbering: str = 'old',
  group_norm_rank: int = 4,
  prefix: str = '',
  positions_at: str = 'posembed_input',
  stacked: bool = False,
  spread: float = 1.0,
) -> dict[str, np.ndarray]:
  """A float32 dict with the keys of `R50+ViT-B_16.npz` (§3.1).

  Four `mids` and `blocks` give the stem of the AugReg R50 hybrids (§2b).

  Args:
    rng: source of the values.
    root: channels after the root convolution.
    mids: mid width of each stage; a stage puts out four times as many.
    blocks: units of each stage.
    hidden: width of the ViT.
    heads: attention heads; they must divide `hidden`.
    mlp: width inside the MLP.
    layers: ViT blocks.
    grid: side of the stored position grid (14 for 224 pixels).
    classes: outputs of `head`, which is all zero; None leaves it out.
    pre_logits: whether the file has that layer (fine-tuned ones do not).
    numbering: 'old' counts modules in one row (LayerNorm_0,
      MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3), 'new' by class
      (LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0).
    group_norm_rank: 4 for vectors of shape (1, 1, 1, C), 1 for (C,).
    prefix: put before every key, such as 'params/' or 'opt/target/'.
    positions_at: 'posembed_input' or 'top' (big_vision).
    stacked: one `encoderblock` with a leading layer axis (big_vision).
    spread: factor of every standard deviation; 0 gives zeros, at no cost.
  """
  make = _Maker(rng, prefix, spread)
  attention_name, norm_name, mlp_name = _module_names(numbering)

  def norm(key, channels):
    make.norm(key, (1,) * (group_norm_rank - 1) + (channels,))

  make.standardized('conv_root/kernel', (7, 7, 3, root))
  norm('gn_root', root)
  width = root
  for stage, (mid, units) in enumerate(zip(mids, blocks, strict=True), 1):
    for unit in range(1, units + 1):
      at = f'block{stage}/unit{unit}'
      make.standardized(f'{at}/conv1/kernel', (1, 1, width, mid))
      make.standardized(f'{at}/conv2/kernel', (3, 3, mid, mid))
      make.standardized(f'{at}/conv3/kernel', (1, 1, mid, 4 * mid))
      norm(f'{at}/gn1', mid)
      norm(f'{at}/gn2', mid)
      norm(f'{at}/gn3', 4 * mid)
      if unit == 1 and (stage > 1 or width != 4 * mid):
        make.standardized(f'{at}/conv_proj/kernel', (1, 1, width, 4 * mid))
        norm(f'{at}/gn_proj', 4 * mid)
      width = 4 * mid

  size = hidden // heads
  make.kernel('embedding', (1, 1, width, hidden), width, (hidden,))
  make.add('cls', (1, 1, hidden), 0.5)
  make.add(
    {
      'posembed_input': 'Transformer/posembed_input/pos_embedding',
      'top': 'pos_embedding',
    }[positions_at],
    (1, grid * grid + 1, hidden),
    0.5,
  )
  lead = (layers,) if stacked else ()
  for layer in [None] if stacked else range(layers):
    at = 'Transformer/encoderblock' + ('' if stacked else f'_{layer}')
    make.norm(f'{at}/LayerNorm_0', (*lead, hidden))
    for name in ('query', 'key', 'value'):
      make.kernel(
        f'{at}/{attention_name}/{name}',
        (*lead, hidden, heads, size),
        hidden,
        (*lead, heads, size),
      )
    make.kernel(
      f'{at}/{attention_name}/out',
      (*lead, heads, size, hidden),
      hidden,
      (*lead, hidden),
    )
    make.norm(f'{at}/{norm_name}', (*lead, hidden))
    make.kernel(
      f'{at}/{mlp_name}/Dense_0', (*lead, hidden, mlp), hidden, (*lead, mlp)
    )
    make.kernel(
      f'{at}/{mlp_name}/Dense_1', (*lead, mlp, hidden), mlp, (*lead, hidden)
    )
  make.norm('Transformer/encoder_norm', (hidden,))
  if pre_logits:
    make.kernel('pre_logits', (hidden, hidden), hidden, (hidden,))
  if classes is not None:
    make.weights[f'{prefix}head/kernel'] = np.zeros(
      (hidden, classes), np.float32
    )
    make.weights[f'{prefix}head/bias'] = np.zeros((classes,), np.float32)
  return make.weights


def bit_checkpoint(
  rng: np.random.Generator,
  *,
  root: int = 64,
  mids: Sequence[int] = (64, 128, 256, 512),
  blocks: Sequence[int] = (3, 4, 6, 3),
  classes: int | None = 21843,
  prefix: str = '',
  spread: float = 1.0,
) -> dict[str, np.ndarray]:
  """A float32 dict with the keys of `BiT-M-R50x1.npz` (§3.2).

  Arguments as in `hybrid_vit_checkpoint`.
  """
  make = _Maker(rng, prefix, spread)

  def conv(key, *shape):
    make.standardized(f'{key}/standardized_conv2d/kernel', shape)

  def norm(key, channels):
    make.norm(f'{key}/group_norm', (channels,), 'gamma', 'beta')

  conv('resnet/root_block', 7, 7, 3, root)
  width = root
  for stage, (mid, units) in enumerate(zip(mids, blocks, strict=True), 1):
    for unit in range(1, units + 1):
      at = f'resnet/block{stage}/unit{unit:02d}'
      norm(f'{at}/a', width)
      conv(f'{at}/a', 1, 1, width, mid)
      norm(f'{at}/b', mid)
      conv(f'{at}/b', 3, 3, mid, mid)
      norm(f'{at}/c', mid)
      conv(f'{at}/c', 1, 1, mid, 4 * mid)
      if unit == 1:
        conv(f'{at}/a/proj', 1, 1, width, 4 * mid)
      width = 4 * mid
  norm('resnet', width)
  if classes is not None:
    make.kernel('resnet/head/conv2d', (1, 1, width, classes), width, (classes,))
  return make.weights


def count_parameters(
  weights: Weights, exclude: Iterable[str] = ('head', 'pre_logits')
) -> int:
  """Number of values, those under a folder named in `exclude` left out."""
  exclude = set(exclude)
  return sum(
    int(np.prod(value.shape, dtype=np.int64))
    for key, value in weights.items()
    if not exclude & set(key.split('/'))
  )


def _module_names(numbering):
  """Names of attention, second norm and MLP within an encoder block."""
  return {
    'old': ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3'),
    'new': ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'),
  }[numbering]


def _without_prefix(weights, prefix):
  """float64 copies of what is under the prefix, heads left out."""
  return {
    key.removeprefix(prefix): np.asarray(value, np.float64)
    for key, value in weights.items()
    if key.startswith(prefix)
    and not {'head', 'pre_logits'} & set(key.split('/'))
  }


# ----------------------------------------------------------------------------
# Layers.


def same_padding(n: int, kernel: int, stride: int) -> tuple[int, int]:
  """TF's 'SAME': (low, high) along an axis of n; the odd one is high."""
  total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
  return total // 2, total - total // 2


def _padded(x, kernel, stride, padding, value):
  """Pads H and W: 'same' is TF's, an int is put on every side."""
  if padding == 'same':
    rows = same_padding(x.shape[1], kernel[0], stride)
    columns = same_padding(x.shape[2], kernel[1], stride)
  else:
    rows = columns = (padding, padding)
  return np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=value)


def conv2d(
  x: np.ndarray,
  kernel: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  stride: int = 1,
  padding: str | int = 'same',
) -> np.ndarray:
  """(B, H, W, I) by (h, w, I, O): cross-correlation, by im2col and matmul."""
  height, width, inputs, outputs = kernel.shape
  x = _padded(x, (height, width), stride, padding, 0.0)
  windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
  windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
  flat = kernel.reshape(height * width * inputs, outputs)
  found = np.stack(
    [image.reshape(-1, flat.shape[0]) @ flat for image in windows]
  ).reshape(*windows.shape[:3], outputs)
  return found if bias is None else found + bias


def max_pool(
  x: np.ndarray,
  size: int = 3,
  stride: int = 2,
  *,
  padding: str | int = 'same',
  value: float = -np.inf,
) -> np.ndarray:
  """Largest value of each window; the border is filled with `value`."""
  x = _padded(x, (size, size), stride, padding, value)
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return windows[:, ::stride, ::stride].max((-2, -1))


def standardize(
  kernel: np.ndarray, eps: float = 1e-5, eps_on: str = 'std'
) -> np.ndarray:
  """Each output channel less its mean over (H, W, I), by its biased std.

  Args:
    kernel: (H, W, I, O).
    eps: 1e-5 on the std (ViT, §1.1), 1e-10 on the variance (BiT, §3.2).
    eps_on: 'std' divides by std + eps, 'var' by sqrt(var + eps).
  """
  mean = kernel.mean((0, 1, 2))
  var = ((kernel - mean) ** 2).mean((0, 1, 2))
  divisor = {
    'std': lambda: np.sqrt(var) + eps,
    'var': lambda: np.sqrt(var + eps),
  }[eps_on]()
  return (kernel - mean) / divisor


def group_norm(
  x: np.ndarray,
  scale: np.ndarray,
  bias: np.ndarray,
  groups: int = 32,
  eps: float = 1e-6,
) -> np.ndarray:
  """Over H, W and the neighboring channels of a group; vectors of any rank."""
  batch, height, width, channels = x.shape
  if channels % groups:
    raise ValueError(f'{channels} channels do not make {groups} groups')
  x = x.reshape(batch, height, width, groups, channels // groups)
  mean = x.mean((1, 2, 4), keepdims=True)
  var = ((x - mean) ** 2).mean((1, 2, 4), keepdims=True)
  x = ((x - mean) / np.sqrt(var + eps)).reshape(batch, height, width, channels)
  return x * scale.ravel() + bias.ravel()


def layer_norm(
  x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float = 1e-6
) -> np.ndarray:
  """Over the last axis."""
  mean = x.mean(-1, keepdims=True)
  var = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + eps) * scale + bias


def relu(x: np.ndarray) -> np.ndarray:
  """max(x, 0)."""
  return np.maximum(x, 0.0)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
  """The tanh approximation, Flax's default (§1.3)."""
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
  """The exact one, of timm and TransUNet (§1.6)."""
  return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  powers = np.exp(x - x.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def attention(x: np.ndarray, weights: Weights) -> np.ndarray:
  """Self-attention of (B, T, D); weights 'query/kernel' … 'out/bias'."""
  query, key, value = (
    (
      np.tensordot(x, weights[f'{name}/kernel'], 1) + weights[f'{name}/bias']
    ).transpose(0, 2, 1, 3)  # B, heads, T, head size
    for name in ('query', 'key', 'value')
  )
  scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
  mixed = (softmax(scores) @ value).transpose(0, 2, 1, 3)
  return np.tensordot(mixed, weights['out/kernel'], 2) + weights['out/bias']


def _interpolation(old: int, new: int, aligned: bool) -> np.ndarray:
  """(new, old) matrix of linear interpolation, edges held."""
  index = np.arange(new)
  if aligned:
    at = index * ((old - 1) / (new - 1) if new > 1 else 0.0)
  else:
    at = np.clip((index + 0.5) * (old / new) - 0.5, 0, old - 1)
  low = np.minimum(np.floor(at).astype(int), max(old - 2, 0))
  matrix = np.zeros((new, old))
  matrix[index, low] += 1 - (at - low)
  matrix[index, np.minimum(low + 1, old - 1)] += at - low
  return matrix


def resize(
  images: np.ndarray, size: tuple[int, int], aligned: bool = False
) -> np.ndarray:
  """Bilinear resize of (B, H, W, C), each axis by its own factor.

  Args:
    images: the maps.
    size: new height and width.
    aligned: False samples at half pixels (`jax.image.resize`'s upsampling;
      never antialiased here), True aligns the corners.
  """
  rows = _interpolation(images.shape[1], size[0], aligned)
  columns = _interpolation(images.shape[2], size[1], aligned)
  images = np.tensordot(images, rows, (1, 1))  # B, W, C, new H
  images = np.tensordot(images, columns, (1, 1))  # B, C, new H, new W
  return images.transpose(0, 2, 3, 1)


def resize_positions(
  table: np.ndarray,
  grid: tuple[int, int],
  *,
  old_grid: tuple[int, int] | None = None,
  class_token: bool = True,
) -> np.ndarray:
  """Position table (1, [1 +] gh gw, D) for another grid, row by row (§1.3).

  Args:
    table: the stored one; its first row is the class token's, if it has one.
    grid: new height and width, in tokens.
    old_grid: stored height and width; None takes a square.
    class_token: whether the first row is kept apart.
  """
  table = np.asarray(table, np.float64)
  first, rest = np.split(table, [int(class_token)], 1)
  side = math.isqrt(rest.shape[1])
  old_grid = old_grid or (side, side)
  rest = rest.reshape(1, *old_grid, -1)
  rest = resize(rest, grid, aligned=True)
  return np.concatenate([first, rest.reshape(1, grid[0] * grid[1], -1)], 1)


# ----------------------------------------------------------------------------
# Encoders.


def _units(weights, stage, folder, digits):
  """How many units the stage has in the file; 0 if there is no such stage."""
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
  checkpoint: Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  eps: float = 1e-6,
  standardize_eps: float = 1e-5,
) -> dict[str, np.ndarray]:
  """Post-activation ResNet with as many stages as the file has (§1.1).

  Args:
    image: (B, H, W, 3) in [-1, 1], any H and W.
    checkpoint: as of `hybrid_vit_checkpoint`.
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
    kernel = standardize(weights[f'{key}/kernel'], standardize_eps)
    return conv2d(x, kernel, stride=stride)

  def norm(x, key):
    scale, bias = weights[f'{key}/scale'], weights[f'{key}/bias']
    return group_norm(x, scale, bias, groups, eps)

  x = conv(np.asarray(image, np.float64), 'conv_root', stride=2)
  x = relu(norm(x, 'gn_root'))
  maps = {'skip2': x}
  x = max_pool(x)
  for stage, name in enumerate(_MAPS, 1):
    units = _units(weights, stage, '', 1)
    for unit in range(1, units + 1):
      at = f'block{stage}/unit{unit}'
      stride = 2 if stage > 1 and unit == 1 else 1
      shortcut = x
      if f'{at}/conv_proj/kernel' in weights:
        shortcut = norm(conv(x, f'{at}/conv_proj', stride), f'{at}/gn_proj')
      h = relu(norm(conv(x, f'{at}/conv1'), f'{at}/gn1'))
      h = relu(norm(conv(h, f'{at}/conv2', stride), f'{at}/gn2'))
      h = norm(conv(h, f'{at}/conv3'), f'{at}/gn3')
      x = relu(shortcut + h)
    if units:
      maps[name] = x
  return maps


def _encoder_blocks(weights):
  """Each ViT block's weights under the old names, from any numbering."""
  at = 'Transformer/encoderblock'
  numbering = 'old' if any('/MlpBlock_3/' in key for key in weights) else 'new'
  names = dict(zip(_module_names(numbering), _module_names('old'), strict=True))
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


def hybrid_encoder(
  image: np.ndarray,
  checkpoint: Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  group_norm_eps: float = 1e-6,
  standardize_eps: float = 1e-5,
  layer_norm_eps: float = 1e-6,
  gelu=gelu_tanh,
  use_cls_token: bool = True,
) -> dict[str, np.ndarray]:
  """Stem and ViT of `R50+ViT-B_16` in evaluation mode (§1.1 to §1.3).

  Args:
    image: (B, H, W, 3) in [-1, 1], any H and W; the position table is resized
      to the grid that comes out of the stem.
    checkpoint: as of `hybrid_vit_checkpoint`, in any of its variants.
    prefix: of its keys.
    groups: of every GroupNorm; 32 in the public files.
    group_norm_eps: of the stem.
    standardize_eps: of the stem's kernels, added to the std.
    layer_norm_eps: of the ViT.
    gelu: of the ViT.
    use_cls_token: False leaves the class token and its position out.

  Returns:
    skip2, skip4, skip8, feat16 (feat32 with four stages) and tokens, the
    normalized tokens but the class token's, as a map.
  """
  weights = _without_prefix(checkpoint, prefix)
  maps = stem(
    image,
    weights,
    groups=groups,
    eps=group_norm_eps,
    standardize_eps=standardize_eps,
  )
  x = conv2d(
    list(maps.values())[-1],
    weights['embedding/kernel'],
    weights['embedding/bias'],
  )
  batch, height, width, hidden = x.shape
  x = x.reshape(batch, height * width, hidden)
  positions = weights.get('pos_embedding')
  if positions is None:
    positions = weights['Transformer/posembed_input/pos_embedding']
  positions = resize_positions(positions, (height, width))
  if use_cls_token:
    first = np.broadcast_to(weights['cls'], (batch, 1, hidden))
    x = np.concatenate([first, x], 1)
  else:
    positions = positions[:, 1:]
  x = x + positions

  for block in _encoder_blocks(weights):

    def norm(x, name, block=block):
      scale, bias = block[f'{name}/scale'], block[f'{name}/bias']
      return layer_norm(x, scale, bias, layer_norm_eps)

    def dense(x, name, block=block):
      return x @ block[f'{name}/kernel'] + block[f'{name}/bias']

    x = x + attention(
      norm(x, 'LayerNorm_0'), _under(block, 'MultiHeadDotProductAttention_1/')
    )
    h = gelu(dense(norm(x, 'LayerNorm_2'), 'MlpBlock_3/Dense_0'))
    x = x + dense(h, 'MlpBlock_3/Dense_1')

  x = layer_norm(
    x,
    weights['Transformer/encoder_norm/scale'],
    weights['Transformer/encoder_norm/bias'],
    layer_norm_eps,
  )
  x = x[:, int(use_cls_token) :]
  return {**maps, 'tokens': x.reshape(batch, height, width, hidden)}


def bit_encoder(
  image: np.ndarray,
  checkpoint: Weights,
  *,
  prefix: str = '',
  groups: int = 32,
  eps: float = 1e-5,
  standardize_eps: float = 1e-10,
  pool_value: float = 0.0,
  final_norm: bool = True,
  skip_norms: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
  """BiT's pre-activation ResNet (§2a, §3.2), padded symmetrically.

  Args:
    image: (B, H, W, 3) in [-1, 1].
    checkpoint: as of `bit_checkpoint`.
    prefix: of its keys.
    groups: of every GroupNorm; 32 in the public file.
    eps: of every GroupNorm.
    standardize_eps: added to the variance of the kernels.
    pool_value: what surrounds the map at the pool: 0, or -inf (big_vision).
    final_norm: whether feat32 is normalized and rectified.
    skip_norms: scale and bias of a GroupNorm for each skip named.

  Returns:
    skip2 (the bare root convolution), skip4, skip8, feat16 (bare outputs of
    the stages) and feat32.
  """
  weights = _without_prefix(checkpoint, prefix)

  def conv(x, key, stride=1):
    kernel = weights[f'{key}/standardized_conv2d/kernel']
    kernel = standardize(kernel, standardize_eps, 'var')
    padding = (kernel.shape[0] - 1) // 2
    return conv2d(x, kernel, stride=stride, padding=padding)

  def norm_relu(x, key):
    gamma = weights[f'{key}/group_norm/gamma']
    beta = weights[f'{key}/group_norm/beta']
    return relu(group_norm(x, gamma, beta, groups, eps))

  x = conv(np.asarray(image, np.float64), 'resnet/root_block', stride=2)
  maps = {'skip2': x}
  x = max_pool(x, padding=1, value=pool_value)
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
    maps[name] = group_norm(maps[name], scale, bias, groups, eps)
  return maps


# ----------------------------------------------------------------------------
# Decoder.

WIDTHS = (1024, 512, 256, 128, 64)


class Block(NamedTuple):
  """One row of the table in §1.4: resize first, then concatenate [x, skip]."""

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


def _source(layout):
  """Name and stride of the map that the first block takes."""
  return ('feat32', 32) if layout == 'unet' else ('tokens', 16)


def decoder_weights(
  rng: np.random.Generator,
  *,
  layout: str = 'A',
  widths: Sequence[int] = WIDTHS,
  channels: Mapping[str, int] | None = None,
  outputs: int = 3,
  level_features: int | None = None,
  spread: float = 1.0,
) -> dict[str, np.ndarray]:
  """Weights of a decoder and its head, as `decoder` takes them.

  Args:
    rng: source of the values.
    layout: key of LAYOUTS.
    widths: channels of the five blocks, the multiplier already in.
    channels: of the encoder's maps; None takes the full-size network's.
    outputs: of the head.
    level_features: width of the noise level's embedding, whose modulation
      'block{i}/film{j}/kernel|bias' is then added; None does without.
    spread: as in `hybrid_vit_checkpoint`.
  """
  if channels is None:
    channels = RESNET_CHANNELS if layout == 'unet' else HYBRID_CHANNELS
  make = _Maker(rng, '', spread)
  inputs = channels[_source(layout)[0]]
  for index, (block, width) in enumerate(
    zip(LAYOUTS[layout], widths, strict=True)
  ):
    if block.skip:
      inputs += channels[block.skip]
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      make.kernel(f'{at}/conv{conv}', (3, 3, inputs, width), 4.5 * inputs)
      make.norm(f'{at}/norm{conv}', (width,))
      if level_features is not None:
        make.kernel(
          f'{at}/film{conv}',
          (level_features, 2 * width),
          level_features,
          (2 * width,),
        )
      inputs = width
  make.kernel('head', (3, 3, inputs, outputs), 9 * inputs, (outputs,))
  return make.weights


def decoder_blocks(
  maps: Mapping[str, np.ndarray],
  weights: Weights,
  *,
  layout: str = 'A',
  groups: int = 32,
  eps: float = 1e-6,
  aligned: bool = False,
  level: np.ndarray | None = None,
) -> list[np.ndarray]:
  """The five maps: x2, concatenate [x, skip], (conv, norm, ReLU) twice.

  What a block leaves out of these is in LAYOUTS.

  Args:
    maps: of an encoder, by name.
    weights: 'block{i}/conv{j}/kernel' (HWIO), 'block{i}/norm{j}/scale|bias',
      j = 1, 2; the blocks are counted from 0.
    layout: key of LAYOUTS.
    groups: of every GroupNorm.
    eps: of every GroupNorm.
    aligned: upsampling with aligned corners (TransUNet's) in place of half
      pixels.
    level: (B, E) embedding of the noise level; each norm's output becomes
      (1 + s) norm + b with [s, b] = level @ kernel + bias of
      'block{i}/film{j}'.
  """
  weights = {k: np.asarray(v, np.float64) for k, v in weights.items()}
  x = np.asarray(maps[_source(layout)[0]], np.float64)
  found = []
  for index, block in enumerate(LAYOUTS[layout]):
    if block.upsample:
      x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), aligned)
    if block.skip:
      x = np.concatenate([x, maps[block.skip]], -1)
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      x = conv2d(x, weights[f'{at}/conv{conv}/kernel'])
      x = group_norm(
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
      x = relu(x)
    found.append(x)
  return found


def decoder(
  maps: Mapping[str, np.ndarray], weights: Weights, **options
) -> np.ndarray:
  """Blocks, then the head's 3x3 convolution: (B, H, W, K), at full size.

  Takes the arguments of `decoder_blocks` and 'head/kernel|bias'.
  """
  x = decoder_blocks(maps, weights, **options)[-1]
  kernel, bias = weights['head/kernel'], weights['head/bias']
  return conv2d(x, kernel.astype(np.float64), bias.astype(np.float64))


# ----------------------------------------------------------------------------
# Noise.


def gamma_of(sigma):
  """gamma = 1 / (1 + sigma²) (§4.1)."""
  return 1 / (1 + np.square(sigma))


def sigma_of(gamma):
  """sigma = sqrt(1 / gamma - 1) (§4.1)."""
  return np.sqrt(1 / np.asarray(gamma) - 1)


def _per_example(value, like):
  """A scalar or (B,) made to broadcast against (B, H, W, C)."""
  value = np.asarray(value, np.float64)
  if value.ndim == 0:
    return value
  return value.reshape(value.shape + (1,) * (like.ndim - 1))


def simple_noise(
  image: np.ndarray, eps: np.ndarray, sigma, noise_space: str = 'unit'
) -> np.ndarray:
  """x~ = x + sigma e (Eq. 1), image and result in [-1, 1] units.

  Args:
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal, as the image.
    sigma: scalar or (B,).
    noise_space: 'unit' adds it to x = (y + 1) / 2, the public code's way: in
      the units of y that is 2 sigma e; 'symmetric' adds sigma e to y.
  """
  sigma = _per_example(sigma, image)
  return image + {'unit': 2.0, 'symmetric': 1.0}[noise_space] * sigma * eps


def scaled_noise(
  image: np.ndarray, eps: np.ndarray, gamma, noise_space: str = 'symmetric'
) -> np.ndarray:
  """sqrt(gamma) y + sqrt(1 - gamma) e (Eq. 5), result in [-1, 1] units.

  Args:
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal, as the image.
    gamma: scalar or (B,); `gamma_of(sigma)` for a sigma of Eq. 5.
    noise_space: 'symmetric' as above; 'unit' has x = (y + 1) / 2 in the place
      of y, and then goes back to [-1, 1]. The public code takes x and does
      *not* do the latter: see `scaled_noise_of_unit_image`.
  """
  gamma = _per_example(gamma, image)
  if noise_space == 'symmetric':
    return np.sqrt(gamma) * image + np.sqrt(1 - gamma) * eps
  if noise_space == 'unit':
    unit = np.sqrt(gamma) * (image + 1) / 2 + np.sqrt(1 - gamma) * eps
    return 2 * unit - 1
  raise ValueError(f'noise space {noise_space!r} is neither unit nor symmetric')


def scaled_noise_of_unit_image(
  image: np.ndarray, eps: np.ndarray, gamma
) -> np.ndarray:
  """The public code's line, from [0, 1] to [0, 1] units (§4.1)."""
  root = np.sqrt(_per_example(gamma, image))
  rest = np.sqrt(1 - _per_example(gamma, image))
  return root * image + (rest * eps - root + 1) / 2


def noise_target(
  kind: str,
  image: np.ndarray,
  eps: np.ndarray,
  *,
  gamma=None,
  sigma=None,
) -> np.ndarray:
  """What the network is to find (§4.2).

  Args:
    kind: 'eps', 'x' (the clean image, as the encoder takes it) or
      'eps_scaled' (sigma e of simple noise, sqrt(1 - gamma) e of scaled).
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal.
    gamma: of scaled noise; eps is 0 in an example where it is 1 (§4.3).
    sigma: of simple noise, in the place of gamma.
  """
  if (gamma is None) == (sigma is None):
    raise ValueError('give gamma (scaled noise) or sigma (simple noise)')
  if kind == 'x':
    return image
  if kind == 'eps':
    return eps if gamma is None else eps * (_per_example(gamma, image) < 1)
  if kind == 'eps_scaled':
    if gamma is None:
      return _per_example(sigma, image) * eps
    return np.sqrt(1 - _per_example(gamma, image)) * eps
  raise ValueError(f'target {kind!r} is none of eps, x and eps_scaled')


def denoising_loss(found: np.ndarray, target: np.ndarray) -> float:
  """Squared difference, meaned over pixels, channels and batch (Eq. 2 to 6)."""
  return float(np.mean((found - target) ** 2))


def clipped_uniform(u, low: float, high: float) -> np.ndarray:
  """gamma ~ U(low, high), at most 1, from u ~ U(0, 1) (§4.3)."""
  return np.minimum(low + (high - low) * np.asarray(u), 1.0)


def gamma_schedule(
  kind: str, low: float, high: float, steps: int
) -> np.ndarray:
  """gamma of the time steps 0 … steps - 1 (§4.3).

  Args:
    kind: 'linear' goes from high to low in equal steps; 'multiplicative' is
      the product of the first t of these, hence 1 at t = 0.
    low: the last of the linear values.
    high: the first of them.
    steps: how many.
  """
  linear = np.linspace(high, low, steps)
  if kind == 'linear':
    return linear
  if kind == 'multiplicative':
    return np.array([np.prod(linear[:step]) for step in range(steps)])
  raise ValueError(f'schedule {kind!r} is neither linear nor multiplicative')


def sinusoidal(
  level: np.ndarray, features: int, max_period: float = 1e4
) -> np.ndarray:
  """(B,) → (B, features): sines, then cosines, of level · max_period^(-k/n).

  The specification says no more than "sinusoidal": n = features / 2 and the
  frequencies are those of the Transformer's positions.
  """
  half = features // 2
  frequencies = max_period ** (-np.arange(half) / half)
  angles = np.asarray(level, np.float64)[:, None] * frequencies
  return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def silu(x: np.ndarray) -> np.ndarray:
  """x sigmoid(x)."""
  return x * special.expit(x)


def embed_level(
  level: np.ndarray, weights: Weights, activation=silu, **options
) -> np.ndarray:
  """Sinusoidal features and a two-layer MLP, 'level/dense{1,2}/kernel|bias'.

  Args:
    level: (B,), gamma or time step.
    weights: the first kernel's inputs are the number of features.
    activation: between the layers; the specification names none.
    **options: of `sinusoidal`.
  """
  features = weights['level/dense1/kernel'].shape[0]
  x = sinusoidal(level, features, **options)
  x = x @ weights['level/dense1/kernel'] + weights['level/dense1/bias']
  x = activation(x)
  return x @ weights['level/dense2/kernel'] + weights['level/dense2/bias']


# ----------------------------------------------------------------------------
# Counts from the layer list: 2 FLOPs a multiply-add; norms, activations and
# resizes cost nothing (§1.5).


class Layer(NamedTuple):
  """One entry of the list, for one image."""

  name: str
  macs: int
  params: int


def gflops(layers: Iterable[Layer]) -> float:
  """Forward pass of one image, in 1e9 FLOPs."""
  return sum(layer.macs for layer in layers) * 2 / 1e9


def parameters(layers: Iterable[Layer]) -> int:
  """Their sum."""
  return sum(layer.params for layer in layers)


def _sides(size, stride):
  height, width = (size, size) if isinstance(size, int) else size
  return math.ceil(height / stride), math.ceil(width / stride)


def _conv_layer(name, size, stride, kernel, inputs, outputs, bias=False):
  """`stride` is that of the output against the image."""
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
  """The ResNet; with four stages that of §2, pre-activation (BiT) or not."""
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
  """Embedding and blocks; parameters with a table for grid² + 1 positions."""
  height, width = _sides(size, stride)
  tokens = height * width + 1
  found = [
    _conv_layer('embedding', size, stride, 1, inputs, hidden, bias=True),
    Layer('class token', 0, hidden),
    Layer('positions', 0, (grid * grid + 1) * hidden),
  ]
  for index in range(layers):
    found += [
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
  return [*found, Layer('final norm', 0, 2 * hidden)]


def decoder_layers(
  size: int | tuple[int, int],
  *,
  layout: str = 'A',
  widths: Sequence[int] = WIDTHS,
  channels: Mapping[str, int] | None = None,
  outputs: int = 3,
) -> list[Layer]:
  """Blocks and head; arguments as in `decoder_weights`."""
  if channels is None:
    channels = RESNET_CHANNELS if layout == 'unet' else HYBRID_CHANNELS
  source, stride = _source(layout)
  inputs, found = channels[source], []
  for index, (block, width) in enumerate(
    zip(LAYOUTS[layout], widths, strict=True)
  ):
    stride //= 2 if block.upsample else 1
    if block.skip:
      inputs += channels[block.skip]
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      found += [
        _conv_layer(f'{at}/conv{conv}', size, stride, 3, inputs, width),
        Layer(f'{at}/norm{conv}', 0, 2 * width),
      ]
      inputs = width
  found.append(_conv_layer('head', size, stride, 3, inputs, outputs, True))
  return found


def frozen_gflops(
  size: int | tuple[int, int],
  *,
  layout: str = 'A',
  widths: Sequence[int] = WIDTHS,
  outputs: int = 3,
) -> float:
  """A pretraining step of one image, TransUNet, the encoder frozen (§1.5).

  Encoder once, decoder three times, less the gradients to what the encoder put
  out: the first convolution's inputs and the skips.
  """
  options = {'layout': layout, 'widths': widths, 'outputs': outputs}
  full = decoder_layers(size, **options)
  # An encoder without channels leaves what the decoder feeds to itself.
  nothing = dict.fromkeys(HYBRID_CHANNELS, 0)
  own = decoder_layers(size, channels=nothing, **options)
  encoder = gflops(stem_layers(size)) + gflops(vit_layers(size))
  return encoder + 2 * gflops(full) + gflops(own)
