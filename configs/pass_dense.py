"""Clusters of pixels or of masks on ImageNet-S: MDC, PiCIE, MaskContrast.

MDC and PiCIE learn the clusters of their own pixels; MaskContrast learns
embeddings of salient objects. Their clusters segment, without fine-tuning.

Paper: ImageNet-S 50, mIoU on test (Gao et al.): 3.6 % (MDC), 4.5 (PiCIE), 24.2
       (MaskContrast).
Data:  $SEG_DATA_DIR/imagenet_s, weights/resnet18.pth for start=imagenet (see
       docs/weights.md).
Run:   python -m pass_luss.main --config=configs/pass_dense.py:method=picie
       python -m pass_luss.main --config=configs/pass_dense.py:method=picie,tiny
Cost:  PiCIE: 0.05 EFLOPs of training, and before each of 10 epochs a pass over
       all images for the clusters of each view and one for the labels of both.
       tiny: two minutes on 2 CPU cores, and one for start=moco.
"""

from typing import NamedTuple

from configs import (
  luss,
  pass_imagenet_s50,
  pass_imagenet_s300,
  pass_imagenet_s919,
  pass_shapes,
  shared,
)
from configs import options as options_lib

_BATCH = 128
# Recipes of MaskContrast by the training of the saliency network: images of a
# step, prototypes in the ring, and blocks that are frozen with the stem.
_MASK_RECIPES = {'unsupervised': (128, 256, None), 'supervised': (64, 128, 2)}
_PIXEL_EPOCHS, _MASK_EPOCHS = 10, 40
_OVER_CLUSTERS = 100  # of PiCIE + H


class _Data(NamedTuple):
  """A data set: its config of PASS, number of images, depth of the ResNet."""

  module: object
  num_images: int
  depth: int


_DATA = {
  's50': _Data(pass_imagenet_s50, 64_431, 18),
  's300': _Data(pass_imagenet_s300, 384_862, 50),
  's919': _Data(pass_imagenet_s919, 1_183_322, 50),
  'shapes': _Data(pass_shapes, 4_000, 18),
}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    method=['mdc', 'picie', 'picie_h', 'maskcontrast'],
    data=[*_DATA],
    # Encoder before training: MoCo v2 on the same images, which is trained
    # first; the supervised one of ImageNet-1k; or random values.
    start=['moco', 'imagenet', 'random'],
    encoder='',  # finished stage or weight file to start from instead
    saliency='',  # of maskcontrast: 'rc', or a folder of maps; '' for 'rc'
    # Of maskcontrast: that of its authors for saliency of a network without or
    # with supervision. auto: supervised with start=imagenet.
    recipe=['auto', *_MASK_RECIPES],
    seed=0,
    tiny=False,  # 60 steps a stage, on generated images
  )
  _check(options)
  is_drawn = options.tiny or options.data == 'shapes'
  base = _base(options)
  config = shared.block(
    program='pass_luss.main',
    without_files=base.get('without_files', ''),
    network=base.network,
    images=base.images,
    stages=_stages(options),
    operation=base.operation if 'operation' in base else {},
  )
  if _pretrains(options):
    config.represent = shared.block(**base.represent)
  if options.method == 'maskcontrast':
    _add_masks(config, options, is_drawn)
  else:
    _add_pixels(config, options, is_drawn)
  return config


def _check(options):
  """Raises ValueError for options that nothing reads."""
  has_masks = options.method == 'maskcontrast'
  for name, default, is_read, needed in (
    ('start', 'moco', not options.encoder, f'encoder={options.encoder}'),
    *(
      (name, default, has_masks, f'method={options.method}')
      for name, default in (('saliency', ''), ('recipe', 'auto'))
    ),
  ):
    value = getattr(options, name)
    if value != default and not is_read:
      raise ValueError(
        f'config option {name}={value}: expected none with {needed}, which '
        'does not read it'
      )


def _pretrains(options):
  """Returns whether the encoder is trained first."""
  return options.start == 'moco' and not options.encoder


def _base(options):
  """Builds the config of PASS with images, network and pretraining."""
  tiny = ',tiny' if options.tiny else ''
  argument = f'objective=moco,seed={options.seed}{tiny}'
  return _DATA[options.data].module.get_config(argument)


def _start(options, is_drawn):
  """Builds the start of the network."""
  if _pretrains(options):
    path = 'represent'
  elif options.encoder:
    path = options.encoder
  elif options.start == 'random' or is_drawn:
    return {}
  else:
    path = f'weights/resnet{_DATA[options.data].depth}.pth'
  return {'path': path, 'take': ('encoder',)}


def _stages(options):
  """Returns the stages of the method, in order."""
  first = ('represent',) if _pretrains(options) else ()
  if options.method == 'maskcontrast':
    return (
      *(*first, 'salient_masks', 'represent_masks'),
      *('cluster_masks', 'segment_masks'),
    )
  return (*first, 'represent_pixels', 'segment_pixels')


def _epoch(options, batch_size=_BATCH):
  """Returns the number of steps of an epoch, without partial batches."""
  return _DATA[options.data].num_images // batch_size


def _add_pixels(config, options, is_drawn):
  """Adds network and stages of MDC or PiCIE."""
  is_deep = _DATA[options.data].depth == 50 and not is_drawn
  width = 256 if is_deep else 128
  config.network.decoder = {'name': 'fpn', 'width': 32 if is_drawn else width}
  learn = {'name': 'mdc' if options.method == 'mdc' else 'picie'}
  if options.method == 'picie_h':
    learn['over_clusters'] = _OVER_CLUSTERS
  epoch = _epoch(options)
  optimizer = {'learning_rate': 1e-4, 'schedule': 'constant'}
  block = {
    'learn': learn,
    'start': _start(options, is_drawn),
    'recipe': shared.recipe(_BATCH, _PIXEL_EPOCHS * epoch, optimizer),
  }
  if options.method == 'mdc':
    optimizer |= {'schedule': 'steps', 'milestones': (20 * epoch,)}
    block['kmeans'] = {'batch_size': _BATCH}
  segmentation = {}
  if is_drawn:
    block |= {
      'base_side': 64,
      'side': 64,
      'kmeans': {'batch_size': 64, 'initial_batches': 4},
      'recipe': shared.recipe(
        32, 60 if options.tiny else 625, shared.adam(1e-3)
      ),
    }
    segmentation = {'short_side': 64, 'batch_size': 40}
  block['recipe']['seed'] = options.seed
  config.represent_pixels = shared.block(**block)
  config.segment_pixels = shared.block(**segmentation)


def _mask_recipe(options, is_drawn):
  """Returns the recipe of MaskContrast; drawn images have no weights."""
  if options.recipe != 'auto':
    return options.recipe
  is_supervised = options.start == 'imagenet' and not is_drawn
  return 'supervised' if is_supervised else 'unsupervised'


def _add_masks(config, options, is_drawn):
  """Adds the stages of MaskContrast."""
  if _DATA[options.data].depth == 50 and not is_drawn:
    config.network.encoder.multi_grid = (1, 1, 1)
  colors = luss.jitter(0.5, hue=0.1, blur=0.0)
  batch_size, queue, frozen = _MASK_RECIPES[_mask_recipe(options, is_drawn)]
  side, learn, epoch = 224, {'queue': queue}, _epoch(options, batch_size)
  optimizer = {
    'name': 'sgd',
    'learning_rate': 0.004,
    'schedule': 'poly',
    'schedule_interval': epoch,
    'weight_decay': 1e-4,
    'weight_decay_mode': 'l2',
  }
  recipe = shared.recipe(batch_size, _MASK_EPOCHS * epoch, optimizer)
  inference = {}
  if is_drawn:
    side, learn = 64, {'width': 32, 'dilations': (1, 2, 3), 'queue': 64}
    recipe = shared.recipe(16, 60 if options.tiny else 1_250, shared.adam(2e-3))
    inference = {'short_side': 64, 'batch_size': 40}
  recipe['seed'] = options.seed
  config.salient_masks = shared.block(saliency=options.saliency or 'rc')
  config.represent_masks = shared.block(
    learn=learn,
    large=luss.views('large', 2, side, (0.2, 1.0)),
    colors={'large': (colors, colors)},
    **({} if frozen is None else {'frozen_blocks': frozen}),
    start=_start(options, is_drawn),
    recipe=recipe,
  )
  config.cluster_masks = shared.block(seed=options.seed, **inference)
  config.segment_masks = shared.block(**inference)
