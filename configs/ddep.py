"""Parts of a config that the experiments of DDeP share.

`paper` builds an experiment of the paper, `small` one for a CPU. Where the
paper is silent, the values are those of public code of its authors.
"""

import math
from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import networks, pretrained, shared
from configs import options as options_lib

# Options of the noise.
NOISE = {
  'noise': ['scaled', 'simple'],  # Eq. 5 or Eq. 1
  # Images that the equation is applied to: in [-1, 1], or in [0, 1]; auto: as
  # in the public code, symmetric for scaled and unit for simple.
  'noise_space': ['auto', 'symmetric', 'unit'],
  'gamma': 0.0,  # γ of Eq. 5; 0: the config's own
  'sigma': 0.0,  # σ of Eq. 1, in the noise space; in place of gamma
  'gamma_range': '',  # LEAST-LARGEST γ, drawn for each image; in place of gamma
  'draw': ['uniform', 'linear', 'multiplicative'],  # of γ from the range
  'noise_steps': 0,  # time steps of 'linear' and 'multiplicative'
  'target': ['eps', 'x', 'eps_scaled'],  # of the prediction
  # Strides of the skips that denoising sees, written as `skips`. The others are
  # zeros there; fine-tuning has them.
  'shown_skips': 'all',
}
# Options of the experiments of the paper.
PAPER = {
  'init': ['ddep', 'dep', 'supervised', 'none'],
  'network': ['transunet', 'unet'],  # encoder: hybrid ViT or BiT-M R50x1
  'encoder': '',  # a finished stage or a weight file; '': public weights
  'width': 1,  # factor of the decoder's channels
  'skips': 'all',  # strides whose maps reach the decoder; none, coarse, 16-8
  'layout': ['A', 'A1', 'B'],  # of the decoder of a transunet
  'conditional': False,  # condition the decoder on the noise level
  'pretrain': [
    'imagenet21k',
    'voc',
    'ade20k',
    'cityscapes',
  ],  # unlabeled images
  'pretrain_epochs': 0.0,  # 0: as many steps as 100 epochs of ImageNet-21k
  'pretrain_steps': 0,  # in place of epochs
  'pretrain_lr': 0.0,  # 0: 6e-5, and 1e-4 for width 2
  'pretrain_seed': 0,
  **NOISE,
  **shared.LABELED,  # `list` needs `steps`
  'held_out': 0,  # training images to choose hyperparameters on, without val
  'lr': 1e-4,  # of fine-tuning
  'weight_decay': 1e-4,
  'wd_mode': ['decoupled', 'l2'],
  'epochs': 100.0,  # of fine-tuning
  'min_steps': 4000,  # of fine-tuning, however few the images
  'steps': 0,  # in place of epochs
  'tiny': False,  # the same code with small networks on generated images
}
# Options of the experiments for a CPU.
SMALL = {
  **shared.LABELED,
  'pretrain_seed': 0,  # of the stages before fine-tuning
  'lr': 0.0,  # of fine-tuning; 0: the config's own
  # Factor of the encoder's rate in fine-tuning; 0: the config's own.
  'encoder_lr': 0.0,
  'tiny': False,  # 60 steps a stage
}

# Options of the experiments on photographs; init=auto is ddep if an encoder is
# pretrained, otherwise dep.
PHOTO = {
  'init': ['auto', 'ddep', 'dep', 'supervised', 'none'],
  **NOISE,
  **SMALL,
  **shared.WEIGHTED,
  **pretrained.OPTIONS,
}
_WHOLE = ('encoder', 'decoder', 'heads')
# By option `init`: the stages, the start of denoising and of fine-tuning (a
# stage and the parts taken from it), and the parts that denoising trains.
_INITS = {
  'ddep': {
    'stages': ('classify', 'denoise', 'finetune', 'evaluate'),
    'denoise': {'start': {'path': 'classify', 'take': ('encoder',)}},
    'finetune': {'start': {'path': 'denoise', 'take': ('encoder', 'decoder')}},
  },
  'dep': {
    'stages': ('denoise', 'finetune', 'evaluate'),
    'denoise': {'trained': _WHOLE},
    'finetune': {'start': {'path': 'denoise', 'take': ('encoder', 'decoder')}},
  },
  'supervised': {
    'stages': ('classify', 'finetune', 'evaluate'),
    'finetune': {'start': {'path': 'classify', 'take': ('encoder',)}},
  },
  'none': {'stages': ('finetune', 'evaluate')},
}

_IMAGENET_IMAGES = 12_743_321
# By option `pretrain`: the unlabeled images and their number.
_UNLABELED = {
  'imagenet21k': (
    # There is no split but train.
    {'data': {'name': 'imagenet/21k'}, 'val_split': 'train'},
    _IMAGENET_IMAGES,
  ),
  'voc': ({'data': {'name': 'voc2012'}, 'split': 'train_aug'}, 10_582),
  'ade20k': ({'data': {'name': 'ade20k'}}, 20_210),
  'cityscapes': (
    {
      'data': {'name': 'cityscapes/fine'},
      'also': (
        {'data': {'name': 'cityscapes/coarse'}, 'split': 'train_extra'},
      ),
    },
    2_975 + 19_998,
  ),
}

# Evaluation protocols. DDeP averages probabilities, not logits.
WHOLE_IMAGE = {'average': 'probs'}
HALVES = {'tiling': 'halves', 'flip': True, 'average': 'probs'}
_WINDOWS = {
  'tiling': 'sliding_window',
  'window': (512, 512),
  'stride': (341, 341),
  'size_multiple': 128,
  'average': 'probs',
}
# By option `scales`.
_PROTOCOLS = {
  'multi': {
    **_WINDOWS,
    'scales': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    'flip': True,
  },
  'single': _WINDOWS,  # of Table 7
}


def paper_with_windows(
  argument: str | None, data: str, num_images: int
) -> ml_collections.ConfigDict:
  """Builds an experiment of the paper that is evaluated by sliding windows.

  Args:
    argument: options as on a command line: those of `PAPER`, and `scales`.
    data: name of the data set for fine-tuning.
    num_images: number of training images of the data set.

  Raises:
    ValueError: options are unknown or contradict each other.
  """
  options = options_lib.parse(argument, **PAPER, scales=[*_PROTOCOLS])
  return paper(options, data, num_images, 512, 32, _PROTOCOLS[options.scales])


def paper(
  options: SimpleNamespace,
  data: str,
  num_images: int,
  size: int,
  batch_size: int,
  protocol: dict[str, Any],
) -> ml_collections.ConfigDict:
  """Builds an experiment of the paper.

  Args:
    options: parsed options, among them those of `PAPER`.
    data: name of the data set for fine-tuning.
    num_images: number of training images of the data set.
    size: side of the square crops of fine-tuning, in pixels.
    batch_size: number of images in a batch of fine-tuning.
    protocol: block of the evaluation protocol.

  Raises:
    ValueError: options contradict each other.
  """
  config = shared.block(
    program='ddep.main',
    without_files=shared.TINY_ADVICE,
    network=networks.unet(
      options.network,
      width_multiplier=options.width,
      skips=options.skips,
      layout=options.layout,
      conditional=options.conditional,
    ),
    denoise=_denoise(options),
    finetune={
      'data': {'name': data},
      'subset': shared.subset(options),
      **shared.class_weights(options),
      'crop': {'name': 'inception', 'size': (size, size)},
      'recipe': _finetune_recipe(options, num_images, batch_size),
    },
    evaluate={'protocol': protocol},
    operation={
      'log_every': 100,
      'save_every': 1000,
      'reading': {'threads': 16, 'buffered': 16},
    },
  )
  _set_stages(config, options)
  if options.held_out:
    config.finetune.subset.held_out = options.held_out
    config.finetune.val_split = 'held_out'
    config.evaluate.splits = ('held_out', 'val')
  if options.tiny:
    _generate_images(config)
    _shorten(config)
  if options.encoder:
    _set_encoder(config, options.encoder)
  elif 'classify' in config.stages and not options.tiny:
    _set_encoder(config, networks.WEIGHTS[options.network])
  return config


def small(
  options: SimpleNamespace,
  encoder: str = '',
  encoder_lr: float = 1.0,
  **blocks: Any,
) -> ml_collections.ConfigDict:
  """Builds an experiment for a CPU.

  Args:
    options: parsed options, among them those of `SMALL`, and `init`.
    encoder: a finished stage or a weight file, in place of `classify`.
    encoder_lr: factor of the encoder's learning rate in fine-tuning if no
      option gives it.
    **blocks: blocks of the config: network, classify, denoise, finetune,
      evaluate.

  Raises:
    ValueError: options contradict each other.
  """
  config = shared.block(program='ddep.main', **blocks)
  config.finetune.update(shared.block(**shared.class_weights(options)))
  config.finetune.recipe.optimizer.update(
    shared.encoder_group(options, config.network, encoder_lr)
  )
  _set_stages(config, options)
  if encoder:
    _set_encoder(config, encoder)
  if options.tiny:
    _shorten(config)
  return config


def photo_network(options: SimpleNamespace) -> pretrained.Network:
  """Chooses the network for photographs, and replaces init='auto'.

  Args:
    options: parsed options, among them those of `PHOTO`; `init` is changed.

  Raises:
    ValueError: the network is unknown, or `network` is auto and `encoder` a
      weight file.
  """
  network = pretrained.choose_network(
    options, takes_encoder=options.init not in ('dep', 'none')
  )
  if options.init == 'auto':
    options.init = 'ddep' if network.encoder else 'dep'
  return network


def photo_pretraining(
  data: dict[str, Any],
  crop: dict[str, Any],
  noise: dict[str, Any],
  also: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
  """Builds the stages before fine-tuning on a small set of photographs.

  Args:
    data: the photographs, with masks.
    crop: crop of denoising; classification has one of larger areas.
    noise: noise of denoising.
    also: further images that are denoised: data sets and splits.
  """
  return {
    'classify': {
      'data': data,
      'kind': 'sigmoid',  # an image has several classes
      'crop': {**crop, 'area': (0.1, 1.0)},
      'recipe': shared.recipe(16, 800, shared.adam(1e-3, warmup_steps=50), 400),
    },
    'denoise': {
      'data': data,
      'also': also,
      'noise': noise,
      'crop': crop,
      'recipe': shared.recipe(8, 600, shared.adam(2e-3, warmup_steps=50), 200),
    },
  }


def noise(options: SimpleNamespace, gamma: float) -> dict[str, Any]:
  """Builds the block `noise` of denoising pretraining.

  Args:
    options: parsed options, among them those of `NOISE`.
    gamma: γ if no option gives a strength.

  Raises:
    ValueError: `gamma_range` is not of the form LEAST-LARGEST.
  """
  strength = {
    name: getattr(options, name)
    for name in ('gamma', 'sigma')
    if getattr(options, name)
  }
  if options.gamma_range:
    strength['gamma_range'] = shared.parse_range(
      'gamma_range', options.gamma_range, '0.9-0.95'
    )
  return {
    'kind': options.noise,
    'noise_space': options.noise_space,
    'draw': options.draw,
    'num_steps': options.noise_steps,
    'target': options.target,
    **(strength or {'gamma': gamma}),
  }


def shapes_classifier(data: str = 'single', side: int = 64) -> dict[str, Any]:
  """Builds the training of a small encoder on drawn images of one object.

  Args:
    data: name of the variant of `shapes`.
    side: side of crops, in pixels.
  """
  return {
    'data': {'name': f'shapes/{data}'},
    'kind': 'softmax',
    'crop': {'name': 'inception', 'size': (side, side), 'area': (0.6, 1.0)},
    'flips': ('horizontal', 'vertical'),
    'recipe': shared.recipe(
      32, 3400, shared.adam(2e-3, warmup_steps=100), 1000
    ),
  }


def _denoise(options: SimpleNamespace) -> dict[str, Any]:
  """Builds denoising pretraining: 512 images of 224 pixels a step."""
  images, num_images = _UNLABELED[options.pretrain]
  batch_size = 512
  # As many steps for small data sets as for ImageNet.
  num_steps = shared.num_steps(100, _IMAGENET_IMAGES, batch_size)
  if options.pretrain_epochs:
    num_steps = shared.num_steps(
      options.pretrain_epochs, num_images, batch_size
    )
  num_steps = options.pretrain_steps or num_steps
  learning_rate = options.pretrain_lr or (1e-4 if options.width == 2 else 6e-5)
  optimizer = shared.adam(learning_rate, warmup_steps=num_steps // 100)
  return {
    **images,
    'noise': noise(options, gamma=0.95),
    'crop': {'name': 'inception', 'size': (224, 224)},
    'recipe': shared.recipe(batch_size, num_steps, optimizer, 10_000),
  }


def _finetune_recipe(
  options: SimpleNamespace, num_images: int, batch_size: int
) -> dict[str, Any]:
  """Builds batch, length and optimizer of fine-tuning.

  Raises:
    ValueError: the labeled images are a list of unknown length, and `steps` is
      not given.
  """
  if options.list and not options.steps:
    raise ValueError(
      f'config option list={options.list}: expected steps=… as well, since '
      'the number of images, and so the length of an epoch, is unknown'
    )
  labeled = options.labels or max(
    1, math.floor(num_images * (options.fraction or 1.0) + 0.5)
  )
  num_steps = options.steps or max(
    options.min_steps, shared.num_steps(options.epochs, labeled, batch_size)
  )
  optimizer = shared.adam(
    options.lr,
    warmup_steps=num_steps // 100,  # one epoch of 100
    weight_decay=options.weight_decay,
    weight_decay_mode=options.wd_mode,
  )
  return shared.recipe(batch_size, num_steps, optimizer, 2_000)


def _set_stages(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Sets stages, initial weights and seeds by the options.

  Runs that differ only in `seed` share their pretraining.

  Raises:
    ValueError: `shown_skips` has another form, or the decoder has no skips.
  """
  config.update(_INITS[options.init])
  _set_shown_skips(config, options.shown_skips)
  config.finetune.recipe.seed = options.seed
  for name in {'classify', 'denoise'} & {*config}:
    config[name].recipe.seed = options.pretrain_seed


def _set_shown_skips(config: ml_collections.ConfigDict, text: str) -> None:
  """Sets the skips that denoising sees, by the text of `shown_skips`."""
  shown = networks.parse_skips(text, 'shown_skips')
  if shown is True:
    return
  decoder = config.network.decoder.name
  if decoder != 'unet':
    raise ValueError(
      f'config option shown_skips={text}: expected a network with the decoder '
      f'unet, as it hides skips of a U-Net, got {decoder}'
    )
  config.denoise.shown_skips = shown


def _set_encoder(config: ml_collections.ConfigDict, path: str) -> None:
  """Takes the encoder from elsewhere, which removes the stage `classify`.

  Args:
    config: whose stages are set.
    path: a finished stage, or a weight file.

  Raises:
    ValueError: no stage starts from `classify`.
  """
  if 'classify' not in config.stages:
    raise ValueError(
      f'config option encoder={path}: nothing starts from an encoder here, '
      'expected init=ddep or init=supervised'
    )
  config.stages = tuple(name for name in config.stages if name != 'classify')
  for name in ('denoise', 'finetune'):
    if 'start' in config[name] and config[name].start.path == 'classify':
      config[name].start.path = path


def _generate_images(config: ml_collections.ConfigDict) -> None:
  """Replaces images and networks of the paper by generated and small ones.

  Stages, noise, layout and protocol stay as the options chose them; 100 images
  are labeled. A classifier is trained in place of the public weights.
  """
  small_encoders = {'hybrid_vit': networks.SMALL_VIT, 'bit': networks.SMALL_BIT}
  config.network.encoder = shared.block(
    **small_encoders[config.network.encoder.name]
  )
  config.network.decoder.update(networks.SMALL_DECODER)
  config.network.dtype = 'float32'
  config.classify = shared.block(**shapes_classifier())
  config.denoise.update(split='unlabeled', also=(), val_split='val')
  subset = config.finetune.subset
  subset.update(labels=100, fraction=1.0, list='')
  if 'held_out' in subset:
    subset.held_out = min(subset.held_out, 100)
  for name, batch_size in (('denoise', 16), ('finetune', 8)):
    config[name].data = shared.block(name='shapes/scenes')
    config[name].crop.size = (64, 64)
    config[name].recipe.batch_size = batch_size
  config.evaluate.batch_size = 40
  if config.evaluate.protocol.tiling == 'sliding_window':
    config.evaluate.protocol.update(
      window=(64, 64), stride=(43, 43), size_multiple=64
    )
  config.without_files = ''


def _shorten(config: ml_collections.ConfigDict) -> None:
  """Cuts every stage to 60 steps."""
  for name in {'classify', 'denoise', 'finetune'} & {*config}:
    recipe = config[name].recipe
    recipe.update(num_steps=60, evaluate_every=30)
    recipe.optimizer.warmup_steps = 5
  config.update(operation={'log_every': 10, 'save_every': 20})
