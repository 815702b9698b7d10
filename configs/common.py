"""Blocks that several experiments share, as functions; and their options.

Options are what stands after the colon: `ddep_shapes.py:init=dep,tiny`.
"""

import math
from types import SimpleNamespace
from typing import Any

import ml_collections


def parse(argument: str | None, **defaults: Any) -> SimpleNamespace:
  """Reads 'name=value,…' against declared options with their defaults.

  A value has the type of the default; a bare name sets a bool to True. A list
  of strings as a default means one of them, the first by default.

  Raises:
    ValueError: an unknown option, or a value of another type.
  """
  allowed = dict(defaults)
  values = {
    name: default[0] if isinstance(default, list) else default
    for name, default in defaults.items()
  }
  for item in filter(None, (argument or '').split(',')):
    name, _, text = item.partition('=')
    if name not in allowed:
      raise ValueError(
        f'config option {name!r} is unknown, expected some of '
        f'{", ".join(sorted(allowed))}'
      )
    if isinstance(allowed[name], bool):
      text = text or 'true'
    values[name] = _convert(name, text, allowed[name])
  return SimpleNamespace(**values)


def _convert(name: str, text: str, default: Any) -> Any:
  if isinstance(default, list):
    if text not in default:
      raise ValueError(
        f'config option {name}={text}: expected one of '
        f'{", ".join(filter(None, default))}'
      )
    return text
  if isinstance(default, bool):
    if text not in ('true', 'false'):
      raise ValueError(f'config option {name}={text}: expected true or false')
    return text == 'true'
  try:
    return type(default)(text)
  except ValueError:
    kind = type(default).__name__
    raise ValueError(f'config option {name}={text}: expected {kind}') from None


# The noise of denoising, as options; `noise` reads them.
NOISE = {
  'noise': ['scaled', 'simple'],
  'gamma': 0.0,  # share of the image's power that is kept; 0: the config's own
  'sigma': 0.0,  # instead of gamma: standard deviation, of images in [0, 1]
  'gamma_range': '',  # instead of gamma: each image has its own, 0.9-0.95
  'draw': ['uniform', 'linear', 'multiplicative'],  # from the range
  'noise_steps': 0,  # of the latter two
  'target': ['eps', 'x', 'eps_scaled'],  # what is predicted
}


# An experiment of the DDeP paper, as options. Where the paper is silent the
# values are those of public code of its family.
DDEP = {
  'init': ['ddep', 'dep', 'supervised', 'none'],
  'network': ['transunet', 'unet'],  # hybrid ViT or BiT-M R50x1 as the encoder
  'encoder': '',  # a finished run's stage, or a weight file; '': WEIGHTS below
  'width': 1,  # factor of the decoder's channels
  'layout': ['A', 'A1', 'B'],  # of the decoder of a transunet
  'conditional': False,  # tell the decoder the noise level
  'pretrain': ['imagenet21k', 'voc', 'ade20k', 'cityscapes'],  # are denoised
  'pretrain_epochs': 0.0,  # of these; 0: as many steps as 100 of ImageNet-21k
  'pretrain_steps': 0,  # instead of epochs
  'pretrain_lr': 0.0,  # 0: 6e-5, and 1e-4 for width 2
  'pretrain_seed': 0,
  **NOISE,
  'labels': 0,  # number of labeled images; 0: `fraction` decides
  'fraction': 0.0,  # share of the images that is labeled; 0: all
  'list': '',  # file that names the labeled images; needs `steps`
  'seed': 0,  # of the choice of labeled images and of fine-tuning
  'run': 0,  # another choice of labeled images with the same seed
  'held_out': 0,  # training images set aside, to decide on lr without val
  'lr': 1e-4,  # of fine-tuning
  'weight_decay': 1e-4,
  'wd_mode': ['decoupled', 'l2'],
  'epochs': 100.0,  # of fine-tuning
  'min_steps': 4000,  # however few the images
  'steps': 0,  # instead of epochs
  'tiny': False,  # the same code, small, on generated images
}
# Where the encoder of each network comes from.
WEIGHTS = {
  'transunet': 'weights/R50+ViT-B_16.npz',
  'unet': 'weights/BiT-M-R50x1.npz',
}
# For where data or weights are missing.
TINY = (
  'to run it now, on images that it draws itself, add the option tiny: '
  'CONFIG.py:tiny, or CONFIG.py:OPTIONS,tiny'
)


def block(**fields: Any) -> ml_collections.ConfigDict:
  """A block of a config; nested dicts become blocks too."""
  return ml_collections.ConfigDict(fields)


def data(name: str, **fields: Any) -> ml_collections.ConfigDict:
  """A data set; `source` '' looks for its files in $SEG_DATA_DIR."""
  return block(**{'name': name, 'source': '', **fields})


# A ResNet of three short blocks, stride 16; for a CPU.
SMALL_RESNET = {
  'name': 'resnet',
  'blocks': (1, 1, 1),
  'width': 16,
  'num_groups': 8,
}


# A hybrid ViT and a BiT of the same kind as the public ones; for a CPU.
SMALL_VIT = {
  'name': 'hybrid_vit',
  'blocks': (1, 1, 1),
  'width': 16,
  'num_groups': 8,
  'hidden_size': 64,
  'num_layers': 2,
  'num_heads': 4,
  'mlp_dim': 128,
  'grid': (0, 0),
  'dropout_rate': 0.0,
}
_SMALL_BIT = {
  'name': 'bit',
  'blocks': (1, 1, 1, 1),
  'width': 16,
  'num_groups': 8,
}
_SMALL_DECODER = {'widths': (64, 48, 32, 16, 16), 'num_groups': 8}


def small_network(
  encoder: dict[str, Any], width: int = 1
) -> ml_collections.ConfigDict:
  """A network for a CPU: an encoder and a narrow U-Net decoder.

  Args:
    encoder: of stride 16, or less if it says so.
    width: factor of the decoder's channels.
  """
  decoder = dict(_SMALL_DECODER)
  if encoder.get('output_stride') == 8:
    decoder['widths'] = decoder['widths'][1:]
  return block(
    encoder=encoder,
    decoder={'name': 'unet', 'width_multiplier': width, **decoder},
    dtype='float32',
    remat=False,
  )


def ddep_network(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """The networks of the paper: TransUNet, or a U-Net on BiT-M R50x1."""
  hybrid_vit = {
    'name': 'hybrid_vit',
    'blocks': (3, 4, 9),
    'hidden_size': 768,
    'num_layers': 12,
    'num_heads': 12,
    'mlp_dim': 3072,
    'dropout_rate': 0.1,
    'use_cls_token': True,
    'grid': (0, 0),  # that of the images of each stage
  }
  bit = {'name': 'bit', 'blocks': (3, 4, 6, 3)}
  return block(
    encoder={'transunet': hybrid_vit, 'unet': bit}[options.network],
    decoder={
      'name': 'unet',
      'widths': (1024, 512, 256, 128, 64),
      'width_multiplier': options.width,
      'layout': options.layout,
      'num_groups': 32,
      'conditional': options.conditional,
    },
    dtype='bfloat16',  # of activations
    remat=False,
  )


def noise(options: SimpleNamespace, gamma: float) -> ml_collections.ConfigDict:
  """The noise of denoising.

  Args:
    options: with those of `NOISE`.
    gamma: where no strength was given.

  Raises:
    ValueError: the range is not LEAST-LARGEST.
  """
  given = options.gamma or options.sigma or options.gamma_range
  return block(
    kind=options.noise,
    gamma=options.gamma if given else gamma,
    sigma=options.sigma,
    gamma_range=_range(options.gamma_range),
    draw=options.draw,
    num_steps=options.noise_steps,
    target=options.target,
  )


def _range(text: str) -> tuple[float, float]:
  if not text:
    return 0.0, 0.0
  least, _, largest = text.partition('-')
  try:
    return float(least), float(largest)
  except ValueError:
    raise ValueError(
      f'config option gamma_range={text}: expected LEAST-LARGEST, as 0.9-0.95'
    ) from None


def operation(**fields: Any) -> ml_collections.ConfigDict:
  """How a run is carried out; nothing here changes what it computes."""
  return block(
    **{
      'log_every': 50,  # steps
      'save_every': 500,  # steps
      'fsdp': 1,  # devices that share one copy of the large parameters
      'record_ids': False,  # write the ids of each step's images
      'reading': {'threads': 2, 'buffered': 4, 'workers': 0},
      **fields,
    }
  )


def protocol(**fields: Any) -> ml_collections.ConfigDict:
  """How the network looks at an image when it is reported: whole, once."""
  return block(
    **{
      'tiling': 'whole',  # or 'halves', 'sliding_window'
      'window': (0, 0),  # height, width
      'stride': (0, 0),  # of windows
      'padding_mode': 'reflection',  # or 'mean': around images that are smaller
      'scales': (1.0,),
      'flip': False,  # average with the mirrored image
      'average': 'probs',  # or 'logits'
      'antialias': False,  # blur images before shrinking them
      'align_corners': False,  # when scores are enlarged
      'size_multiple': 0,  # sides are multiples of it; 0: the network's stride
      **fields,
    }
  )


def single_scale() -> ml_collections.ConfigDict:
  """Windows of 512 with stride 341 over the image as it is."""
  return protocol(
    tiling='sliding_window',
    window=(512, 512),
    stride=(341, 341),
    size_multiple=128,
  )


def multi_scale() -> ml_collections.ConfigDict:
  """The same at six scales, each averaged with its mirror image."""
  return protocol(
    **{
      **single_scale(),
      'scales': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
      'flip': True,
    }
  )


def flipped_halves() -> ml_collections.ConfigDict:
  """Left and right half, each averaged with its mirror image."""
  return protocol(tiling='halves', flip=True)


def adam(learning_rate: float, **fields: Any) -> ml_collections.ConfigDict:
  """Adam with a cosine schedule to 0."""
  return block(
    **{
      'name': 'adam',
      'learning_rate': learning_rate,
      'schedule': 'cosine',
      'warmup_steps': 0,
      'weight_decay': 0.0,
      'clip_norm': 1.0,
      **fields,
    }
  )


def recipe(
  batch_size: int,
  num_steps: int,
  optimizer: ml_collections.ConfigDict,
  evaluate_every: int = 0,
) -> ml_collections.ConfigDict:
  """Batch, length and optimizer of a training."""
  return block(
    batch_size=batch_size,
    num_steps=num_steps,
    optimizer=optimizer,
    accumulate=1,
    evaluate_every=evaluate_every,  # steps; 0: after the last one only
    seed=0,  # of fresh parameters, random draws, order of the images
  )


def steps(epochs: float, images: int, batch_size: int) -> int:
  """The steps of some epochs, the last one begun.

  >>> steps(100, 12_743_321, 512)
  2488930
  """
  return math.ceil(epochs * images / batch_size)


# Images that are denoised; `number` is how many there are.
_PRETRAINING = {
  'imagenet21k': {
    'data': {'name': 'imagenet/21k'},
    'split': 'train',
    'val_split': 'train',  # There is no other.
    'number': 12_743_321,
  },
  'voc': {
    'data': {'name': 'voc2012'},
    'split': 'train_aug',
    'val_split': 'val',
    'number': 10_582,
  },
  'ade20k': {
    'data': {'name': 'ade20k'},
    'split': 'train',
    'val_split': 'val',
    'number': 20_210,
  },
  'cityscapes': {
    'data': {'name': 'cityscapes/fine'},
    'split': 'train',
    'also': ({'data': {'name': 'cityscapes/coarse'}, 'split': 'train_extra'},),
    'val_split': 'val',
    'number': 2_975 + 19_998,
  },
}


def pretraining(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """Denoising as in the paper: 512 images of 224 pixels, Adam, cosine."""
  images = dict(_PRETRAINING[options.pretrain])
  number, batch_size = images.pop('number'), 512
  num_steps = options.pretrain_steps or (
    steps(options.pretrain_epochs, number, batch_size)
    if options.pretrain_epochs
    # Small sets are matched in steps.
    else steps(100, _PRETRAINING['imagenet21k']['number'], batch_size)
  )
  lr = options.pretrain_lr or (1e-4 if options.width == 2 else 6e-5)
  return block(
    **{**images, 'data': data(**images['data'])},
    noise=noise(options, gamma=0.95),
    crop={'name': 'inception', 'size': (224, 224), 'area': (0.3, 1.0)},
    flips=('horizontal',),
    recipe=recipe(
      *(batch_size, num_steps),
      adam(lr, warmup_steps=num_steps // 100),
      evaluate_every=10_000,
    ),
  )


def tuning(
  options: SimpleNamespace, images: int, batch_size: int
) -> ml_collections.ConfigDict:
  """The recipe of fine-tuning on the labeled ones of so many images.

  Warms up for a hundredth of the steps: one epoch of 100.

  Raises:
    ValueError: a list of unknown length is labeled, and `steps` is not given.
  """
  if options.list and not options.steps:
    raise ValueError(
      f'config option list={options.list}: expected steps=… as well, since '
      'epochs of a list have no length here'
    )
  labeled = options.labels or max(
    1, math.floor(images * (options.fraction or 1.0) + 0.5)
  )
  num_steps = options.steps or max(
    options.min_steps, steps(options.epochs, labeled, batch_size)
  )
  optimizer = adam(
    options.lr,
    warmup_steps=num_steps // 100,
    weight_decay=options.weight_decay,
    weight_decay_mode=options.wd_mode,
  )
  return recipe(batch_size, num_steps, optimizer, evaluate_every=2_000)


def subset(options: SimpleNamespace, labels: int = 0) -> Any:
  """The labeled images of a run: `labels`, `fraction` or `list`.

  Args:
    options: with these, seed and run.
    labels: where neither was given; 0 means all.
  """
  given = options.labels or options.fraction or options.list
  return block(
    labels=options.labels if given else labels,
    fraction=options.fraction or 1.0,
    seed=options.seed,
    run=options.run,
    nested=True,  # fewer images are among more of the same seed and run
    list=options.list,
    held_out=0,  # images set aside, to decide on a learning rate
  )


# What each kind of pretraining runs, and what the stages start from.
_INITS = {
  'ddep': {
    'stages': ('classify', 'denoise', 'finetune', 'evaluate'),
    'denoise': ('classify', ('encoder',), ('decoder', 'heads')),
    'finetune': ('denoise', ('encoder', 'decoder')),
  },
  'dep': {
    'stages': ('denoise', 'finetune', 'evaluate'),
    'denoise': ('', (), ('encoder', 'decoder', 'heads')),
    'finetune': ('denoise', ('encoder', 'decoder')),
  },
  'supervised': {
    'stages': ('classify', 'finetune', 'evaluate'),
    'denoise': ('', (), ('decoder', 'heads')),
    'finetune': ('classify', ('encoder',)),
  },
  'none': {
    'stages': ('finetune', 'evaluate'),
    'denoise': ('', (), ('decoder', 'heads')),
    'finetune': ('', ()),
  },
}


def set_init(config: ml_collections.ConfigDict, init: str) -> None:
  """Wires the stages of DDeP for a kind of pretraining.

  ddep: encoder from classification, decoder from denoising. dep: both from
  denoising. supervised: encoder from classification, decoder random. none: all
  random.
  """
  wiring = _INITS[init]
  config.stages = wiring['stages']
  path, take, trained = wiring['denoise']
  config.denoise.start = block(path=path, take=take)
  config.denoise.trained = trained
  path, take = wiring['finetune']
  config.finetune.start = block(path=path, take=take)


def set_seeds(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """`seed` is that of fine-tuning, `pretrain_seed` of what comes before.

  Runs that differ in `seed` only can so share their pretraining.
  """
  config.finetune.recipe.seed = options.seed
  for name in ('classify', 'denoise'):
    if name in config:
      config[name].recipe.seed = options.pretrain_seed


def set_encoder(config: ml_collections.ConfigDict, path: str) -> None:
  """Takes the encoder from a finished run's stage or a weight file instead.

  The stage `classify` falls away.

  Raises:
    ValueError: nothing in this experiment starts from a classifier.
  """
  if 'classify' not in config.stages:
    raise ValueError(
      f'config option encoder={path}: nothing starts from an encoder here, '
      'expected init=ddep or init=supervised'
    )
  config.stages = tuple(s for s in config.stages if s != 'classify')
  for name in ('denoise', 'finetune'):
    if config[name].start.path == 'classify':
      config[name].start.path = path


def set_held_out(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Sets training images aside, and follows and reports those as well."""
  if options.held_out:
    config.finetune.subset.held_out = options.held_out
    config.finetune.val_split = 'held_out'
    config.evaluate.splits = ('held_out', *config.evaluate.splits)


def shapes_classifier() -> ml_collections.ConfigDict:
  """Classification of single shapes, to train a small encoder."""
  return block(
    data=data('shapes/single'),
    split='train',
    val_split='val',
    kind='softmax',
    crop={'name': 'inception', 'size': (64, 64), 'area': (0.6, 1.0)},
    flips=('horizontal', 'vertical'),
    recipe=recipe(32, 3400, adam(2e-3, warmup_steps=100), 1000),
  )


def put_on_shapes(config: ml_collections.ConfigDict) -> None:
  """Makes an experiment of the paper small, and generates its images.

  What the options chose stays: stages, noise, layout, protocol; but 100 images
  are labeled. A classifier is trained in place of the public weights.
  """
  small = {'hybrid_vit': SMALL_VIT, 'bit': _SMALL_BIT}
  config.network.encoder = block(**small[config.network.encoder.name])
  config.network.decoder.update(_SMALL_DECODER)
  config.network.dtype = 'float32'
  config.classify = shapes_classifier()
  config.denoise.update(split='unlabeled', also=(), val_split='val')
  config.finetune.subset.update(labels=100, fraction=1.0, list='')
  config.finetune.subset.held_out = min(config.finetune.subset.held_out, 100)
  for name, batch_size in (('denoise', 16), ('finetune', 8)):
    config[name].data = data('shapes/scenes')
    config[name].crop.size = (64, 64)
    config[name].recipe.batch_size = batch_size
  config.evaluate.batch_size = 40
  if config.evaluate.protocol.tiling == 'sliding_window':
    config.evaluate.protocol.update(
      window=(64, 64), stride=(43, 43), size_multiple=64
    )
  config.without_files = ''


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Cuts every stage to 60 steps; all else stays as it is."""
  for name in ('classify', 'denoise', 'finetune'):
    if name not in config:
      continue
    recipe = config[name].recipe
    recipe.num_steps = 60
    recipe.evaluate_every = 30 if recipe.evaluate_every else 0
    recipe.optimizer.warmup_steps = 5
  config.operation.update(log_every=10, save_every=20)


def sgd(learning_rate: float, **fields: Any) -> ml_collections.ConfigDict:
  """SGD with momentum and a polynomial schedule to 0, as torch has it."""
  return block(
    **{
      'name': 'sgd',
      'learning_rate': learning_rate,
      'schedule': 'poly',
      'poly_power': 0.9,
      'momentum': 0.9,
      'weight_decay': 1e-4,
      'weight_decay_mode': 'l2',
      'warmup_steps': 0,
      'clip_norm': 0.0,
      'groups': (),
      **fields,
    }
  )
