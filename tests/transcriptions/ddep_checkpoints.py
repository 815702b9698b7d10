"""Fake weights with the keys and shapes of DDeP's public checkpoints.

Transcribed from the specification (cited as §) and from nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tests.transcriptions import ddep_layers, ddep_networks


def _log_uniform(rng, low, high, count):
  return np.exp(rng.uniform(np.log(low), np.log(high), count))


class _Draws:
  """Fills a flat dict with random values.

  With a `std_scale` of 0 they are zeros that are never written to, which take
  no memory.
  """

  def __init__(self, rng, prefix, std_scale):
    self.rng = rng
    self.prefix = prefix
    self.std_scale = std_scale
    self.weights = {}

  def add(self, key, shape, std, mean=0.0):
    if self.std_scale:
      value = self.rng.standard_normal(shape, np.float32)
      value = (value * std * self.std_scale + mean).astype(np.float32)
      self.weights[self.prefix + key] = value
    else:
      self.zeros(key, shape)

  def zeros(self, key, shape):
    self.weights[self.prefix + key] = np.zeros(shape, np.float32)

  def standardized(self, key, shape):
    """Adds a raw kernel whose channels differ in scale and mean.

    Channels of equal scale would hide a wrong epsilon: the GroupNorm after the
    convolution would divide it out.
    """
    if not self.std_scale:
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
  std_scale: float = 1.0,
) -> dict[str, np.ndarray]:
  """Draws float32 weights with the keys of `R50+ViT-B_16.npz` (§3.1).

  With four `mids` and `blocks` the stem is that of AugReg's R50 hybrids (§2b).

  Args:
    rng: source of the values.
    root, mids, blocks: channels of the root convolution; channels of each
      stage's 3x3, a quarter of its output; units of each stage.
    hidden, heads, mlp, layers: sizes of the ViT.
    grid: side of the stored position grid (14 for 224 pixels).
    classes: outputs of `head`, which is zero; None for no head.
    pre_logits: whether there is this layer; fine-tuned files have none.
    numbering: 'old' numbers all modules of a block through (LayerNorm_0,
      MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3), 'new' each class
      (LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0).
    group_norm_rank: 4 for vectors of shape (1, 1, 1, C), 1 for (C,).
    prefix: of every key, such as 'params/' or 'opt/target/'.
    positions_at: 'posembed_input' or 'top' (big_vision).
    stacked: one `encoderblock` with a leading layer axis (big_vision).
    std_scale: factor of every standard deviation; 0 for zeros.
  """
  draws = _Draws(rng, prefix, std_scale)
  width = _add_stem(draws, (1,) * (group_norm_rank - 1), root, mids, blocks)
  draws.kernel('embedding', (1, 1, width, hidden), width, (hidden,))
  draws.add('cls', (1, 1, hidden), 0.5)
  table = {
    'posembed_input': 'Transformer/posembed_input/pos_embedding',
    'top': 'pos_embedding',
  }[positions_at]
  draws.add(table, (1, grid * grid + 1, hidden), 0.5)
  names = ddep_networks.module_names(numbering)
  if stacked:
    _add_encoder_block(draws, '', names, (layers,), hidden, heads, mlp)
  else:
    for layer in range(layers):
      _add_encoder_block(draws, f'_{layer}', names, (), hidden, heads, mlp)
  draws.norm('Transformer/encoder_norm', (hidden,))
  _add_head(draws, hidden, pre_logits, classes)
  return draws.weights


def _add_head(draws, hidden, pre_logits, classes):
  """Adds the layers behind the ViT, if there are any."""
  if pre_logits:
    draws.kernel('pre_logits', (hidden, hidden), hidden, (hidden,))
  if classes is not None:
    draws.zeros('head/kernel', (hidden, classes))
    draws.zeros('head/bias', (classes,))


def _add_stem(draws, norm_axes, root, mids, blocks):
  """Adds the ResNet stem and returns its width; norms have leading axes."""

  def norm(key, channels):
    draws.norm(key, (*norm_axes, channels))

  draws.standardized('conv_root/kernel', (7, 7, 3, root))
  norm('gn_root', root)
  width = root
  for stage, (mid, units) in enumerate(zip(mids, blocks, strict=True), 1):
    for unit in range(1, units + 1):
      at = f'block{stage}/unit{unit}'
      draws.standardized(f'{at}/conv1/kernel', (1, 1, width, mid))
      draws.standardized(f'{at}/conv2/kernel', (3, 3, mid, mid))
      draws.standardized(f'{at}/conv3/kernel', (1, 1, mid, 4 * mid))
      norm(f'{at}/gn1', mid)
      norm(f'{at}/gn2', mid)
      norm(f'{at}/gn3', 4 * mid)
      if unit == 1 and (stage > 1 or width != 4 * mid):
        draws.standardized(f'{at}/conv_proj/kernel', (1, 1, width, 4 * mid))
        norm(f'{at}/gn_proj', 4 * mid)
      width = 4 * mid
  return width


def _add_encoder_block(draws, suffix, names, lead, hidden, heads, mlp):
  """Adds an encoder block, or a stack of all of them with `lead` axes."""
  attention, norm, perceptron = names
  at = f'Transformer/encoderblock{suffix}'
  size = hidden // heads
  draws.norm(f'{at}/LayerNorm_0', (*lead, hidden))
  for name in ('query', 'key', 'value'):
    draws.kernel(
      f'{at}/{attention}/{name}',
      (*lead, hidden, heads, size),
      hidden,
      (*lead, heads, size),
    )
  draws.kernel(
    f'{at}/{attention}/out',
    (*lead, heads, size, hidden),
    hidden,
    (*lead, hidden),
  )
  draws.norm(f'{at}/{norm}', (*lead, hidden))
  at = f'{at}/{perceptron}'
  draws.kernel(f'{at}/Dense_0', (*lead, hidden, mlp), hidden, (*lead, mlp))
  draws.kernel(f'{at}/Dense_1', (*lead, mlp, hidden), mlp, (*lead, hidden))


def bit_checkpoint(
  rng: np.random.Generator,
  *,
  root: int = 64,
  mids: Sequence[int] = (64, 128, 256, 512),
  blocks: Sequence[int] = (3, 4, 6, 3),
  classes: int | None = 21843,
  prefix: str = '',
  std_scale: float = 1.0,
) -> dict[str, np.ndarray]:
  """Draws float32 weights with the keys of `BiT-M-R50x1.npz` (§3.2).

  Arguments are those of `hybrid_vit_checkpoint`.
  """
  draws = _Draws(rng, prefix, std_scale)

  def conv(key, *shape):
    draws.standardized(f'{key}/standardized_conv2d/kernel', shape)

  def norm(key, channels):
    draws.norm(f'{key}/group_norm', (channels,), 'gamma', 'beta')

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
    draws.kernel(
      'resnet/head/conv2d', (1, 1, width, classes), width, (classes,)
    )
  return draws.weights


def count_parameters(
  weights: ddep_layers.Weights, exclude: Iterable[str] = ('head', 'pre_logits')
) -> int:
  """Counts the values that are not under a module named in `exclude`."""
  exclude = set(exclude)
  return sum(
    int(np.prod(value.shape, dtype=np.int64))
    for key, value in weights.items()
    if not exclude & set(key.split('/'))
  )


def decoder_weights(
  rng: np.random.Generator,
  *,
  layout: str = 'A',
  widths: Sequence[int] = ddep_networks.WIDTHS,
  channels: Mapping[str, int] | None = None,
  outputs: int = 3,
  level_features: int | None = None,
  std_scale: float = 1.0,
) -> dict[str, np.ndarray]:
  """Draws weights of a decoder and its head, for `decoder` (§1.4).

  Args:
    rng: source of the values.
    layout: key of ddep_networks.LAYOUTS.
    widths: channels of the five blocks, multiplied already.
    channels: of the encoder's maps; None for those of full size.
    outputs: of the head.
    level_features: width of the noise level's embedding, whose modulation
      'block{i}/film{j}/kernel|bias' is then added; None for none.
    std_scale: see `hybrid_vit_checkpoint`.
  """
  if channels is None:
    channels = (
      ddep_networks.RESNET_CHANNELS
      if layout == 'unet'
      else ddep_networks.HYBRID_CHANNELS
    )
  draws = _Draws(rng, '', std_scale)
  inputs = channels[ddep_networks.source_map(layout)[0]]
  for index, (block, width) in enumerate(
    zip(ddep_networks.LAYOUTS[layout], widths, strict=True)
  ):
    if block.skip:
      inputs += channels[block.skip]
    for conv in range(1, block.convs + 1):
      at = f'block{index}'
      draws.kernel(f'{at}/conv{conv}', (3, 3, inputs, width), 4.5 * inputs)
      draws.norm(f'{at}/norm{conv}', (width,))
      if level_features is not None:
        draws.kernel(
          f'{at}/film{conv}',
          (level_features, 2 * width),
          level_features,
          (2 * width,),
        )
      inputs = width
  draws.kernel('head', (3, 3, inputs, outputs), 9 * inputs, (outputs,))
  return draws.weights
