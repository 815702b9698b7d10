"""Blocks that U2PL's experiments share, as functions; and their options."""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import common

# The systems that U2PL is compared with, from labels alone to U2PL+.
SYSTEMS = ['u2pl_plus', 'u2pl', 'cutmix', 'classmix', 'mt', 'sup_only']

# Table IV: parts of the method that can be turned on and off.
_PARTS = {
  'bank': 'negatives of earlier steps',
  'dpa': 'the share of unreliable pixels falls (dynamic partition)',
  'prt': 'negatives are chosen by rank windows (probability rank threshold)',
  'un': 'negatives are unreliable pixels',
  'pd': 'prototypical denoising',
  'mp': 'momentum prototypes',
  'sce': 'symmetric cross entropy',
}
# What a part is unless it is switched: on where the system has it.
_SWITCH = ['auto', 'on', 'off']
SWITCHES = dict.fromkeys(_PARTS, _SWITCH)


def learn(
  options: SimpleNamespace,
  group: int,
  bank: dict[str, Any],
  supervised: dict[str, Any] | None = None,
  warmup_epochs: int = 1,
  weight: float = 1.0,
) -> ml_collections.ConfigDict:
  """What U2PL, U2PL+ or a baseline learns from.

  Args:
    options: `system`, one of `SYSTEMS`, and a switch for each part.
    group: images that are mixed among each other.
    bank: sizes of the bank and of its draws.
    supervised: fields of the supervised loss that differ.
    warmup_epochs: of labeled images alone.
    weight: of the unlabeled images' loss.

  Raises:
    ValueError: a part is switched on that the system has no place for.
  """
  system = options.system
  full, plus = system in ('u2pl', 'u2pl_plus'), system == 'u2pl_plus'
  default = dict.fromkeys(('bank', 'dpa', 'prt', 'un'), full)
  default |= dict.fromkeys(('pd', 'mp', 'sce'), plus)
  has = {
    part: {'auto': default[part], 'on': True, 'off': False}[
      getattr(options, part)
    ]
    for part in _PARTS
  }
  # Without contrast only what mends labels and their loss has a place; and of
  # prototypes nothing is seen but what they mend.
  mending = ('pd', 'sce', *(('mp',) if has['pd'] else ()))
  possible = {
    'u2pl': tuple(_PARTS),
    'u2pl_plus': tuple(_PARTS),
    'sup_only': (),
  }.get(system, mending)
  for part in _PARTS:
    if getattr(options, part) == 'on' and part not in possible:
      others = [name for name in SYSTEMS if name != 'sup_only']
      where = others if part in ('pd', 'sce') else ['u2pl', 'u2pl_plus']
      also = ', or pd=on beside it' if part == 'mp' and possible else ''
      raise ValueError(
        f'config option {part}=on: system={system} has no place for '
        f'{_PARTS[part]}: expected one of {", ".join(where)}{also}'
      )
  consistency = contrast = None
  if system != 'sup_only':
    consistency = {
      'filtered': full,
      'weight': weight,
      'forward': 1.0,
      'reverse': 0.1 if has['sce'] else 0.0,
      'denoise': 'raw' if has['pd'] else 'off',
      'mixing': {
        'kind': {'mt': 'none', 'classmix': 'classmix'}.get(system, 'cutmix'),
        'probability': 0.5,
        'group': group,
      },
    }
  if full:
    contrast = {
      'weight': 0.1,
      'temperature': 0.5,
      'low_rank': 3,
      'high_rank': 20,
      'by_rank': has['prt'],
      'anchor_threshold': 0.3,
      'anchor_entropy': 'paper',
      'negatives': 'unreliable' if has['un'] else 'reliable',
      'bank': has['bank'],
      **bank,
    }
  return common.block(
    supervised={'kind': 'ce', 'auxiliary': 0.0, **(supervised or {})},
    consistency=consistency,
    contrast=contrast,
    partition={'percent': 20.0, 'dynamic': has['dpa']},
    prototype_momentum=0.999 if has['mp'] else 0.0,
    teacher={'decay': 0.99, 'copy_epochs': 1, 'statistics': 'own'},
    warmup_epochs=warmup_epochs,
  )


def steps_per_epoch(
  options: SimpleNamespace, most_labels: int, num_images: int
) -> int:
  """Steps of an epoch of the unlabeled images; for sup_only of the others.

  Args:
    options: `system`, `labels`, `batch` and `equal_steps`.
    most_labels: images that may be labeled.
    num_images: labeled and unlabeled ones.

  Raises:
    ValueError: there are no such epochs.
  """
  alone = options.system == 'sup_only'
  least = 1 if alone else 2
  if options.batch < least:
    why = '' if alone else ', as images are mixed with others of their batch'
    raise ValueError(
      f'config option batch={options.batch}: expected {least} or more{why}'
    )
  most = min(most_labels, num_images - (0 if alone else options.batch))
  if not 0 < options.labels <= most:
    raise ValueError(
      f'config option labels={options.labels}: expected 1 to {most}; '
      'an epoch is counted by it, with list=FILE, too'
    )
  if options.equal_steps and not alone:
    raise ValueError(
      f'config option equal_steps: found with system={options.system}, which '
      'sets how many steps there are; expected it with sup_only'
    )
  if alone and not options.equal_steps:
    return -(-options.labels // options.batch)
  return (num_images - options.labels) // options.batch


def start(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """Encoder from `encoder`, or encoder and decoder from `start`.

  Raises:
    ValueError: both are given.
  """
  if options.encoder and options.start:
    raise ValueError(
      f'config options encoder={options.encoder} and start={options.start} '
      'contradict each other: give one of them'
    )
  if options.start:
    return common.block(path=options.start, take=('encoder', 'decoder'))
  if options.encoder:
    return common.block(path=options.encoder, take=('encoder',))
  return common.block(path='', take=())


def set_contrast(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Sets `contrast_weight` and `anchor_entropy`.

  Raises:
    ValueError: they are given to a system without contrast.
  """
  if not config.train.learn.contrast:
    if (options.contrast_weight, options.anchor_entropy) != (0.1, 'paper'):
      raise ValueError(
        'config options contrast_weight and anchor_entropy: '
        f'system={options.system} has no contrast, expected u2pl or u2pl_plus'
      )
  else:
    config.train.learn.contrast.weight = options.contrast_weight
    config.train.learn.contrast.anchor_entropy = options.anchor_entropy


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Cuts the training to six epochs of 10 steps; all else stays as it is."""
  config.train.steps_per_epoch = 10
  config.train.learn.warmup_epochs = min(config.train.learn.warmup_epochs, 1)
  recipe = config.train.recipe
  recipe.num_steps, recipe.evaluate_every = 60, 30
  recipe.optimizer.warmup_steps = min(recipe.optimizer.warmup_steps, 5)
  config.operation.update(log_every=10, save_every=20)


# Sizes of the paper's bank and of the draws from it.
BANK = {
  'num_anchors': 256,
  'num_negatives': 50,
  'capacity': 30000,
  'first_capacity': 50000,
  'max_push': 4096,
  'dtype': 'float32',
}


# The same, for small images.
SMALL_BANK = {
  'num_anchors': 64,
  'num_negatives': 50,
  'capacity': 2000,
  'first_capacity': 4000,
  'max_push': 256,
  'dtype': 'float32',
}


# The networks of the papers' configs, and where their encoders come from.
WEIGHTS = {
  'resnet101': 'weights/resnet101_deep.safetensors',
  'resnet50': 'weights/resnet50_deep.safetensors',
  'transunet': common.WEIGHTS['transunet'],
}


def published_start(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """As `start`; without either from the weights of `network`."""
  if options.encoder == 'auto':
    known = '' if options.tiny or options.start else WEIGHTS[options.network]
    options.encoder = known
  return start(options)


def border(options: SimpleNamespace) -> str:
  """The fill of crops that `pad_label` asks for."""
  return {'paper': 'paper', 'ignored': 'mean'}[options.pad_label]


def protocol(**fields: Any) -> ml_collections.ConfigDict:
  """How the network looks at an image, with scores enlarged as in training."""
  return common.protocol(
    **{'average': 'logits', 'align_corners': True, **fields}
  )


def framed(size: tuple[int, int]) -> ml_collections.ConfigDict:
  """Images in the middle of a frame of the mean color; none is larger."""
  return protocol(
    tiling='sliding_window',
    window=size,
    stride=size,
    padding_mode='mean',
    size_multiple=size[0],
  )


def deeplab(network: str) -> ml_collections.ConfigDict:
  """DeepLabv3+ on a ResNet of output stride 8; or TransUNet."""
  if network == 'transunet':
    return common.block(
      encoder={'name': 'hybrid_vit', 'grid': (0, 0)},
      decoder={'name': 'unet'},
      dtype='bfloat16',
      remat=False,
    )
  blocks = {'resnet101': (3, 4, 23, 3), 'resnet50': (3, 4, 6, 3)}[network]
  return common.block(
    encoder={
      'name': 'dilated_resnet',
      'blocks': blocks,
      'stem': 'deep',
      'output_stride': 8,
    },
    decoder={'name': 'deeplabv3plus'},
    dtype='bfloat16',
    remat=False,
  )


def heads(network: str) -> dict[str, Any]:
  """Scores at a quarter of the resolution; TransUNet's at all of it."""
  kind = 'conv' if network == 'transunet' else 'blocks'
  return {'kind': kind, 'width': 256, 'representation': 256}


def listed_or_chosen(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """The images of `list`, or as many as `labels` says.

  '{labels}' in the list's path stands for their number. An epoch is as long as
  `labels` says, so a list of another length is refused.

  Raises:
    ValueError: a fraction is given, from which no epoch's length follows.
  """
  if options.fraction:
    raise ValueError(
      f'config option fraction={options.fraction}: expected labels=NUMBER here'
    )
  chosen = common.subset(options)
  if options.list:
    chosen.list = options.list.replace('{labels}', str(options.labels))
  return chosen


def shrink(config: ml_collections.ConfigDict) -> None:
  """Puts drawn images and a small network of the same kind into a config."""
  train = config.train
  transunet = config.network.encoder.name == 'hybrid_vit'
  config.network = common.small_network(
    common.SMALL_VIT
    if transunet
    else {
      'name': 'dilated_resnet',
      'blocks': (1, 1, 1, 3),
      'width': 8,
      'stem': 'deep',
      'output_stride': 8,
    }
  )
  if not transunet:
    config.network.decoder = common.block(
      name='deeplabv3plus', width=16, dilations=(1, 2, 3)
    )
  train.update(
    data=common.data('shapes/scenes'),
    split='train',
    val_split='val',
    subset=common.block(
      labels=100, fraction=1.0, seed=0, run=0, nested=True, list=''
    ),
    unlabeled='',
  )
  train.crop.size = (64, 64) if transunet else (65, 65)
  train.heads.update(width=16, representation=16)
  told = train.learn
  told.supervised.kept_per_image = 500
  told.warmup_epochs = min(told.warmup_epochs, 1)
  if told.consistency:
    told.consistency.mixing.group = 4
  if told.contrast:
    told.contrast.update(
      num_anchors=32, capacity=500, first_capacity=1000, max_push=64
    )
  train.recipe.batch_size = 8
  bordered = config.evaluate.protocol.padding_mode == 'mean'
  config.evaluate.update(
    batch_size=40,
    splits=('val',),
    protocol=framed(train.crop.size) if bordered else protocol(),
    which='last',
  )
  make_tiny(config)
