"""Blocks that PASS's experiments share, as functions; and their options."""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import common, networks

# Of each size: images of train, of representation learning, and published
# settings (spec §2.1, §3.1, §3.3).
SIZES = {
  50: {'train': 64_431, 'seen': 64_431, 'threshold': 0.41},
  300: {'train': 384_862, 'seen': 384_862, 'threshold': 0.40},
  # Representations are learned from all of ImageNet.
  919: {'train': 1_183_322, 'seen': 1_281_167, 'threshold': 0.37},
}

_BATCH = 256
_NEIGHBORS = 10
_TRAININGS = ('represent', 'attend', 'finetune', 'semi')
TARGETS = {'temperature': 0.1, 'epsilon': 0.05, 'sinkhorn_iterations': 3}

# An experiment of the paper, as options.
PASS = {
  'branch': ['swav', 'pixpro'],  # PASSs or PASSp
  'clusters': True,  # SwAV's loss; False leaves PixelPro and P2P
  # unsupervised: from images to segments; distance: representation learning
  # and its nearest neighbors; semi: and fine-tuning on ten masks a class.
  'protocol': ['unsupervised', 'distance', 'semi'],
  'p2p': ['regression', 'clustering', 'contrastive', 'off'],
  'project': True,  # pixels before P2P
  'd2s': ['auto', '3', '32', 'off'],  # stages; auto: 3, of pixpro 3 and 2
  'd2s_targets': ['deep', 'own'],
  'd2s_view': ['other', 'same'],
  'combine': ['mean', 'sum'],  # of SwAV's and D2S's losses: code or paper
  'untrained': False,  # random features, to compare with
  'shared_attention': False,  # one map for all channels
  'cluster': ['attended', 'image', 'pixel'],  # what is clustered
  'threshold': '',  # of attention, or of saliency; '': what `choose` says
  # The best on val; or what that was once, and 0.5 of saliency.
  'choose': ['val', 'published'],
  'saliency': '',  # in place of attention: 'rc', or a folder of maps
  'inference': [
    'auto',
    'logits',
    'cam',
  ],  # auto: cam where images are clustered
  # Recipe of the semi-supervised protocol; os16: the last stage is dilated.
  'semi': ['pass', 'imagenet_s', 'imagenet_s_os16'],
  'lr': 0.0,  # of representation learning; 0: what stands below
  'seed': 0,
  'encoder': '',  # a finished run's stage, or a weight file, to start from
  'tiny': False,  # the same code, small, on generated images
}
# The same on ImageNet-S.
IMAGENET_S = {
  **PASS,
  # A smaller size that is segmented too; '': none.
  'on': ['', '50', '300', '919'],
}
# Binarises saliency (spec §3.4).
_SALIENT = 0.5


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
      **TARGETS,
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
  """Changes of color; SwAV's at strength 1."""
  return {
    'jitter': 0.8,
    'brightness': 0.8 * strength,
    'contrast': 0.8 * strength,
    'saturation': 0.8 * strength,
    'hue': 0.2 * strength,
    'gray': 0.2,
    'blur': 0.5,
    'sigma': (0.1, 2.0),
    **fields,
  }


def colors(branch: str) -> ml_collections.ConfigDict:
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
      'trust_coefficient': 0.001,
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


def small_network() -> ml_collections.ConfigDict:
  """An encoder for a CPU."""
  return common.block(
    encoder=networks.SMALL['pass'][0],
    decoder=None,
    dtype='float32',
    remat=False,
  )


def imagenet(options: SimpleNamespace, size: int) -> ml_collections.ConfigDict:
  """The paper's experiment on ImageNet-S of this many classes.

  Args:
    options: with those of `IMAGENET_S`.
    size: 50, 300 or 919.

  Raises:
    ValueError: `on` is no smaller size, or nothing there is to segment it.
  """
  # The last batch of an epoch, not full, is left out.
  steps_per_epoch = SIZES[size]['train'] // _BATCH
  config = common.block(
    program='pass_luss.main', data_dir='', without_files=common.TINY
  )
  config.network = resnet(18 if size == 50 else 50)
  config.images = common.block(
    data=common.data(f'imagenet_s/{size}'), split='train'
  )
  config.represent = represent(options, size)
  config.stages = stages(options)
  config.distance = common.block(
    bank='train_semi',
    splits=('val', 'test'),
    neighbors=_NEIGHBORS,
    temperature=0.07,
    short_side=256,
    batch_size=16,
    rematch=True,  # scores with and without
    about=about(options, size, 'distance'),
  )
  config.attend = common.block(
    clusters={
      **TARGETS,
      'queue': 3840,
      'queue_from_step': 0,
      'frozen_steps': 0,
    },
    shared=options.shared_attention,
    large=views('large', 2, 224, (0.08, 1.0)),
    colors=colors('swav'),
    recipe=common.recipe(
      _BATCH,
      20 * steps_per_epoch,
      larc(6.0 if size == 50 else 0.6, final_learning_rate=6e-4),
    ),
  )
  config.cluster = common.block(
    kind=options.cluster,
    iterations=20,
    restarts=30,
    short_side=256,
    crop=224,
    batch_size=256,
    seed=options.seed,
  )
  config.label = common.block(
    threshold=threshold(options, SIZES[size]['threshold']),
    choose_on='val',
    short_side=256,
    batch_size=64,
    saliency=options.saliency,
    report=('val',),
  )
  config.finetune = common.block(
    split='',  # the generated labels
    crop=crop(224, 0.08),
    flips=('horizontal',),
    reduction=2,
    recipe=common.recipe(_BATCH, 20 * steps_per_epoch, larc(0.6)),
  )
  config.segment = segment(options)
  config.segment.about = about(options, size, 'unsupervised')
  config.semi = semi(options, size)
  config.segment_semi = segment(options)
  config.segment_semi.update(
    inference='logits', about=about(options, size, 'semi')
  )
  config.segment_on = segment_on(config, options, size)
  config.operation = common.operation(
    log_every=50,
    save_every=1000,
    reading={'threads': 32, 'buffered': 32, 'workers': 0},
  )
  set_seeds(config, options)
  if options.untrained:
    forget(config)
  if options.tiny:
    put_on_shapes(config, options)
  return config


def stages(options: SimpleNamespace) -> tuple[str, ...]:
  """What is run, in order, on one data set.

  Raises:
    ValueError: attention needs clusters, and there are none.
  """
  if options.protocol == 'distance':
    return ('represent', 'distance')
  if options.protocol == 'semi':
    return ('represent', 'semi', 'segment_semi')
  if options.cluster != 'attended':
    return ('represent', 'cluster', 'label', 'finetune', 'segment')
  if not options.clusters:
    raise ValueError(
      'config option clusters=false: attention learns by clusters, expected '
      'it with protocol=distance, protocol=semi or cluster=image'
    )
  return ('represent', 'attend', 'cluster', 'label', 'finetune', 'segment')


def threshold(options: SimpleNamespace, published: float) -> float:
  """Of attention, or of saliency; negative to choose it on val.

  Raises:
    ValueError: `threshold` is no number.
  """
  if options.threshold:
    try:
      return float(options.threshold)
    except ValueError:
      raise ValueError(
        f'config option threshold={options.threshold}: expected a number'
      ) from None
  if options.choose == 'val':
    return -1.0
  return _SALIENT if options.saliency else published


def crop(size: int, least: float) -> dict[str, Any]:
  """A random part of an image, resized as by Pillow."""
  return {
    'name': 'inception',
    'size': (size, size),
    'area': (least, 1.0),
    'antialias': True,
  }


def segment(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """Label maps of val and test."""
  image_level = options.cluster == 'image'
  inference = options.inference
  if inference == 'auto':
    inference = 'cam' if image_level else 'logits'
  return common.block(
    splits=('val', 'test'),
    match_on='val',
    inference=inference,
    threshold=-1.0,  # of cam; negative: the best on val
    short_side=256,
    batch_size=16,
  )


def segment_on(
  config: ml_collections.ConfigDict, options: SimpleNamespace, size: int
) -> ml_collections.ConfigDict | None:
  """The same of a smaller size, if one is asked for; its stage comes last.

  Raises:
    ValueError: as `imagenet`.
  """
  if not options.on:
    return None
  if int(options.on) >= size:
    raise ValueError(
      f'config option on={options.on}: expected a smaller size than {size}, '
      'whose classes are among those of this one'
    )
  if options.protocol == 'distance':
    raise ValueError(
      f'config option on={options.on}: protocol=distance trains nothing that '
      'segments, expected protocol=unsupervised or protocol=semi'
    )
  config.stages = (*config.stages, 'segment_on')
  semi = options.protocol == 'semi'
  return common.block(
    **(config.segment_semi if semi else config.segment),
    data=common.data(f'imagenet_s/{options.on}'),
    trained_by='semi' if semi else 'finetune',
  )


def about(
  options: SimpleNamespace, size: int, protocol: str
) -> ml_collections.ConfigDict:
  """What a submission says.

  Args:
    options: with those of `PASS`.
    size: 50, 300 or 919.
    protocol: one of `PASS`.
  """
  name = 'PASSs' if options.branch == 'swav' else 'PASSp'
  data = f'ImageNet-S{size} train'
  if size == 919:
    data = f'ImageNet-1k train, {data}'
  if protocol != 'unsupervised':
    data += ', train-semi with masks'
  how = {
    'unsupervised': 'fine-tuned on generated labels',
    'distance': f'nearest neighbors of its features, k = {_NEIGHBORS}',
    'semi': 'fine-tuned on the masks of train-semi',
  }[protocol]
  return common.block(
    name=name,
    data=data,
    networks='ResNet-18' if size == 50 else 'ResNet-50',
    link='https://github.com/LUSSeg/PASS',
    description=f'{name} of Large-scale Unsupervised Semantic Segmentation '
    f'(Gao et al.), implemented in JAX; {how}',
  )


def semi(options: SimpleNamespace, size: int) -> ml_collections.ConfigDict:
  """Fine-tuning on the masks of ten images of each class.

  The paper says the recipe but not how long; 100 epochs are those of the
  ImageNet-S repository's newer recipe.
  """
  steps_per_epoch = 10 * size // _BATCH
  newer, dilated = options.semi != 'pass', options.semi == 'imagenet_s_os16'
  optimizer = larc(0.6)
  if newer:
    decay = 0.45 if dilated else 0.4
    optimizer = layer_decay(5e-4, 5 * steps_per_epoch, decay)
  return common.block(
    split='train_semi',
    crop=crop(224, 0.14 if newer else 0.08),
    flips=('horizontal',),
    # 112 cells a side; in the newer recipe those of the encoder twice doubled.
    reduction=(4 if dilated else 8) if newer else 2,
    repeated_upsampling=newer,
    output_stride=16 if dilated else 0,
    colors=jitter() if newer else {},
    recipe=common.recipe(_BATCH, 100 * steps_per_epoch, optimizer),
  )


def layer_decay(
  learning_rate: float, warmup_steps: int, decay: float
) -> ml_collections.ConfigDict:
  """AdamW whose rate is less in each block further from the head.

  Norms and biases do not decay.
  """
  depths = {'heads/': 0, 'encoder/block4': 1, 'encoder/block3': 2}
  depths |= {'encoder/block2': 3, 'encoder/block1': 4, 'encoder/': 5}
  groups = []
  for name, depth in depths.items():
    factor = decay**depth
    groups.append((f'^{name}.*(scale|bias)$', factor, 0.0))
    groups.append((f'^{name}', factor, 1.0))
  return common.adam(
    learning_rate,
    final_learning_rate=1e-6,
    warmup_steps=warmup_steps,
    weight_decay=5e-4,
    clip_norm=0.0,
    groups=tuple(groups),
  )


def set_seeds(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """The seed of all trainings."""
  for name in _TRAININGS:
    config[name].recipe.seed = options.seed


def forget(config: ml_collections.ConfigDict) -> None:
  """Random features: one step at a rate of nothing."""
  recipe = config.represent.recipe
  recipe.num_steps, recipe.optimizer = 1, larc(1e-30)


def represent(options: SimpleNamespace, size: int) -> ml_collections.ConfigDict:
  """Representation learning on ImageNet-S of this many classes."""
  steps_per_epoch = SIZES[size]['seen'] // _BATCH
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
    colors=colors(options.branch),
    recipe=common.recipe(_BATCH, epochs * steps_per_epoch, optimizer, 5_000),
  )
  block.start = start(options)
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
  config.images.data = common.data('shapes/single')
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
  block.widths = common.block(hidden=64, embedding=16, prototypes=30)
  block.large.size = (48, 48)
  if block.small:
    block.small.update(count=2, size=(32, 32))
  config.attend.clusters.queue = 64
  config.attend.large.size = (48, 48)
  config.cluster.update(restarts=3, crop=64)
  for name in ('cluster', 'label', 'segment', 'segment_semi', 'distance'):
    config[name].update(short_side=64, batch_size=40)
  if config.segment_on:
    config.segment_on.update(short_side=64, batch_size=40)
    config.segment_on.data = common.data('shapes/scenes')
  for name in ('finetune', 'semi'):
    config[name].crop.size = (64, 64)
  for name in _TRAININGS:
    config[name].recipe.batch_size = 16
  make_tiny(config)
  config.without_files = ''


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Cuts every training to 60 steps; all else stays as it is."""
  for name in _TRAININGS:
    recipe = config[name].recipe
    recipe.num_steps = min(recipe.num_steps, 60)
    recipe.evaluate_every = 30 if recipe.evaluate_every else 0
    recipe.optimizer.warmup_steps = min(recipe.optimizer.warmup_steps, 5)
  clusters = config.represent.learn.clusters
  if clusters:
    clusters.update(queue_from_step=10, frozen_steps=5)
  config.operation.update(log_every=10, save_every=20)
