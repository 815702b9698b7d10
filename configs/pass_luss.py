"""Blocks that PASS's experiments share, as functions; and their options."""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import common

# Of each size: images of train, of representation learning, and published
# settings (spec §2.1, §3.1, §3.3).
SIZES = {
  50: {'train': 64_431, 'seen': 64_431},
  300: {'train': 384_862, 'seen': 384_862},
  919: {'train': 1_183_322, 'seen': 1_281_167},  # All of ImageNet.
}

# An experiment of the paper, as options.
PASS = {
  'branch': ['swav', 'pixpro'],  # PASSs or PASSp
  'clusters': True,  # SwAV's loss; False leaves PixelPro alone
  'p2p': ['regression', 'clustering', 'contrastive', 'off'],
  'project': True,  # pixels before P2P
  'd2s': ['auto', '3', '32', 'off'],  # stages; auto: 3, of pixpro 3 and 2
  'd2s_targets': ['deep', 'own'],
  'd2s_view': ['other', 'same'],
  'combine': ['mean', 'sum'],  # of SwAV's and D2S's losses: code or paper
  'lr': 0.0,  # of representation learning; 0: what stands below
  'seed': 0,
  'encoder': '',  # a finished run's stage, or a weight file, to start from
  'tiny': False,  # the same code, small, on generated images
}


def learn(
  options: SimpleNamespace,
  queue: int,
  queue_from_step: int,
  frozen_steps: int,
  grid: int = 7,
  **of_pixpro: Any,
) -> ml_collections.ConfigDict:
  """What representation learning learns from.

  Args:
    options: with those of `PASS`.
    queue: embeddings of each large view, over all devices.
    queue_from_step: the queue fills from here on.
    frozen_steps: steps before which prototypes do not learn.
    grid: points a side of the overlap.
    **of_pixpro: fields of PixelPro that differ.

  Raises:
    ValueError: nothing is left to learn from, or D2S without clusters.
  """
  pixpro = options.branch == 'pixpro'
  if not options.clusters and not pixpro:
    raise ValueError(
      'config option clusters=false: branch=swav has nothing else to learn '
      'from, expected it with branch=pixpro'
    )
  stages = {
    'auto': (3, 2) if pixpro else (3,),
    '3': (3,),
    '32': (3, 2),
    'off': (),
  }[options.d2s if options.clusters else 'off']
  if not options.clusters and options.d2s not in ('auto', 'off'):
    raise ValueError(
      f'config option d2s={options.d2s}: needs clusters=true, whose '
      'assignments teach the shallow stages'
    )
  clusters = None
  if options.clusters:
    clusters = {
      'temperature': 0.1,
      'epsilon': 0.05,
      'sinkhorn_iterations': 3,
      'queue': queue,
      'queue_from_step': queue_from_step,
      'frozen_steps': frozen_steps,
    }
  return common.block(
    clusters=clusters,
    alignment=None
    if options.p2p == 'off'
    else {
      'kind': options.p2p,
      'grid': grid,
      'project': options.project,
      'temperature': 0.2,
    },
    shallow={
      'stages': stages,
      'targets': options.d2s_targets,
      'view': options.d2s_view,
    },
    pixpro={
      'hidden': 4096,
      'size': 256,
      'power': 2.0,
      'distance': 0.7,
      'decay': 0.99,
      **of_pixpro,
    }
    if pixpro
    else None,
    combine=options.combine,
  )


def views(
  name: str, count: int, size: int, area: tuple[float, float]
) -> dict[str, Any]:
  """A group of views, resized as by Pillow."""
  return {
    'name': name,
    'count': count,
    'size': (size, size),
    'area': area,
    'antialias': True,
  }


def jitter(strength: float = 1.0, **fields: Any) -> dict[str, Any]:
  """Changes of colour; SwAV's at strength 1."""
  return {
    'jitter': 0.8,
    'brightness': 0.8 * strength,
    'contrast': 0.8 * strength,
    'saturation': 0.8 * strength,
    'hue': 0.2 * strength,
    'grey': 0.2,
    'blur': 0.5,
    'sigma': (0.1, 2.0),
    **fields,
  }


def colours(branch: str) -> ml_collections.ConfigDict:
  """SwAV's, the same for all views; or BYOL's, as PixelPro has them."""
  if branch == 'swav':
    every = jitter()
    return common.block(large=(every, every), small=every, red_deviation=0.228)
  first = jitter(0.5, saturation=0.2, hue=0.1, blur=1.0)
  second = {**first, 'blur': 0.1, 'solarize': 0.2}
  return common.block(large=(first, second), small=first, red_deviation=0.229)


def larc(learning_rate: float, **fields: Any) -> ml_collections.ConfigDict:
  """SGD in LARC, with a cosine schedule to a thousandth."""
  return common.block(
    **{
      'name': 'sgd',
      'adaptation': 'larc',
      'trust': 0.001,
      'learning_rate': learning_rate,
      'final_learning_rate': 0.001 * learning_rate,
      'schedule': 'cosine',
      'momentum': 0.9,
      'weight_decay': 1e-6,
      'weight_decay_mode': 'l2',
      'warmup_steps': 0,
      **fields,
    }
  )


def lars(
  learning_rate: float, warmup_steps: int, **fields: Any
) -> ml_collections.ConfigDict:
  """SGD in LARS, as PixelPro has it."""
  return larc(
    learning_rate,
    **{
      'adaptation': 'lars',
      'final_learning_rate': 1e-6,
      'weight_decay': 1e-5,
      'warmup_steps': warmup_steps,
      'warmup_start': 0.01,
      **fields,
    },
  )


def resnet(depth: int) -> ml_collections.ConfigDict:
  """ResNet-18 or -50, output stride 32."""
  kinds = {18: ('basic', (2, 2, 2, 2)), 50: ('bottleneck', (3, 4, 6, 3))}
  unit, blocks = kinds[depth]
  return common.block(
    encoder={
      'name': 'dilated_resnet',
      'unit': unit,
      'blocks': blocks,
      'stem': 'plain',
      'output_stride': 32,
      'zero_init': False,
    },
    decoder=None,
    dtype='bfloat16',
    remat=False,
  )


# Its maps of images of 64 pixels: 32, 32, 16, 8, 8 a side.
SMALL_RESNET = {
  'name': 'dilated_resnet',
  'unit': 'basic',
  'blocks': (1, 1, 1, 1),
  'width': 16,
  'stem': 'small',
  'output_stride': 8,
  'zero_init': False,
}


def small_network() -> ml_collections.ConfigDict:
  """An encoder for a CPU."""
  return common.block(
    encoder=SMALL_RESNET, decoder=None, dtype='float32', remat=False
  )


def imagenet(options: SimpleNamespace, size: int) -> ml_collections.ConfigDict:
  """The paper's experiment on ImageNet-S of this many classes.

  Args:
    options: with those of `PASS`.
    size: 50, 300 or 919.
  """
  config = common.block(
    program='pass_luss.main', data_dir='', without_files=common.TINY
  )
  config.stages = ('represent',)
  config.network = resnet(18 if size == 50 else 50)
  config.represent = represent(options, size)
  config.operation = common.operation(
    log_every=50,
    save_every=1000,
    reading={'threads': 32, 'buffered': 16, 'workers': 0},
  )
  if options.tiny:
    put_on_shapes(config, options)
  return config


def represent(options: SimpleNamespace, size: int) -> ml_collections.ConfigDict:
  """Representation learning on ImageNet-S of this many classes."""
  batch = 256
  # The last batch of an epoch, not full, is left out.
  steps_per_epoch = SIZES[size]['seen'] // batch
  epochs = 200 if size == 50 else 100
  swav = options.branch == 'swav'
  small = size == 50 and swav
  base = options.lr or (0.6 if swav else 1.0)
  optimizer = (
    larc(base) if swav else lars(base, warmup_steps=5 * steps_per_epoch)
  )
  block = common.block(
    data=common.data('imagenet/1k' if size == 919 else f'imagenet_s/{size}'),
    split='train',
    learn=learn(
      options,
      queue=2048 if size == 50 else 3840,
      queue_from_step=15 * steps_per_epoch,
      frozen_steps=1001 if size == 50 else 5005,
    ),
    widths={
      'hidden': 512 if size == 50 else 2048,
      'embedding': 128,
      'prototypes': 500 if size == 50 else 3000,
    },
    large=views('large', 2, 224, (0.14 if small else 0.08, 1.0)),
    small=views('small', 6, 96, (0.05, 0.14)) if small else None,
    colours=colours(options.branch),
    recipe=common.recipe(batch, epochs * steps_per_epoch, optimizer, 5_000),
  )
  block.start = start(options)
  block.recipe.seed = options.seed
  return block


def start(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """Random, or the encoder of `encoder`."""
  taken = ('encoder',) if options.encoder else ()
  return common.block(path=options.encoder, take=taken)


def put_on_shapes(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Makes an experiment small, and generates its images."""
  config.network = small_network()
  block = config.represent
  block.data = common.data('shapes/single')
  block.learn = learn(
    options,
    queue=64,
    queue_from_step=10,
    frozen_steps=5,
    grid=5,
    hidden=64,
    size=32,
  )
  block.widths = common.block(hidden=64, embedding=32, prototypes=30)
  block.large.size = (48, 48)
  if block.small:
    block.small.update(count=2, size=(32, 32))
  block.recipe.batch_size = 16
  make_tiny(config)
  config.without_files = ''


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Cuts the training to 60 steps; all else stays as it is."""
  for name in ('represent',):
    recipe = config[name].recipe
    recipe.num_steps, recipe.evaluate_every = 60, 30
    recipe.optimizer.warmup_steps = min(recipe.optimizer.warmup_steps, 5)
  clusters = config.represent.learn.clusters
  if clusters:
    clusters.update(queue_from_step=10, frozen_steps=5)
  config.operation.update(log_every=10, save_every=20)
