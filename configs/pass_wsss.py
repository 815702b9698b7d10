"""Weak supervision on ImageNet-S 50: SEAM, SC-CAM and AdvCAM.

A classifier of images is trained; its class activation maps segment. Labels of
images are their classes, or clusters of the features of an encoder.

Paper: table of weak supervision of Gao et al.: 44.5 % mIoU on test (SEAM),
       39.3 (SC-CAM), 46.2 (SEAM+AdvCAM), from an encoder of ImageNet-1k.
Data:  $SEG_DATA_DIR/imagenet_s, weights/resnet18.pth (see docs/weights.md).
Run:   python -m pass_luss.main --config=configs/pass_wsss.py:method=seam
       python -m pass_luss.main --config=configs/pass_wsss.py:method=seam,tiny
Cost:  SEAM: 64,000 steps of 8 crops of 448 pixels. tiny: two minutes on 2 CPU
       cores.
"""

from configs import networks, pass_imagenet_s50, pass_shapes, shared
from configs import options as options_lib

_NUM_IMAGES = 64_431
# Parameters that stay as they are: first layers, and all batch norms.
_FIRST_LAYERS = ('^encoder/(conv_root|bn_root|block1)/', 0.0, 0.0)
_NORMS = ('^encoder/.*/bn[^/]*/', 0.0, 0.0)
_ROOT = ('^encoder/(conv_root|bn_root)/', 0.0, 0.0)
_NEW_LAYERS = ('^heads/', 10.0, 1.0)
# Epochs of the plain classifier and of each round of SC-CAM, and those of their
# schedule. The released models are those after epochs 30, 40, 50, from 0.
_ROUNDS = {'classify': 31, 'classify1': 31, 'classify2': 41, 'classify3': 51}
_SCHEDULE_EPOCHS = 61
_JITTER = {
  'jitter': 1.0,
  'brightness': 0.3,
  'contrast': 0.3,
  'saturation': 0.3,
  'hue': 0.1,
}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    method=['seam', 'sc_cam', 'advcam'],
    labels=['truth', 'clusters'],  # classes of images, or clusters of features
    data=['s50', 'shapes'],
    classifier=['seam', 'plain'],  # that AdvCAM reads
    # Encoder: of a stage or weight file; '' for weights/resnet18.pth, unless it
    # is trained first: 'swav', 'moco' or 'supervised' (by 'auto', 'swav' with
    # labels=clusters).
    encoder='',
    pretraining=['auto', 'swav', 'moco', 'supervised'],
    maps=['classes', 'subcategories'],  # of SC-CAM, that segment
    retrain=False,  # fine-tune on labels of training images; not in the paper
    seed=0,
    tiny=False,  # 60 steps a stage, 2 of AdvCAM, on generated images
  )
  _check(options)
  base = _base(options)
  drawn = options.tiny or options.data == 'shapes'
  start = _start(options, drawn)
  inference = {'short_side': 64, 'size_multiple': 8} if drawn else {}
  if options.tiny:
    inference['batch_size'] = 40
  trained = _classifiers(options, drawn, start)
  config = shared.block(
    program='pass_luss.main',
    without_files=base.get('without_files', ''),
    network=base.network,
    images=base.images,
    stages=_stages(options, trained),
    cluster_images={
      'start': start or {'path': 'represent', 'take': ('encoder',)},
      'seed': options.seed,
      **({'short_side': 64, 'crop': 64, 'restarts': 3} if drawn else {}),
    },
    **trained,
    segment_cam={
      'trained_by': [*trained][-1],
      'short_side': 384 if [*trained] == ['classify'] else 256,
      'climbing': _climbing(options),
      **inference,
    },
    operation=base.operation if 'operation' in base else {},
  )
  if 'represent' in config.stages:
    config.represent = shared.block(**base.represent)
  if options.method == 'sc_cam':
    for i in (1, 2, 3):
      config[f'subdivide{i}'] = {'seed': options.seed, **inference}
  if options.retrain:
    config.retrain = shared.block(**base.finetune)
    config.segment_retrained = {'short_side': 64 if drawn else 256}
  if options.method == 'advcam' and options.classifier == 'plain' and not drawn:
    config.network = networks.resnet(50)
    # The released code gives the last block stride 1 and does not dilate it.
    config.network.encoder.update(output_stride=16, dilates=False)
  return config


def _check(options):
  if options.classifier != 'seam' and options.method != 'advcam':
    raise ValueError(
      f'config option classifier={options.classifier}: expected it with '
      f'method=advcam, got method={options.method}'
    )
  if options.maps != 'classes' and options.method != 'sc_cam':
    raise ValueError(
      f'config option maps={options.maps}: expected it with method=sc_cam, got '
      f'method={options.method}'
    )

  if options.encoder and options.pretraining != 'auto':
    raise ValueError(
      f'config option pretraining={options.pretraining}: expected none with '
      f'encoder={options.encoder}'
    )


def _pretrains(options):
  """Returns whether the encoder is trained first."""
  is_chosen = options.pretraining != 'auto' or options.labels == 'clusters'
  return is_chosen and not options.encoder


def _base(options):
  """Builds the config of PASS with images, network and pretraining."""
  arguments = [f'seed={options.seed}']
  if options.tiny:
    arguments.append('tiny')
  if options.pretraining in ('moco', 'supervised'):
    arguments.append(f'objective={options.pretraining}')
  else:
    arguments.append('p2p=off,d2s=off')  # SwAV alone.
  module = {'s50': pass_imagenet_s50, 'shapes': pass_shapes}[options.data]
  return module.get_config(','.join(arguments))


def _start(options, drawn):
  if options.encoder:
    path = options.encoder
  elif _pretrains(options):
    path = 'represent'
  elif drawn:
    return {}
  else:
    plain = options.method == 'advcam' and options.classifier == 'plain'
    path = f'weights/resnet{50 if plain else 18}.pth'
  return {'path': path, 'take': ('encoder',)}


def _stages(options, trained):
  stages = []
  if _pretrains(options):
    stages.append('represent')
  if options.labels == 'clusters':
    stages.append('cluster_images')
  for i, name in enumerate(trained):
    stages += [f'subdivide{i}', name] if i else [name]
  stages.append('segment_cam')
  if options.retrain:
    stages += ['label_cam', 'retrain', 'segment_retrained']
  return tuple(stages)


def _climbing(options):
  if options.method != 'advcam':
    return None
  steps = {'num_steps': 2} if options.tiny else {}
  if options.classifier == 'plain':
    return steps
  return {'num_steps': 8, 'weight': 2.0, 'accumulate': 'evidence', **steps}


def _classifiers(options, drawn, start):
  """Builds the blocks of the stages that train classifiers, in order."""
  if options.method == 'sc_cam':
    learn = {'name': 'sc_cam', 'evidence': options.maps}
    blocks = {
      name: _sc_cam(learn if i else {}, epochs, start)
      for i, (name, epochs) in enumerate(_ROUNDS.items())
    }
  elif options.classifier == 'plain':
    blocks = {'classify': _plain(start)}
  else:
    blocks = {'classify': _seam(start)}
  for block in blocks.values():
    if drawn:
      _draw(block, 60 if options.tiny else 600)
    block['recipe']['seed'] = options.seed
  return blocks


def _seam(start):
  return {
    'learn': {'name': 'seam'},
    'crop': _crop(448, (448, 768)),
    'colors': _JITTER,
    'start': start,
    'recipe': shared.recipe(
      8,
      8 * (_NUM_IMAGES // 8),
      _sgd(0.01, 5e-4, (_FIRST_LAYERS, _NORMS, _NEW_LAYERS)),
    ),
  }


def _sc_cam(learn, epochs, start):
  steps = _NUM_IMAGES // 16
  optimizer = _sgd(0.01, 5e-4, (_FIRST_LAYERS, _NORMS, _NEW_LAYERS))
  return {
    'learn': learn,
    'crop': _crop(224, (256, 512)),
    'colors': _JITTER,
    'start': start,
    'recipe': shared.recipe(
      16,
      epochs * steps,
      {**optimizer, 'schedule_steps': _SCHEDULE_EPOCHS * steps},
    ),
  }


def _plain(start):
  return {
    'learn': {'dropout_rate': 0.0},
    'crop': _crop(512, (320, 640)),
    'start': start,
    'recipe': shared.recipe(
      16, 5 * (_NUM_IMAGES // 16), _sgd(0.1, 1e-4, (_ROOT, _NEW_LAYERS))
    ),
  }


def _crop(size, long_side):
  return {'name': 'long_side', 'size': (size, size), 'long_side': long_side}


def _sgd(learning_rate, decay, groups):
  """Builds the optimizer of the released codes.

  They pass the weight decay in the place of the momentum, too, so that there is
  nearly none.
  """
  return {
    'name': 'sgd',
    'learning_rate': learning_rate,
    'momentum': decay,
    'schedule': 'poly',
    'weight_decay': decay,
    'weight_decay_mode': 'l2',
    'groups': groups,
  }


def _draw(block, num_steps):
  """Replaces crops and recipe by those of generated images.

  All layers are trained: the encoder knows little before.
  """
  block['learn'] = {**block['learn'], 'fixed_norms': False}
  block['crop'] = _crop(64, (64, 96))
  block['colors'] = {}
  optimizer = shared.adam(2e-3, warmup_steps=5)
  block['recipe'] = shared.recipe(16, num_steps, optimizer)
