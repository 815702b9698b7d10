"""PASS on ImageNet-S, as in the paper: three sizes of one experiment."""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import luss, luss_objectives, networks, shared
from configs import options as options_lib

_OPTIONS = {
  **luss.PASS,
  # Recipe of the semi-supervised protocol: of the paper, or the newer ones of
  # the ImageNet-S repository; os16: the last stage is dilated.
  'semi': ['pass', 'imagenet_s', 'imagenet_s_os16'],
  'on': ['', '50', '300', '919'],  # a smaller size that is segmented too
}
_BATCH = 256
_NEIGHBORS = 10
_OPERATION = {'save_every': 1000, 'reading': {'threads': 32, 'buffered': 32}}


def experiment(
  argument: str | None,
  *,
  num_classes: int,
  num_images: int,
  threshold: float,
  pretraining: tuple[str, int] | None = None,
  depth: int = 50,
  epochs: int = 100,
  multi_crop: bool = False,
  attention_rate: float = 0.6,
  queue: int = 3840,
  frozen_steps: int = 5005,
  hidden: int = 2048,
  prototypes: int = 3000,
) -> ml_collections.ConfigDict:
  """Builds the experiment of one size (spec §2.1, §3.1, §3.3).

  Args:
    argument: options of the config, as on a command line.
    num_classes: number of classes: 50, 300 or 919.
    num_images: number of images of the training split.
    threshold: threshold of attention, as published.
    pretraining: name of the data set of pretraining and number of its images;
      None for the training split.
    depth: depth of the ResNet, 18 or 50.
    epochs: number of epochs of pretraining.
    multi_crop: whether SwAV has six small views as well.
    attention_rate: learning rate of attention.
    queue: number of embeddings of each large view in the queue of pretraining.
    frozen_steps: number of steps of pretraining before prototypes train.
    hidden: number of hidden features of the heads.
    prototypes: number of prototypes of the clusters.

  Raises:
    ValueError: options contradict each other, or `on` is no smaller size.
  """
  options = luss.resolve(options_lib.parse(argument, **_OPTIONS))
  num_steps = 20 * (num_images // _BATCH)  # Without partial batches.
  config = shared.block(
    program='pass_luss.main',
    without_files=shared.TINY_ADVICE,
    network=networks.resnet(depth),
    images={'data': {'name': f'imagenet_s/{num_classes}'}},
    represent=_pretraining(
      options,
      *(pretraining or (f'imagenet_s/{num_classes}', num_images)),
      epochs=epochs,
      queue={'queue': queue, 'frozen_steps': frozen_steps},
      widths={'hidden': hidden, 'prototypes': prototypes},
      multi_crop=multi_crop,
    ),
    stages=luss.stages(options),
    distance={'splits': ('val', 'test'), 'batch_size': 16},
    attend=_attention(options, num_steps, attention_rate),
    **_pseudo_labels(options, num_steps, threshold),
    **_semi_supervised(options, num_classes),
    operation=_OPERATION,
  )
  return _finish(config, options, num_classes, depth)


def _finish(
  config: ml_collections.ConfigDict,
  options: SimpleNamespace,
  num_classes: int,
  depth: int,
) -> ml_collections.ConfigDict:
  """Adds descriptions, the smaller size, and the changes of `tiny`."""
  _describe_submissions(config, options, num_classes, depth)
  _segment_smaller(config, options, num_classes)
  if options.tiny:
    _generate_images(config, options)
  return luss.finish(config, options)


def _pretraining(
  options: SimpleNamespace,
  data: str,
  num_images: int,
  *,
  epochs: int,
  queue: dict[str, Any],
  widths: dict[str, Any],
  multi_crop: bool,
) -> dict[str, Any]:
  """Builds the pretraining of the representation (spec §2.1)."""
  steps_per_epoch = num_images // _BATCH
  clusters = {**queue, 'queue_from_step': 15 * steps_per_epoch}
  block = {
    'data': {'name': data},
    'widths': widths,
    'start': luss.start(options),
  }
  if options.objective == 'pass':
    return {
      **block,
      'learn': luss.objectives(options, clusters),
      **_views(options, multi_crop),
      'recipe': shared.recipe(
        _BATCH,
        epochs * steps_per_epoch,
        _pretraining_optimizer(options, steps_per_epoch),
        evaluate_every=5_000,
      ),
    }
  # ImageNet-S has a class 'other' before its own, ImageNet has none.
  name, _, variant = data.partition('/')
  num_classes, first_class = (
    (1000, 0) if name == 'imagenet' else (int(variant), 1)
  )
  setting = luss_objectives.pretraining(
    options,
    luss_objectives.Images(num_images, num_classes, first_class, epochs),
  )
  area = (setting.min_area, 1.0)
  return {
    **block,
    'learn': luss.objectives(options, clusters, compared=setting.fields),
    'large': luss.large_views(options, 224, area, setting.rules),
    **luss.smaller_views(options, 224, area),
    'colors': setting.colors,
    'recipe': setting.recipe,
  }


def _attention(
  options: SimpleNamespace, num_steps: int, learning_rate: float
) -> dict[str, Any]:
  """Builds the training of pixel attention (spec §3.1)."""
  return {
    'clusters': {'queue': 3840},
    'shared': options.shared_attention,
    **luss.fresh_projection(options),
    'large': luss.views('large', 2, 224, (0.08, 1.0)),
    'colors': _colors('swav'),
    'recipe': shared.recipe(
      _BATCH,
      num_steps,
      # The released code ends at this rate whatever the peak.
      luss.larc(learning_rate, final_learning_rate=6e-4),
    ),
  }


def _pseudo_labels(
  options: SimpleNamespace, num_steps: int, threshold: float
) -> dict[str, Any]:
  """Builds the stages that generate labels and train on them (spec §3.3)."""
  return {
    'cluster': {'kind': options.cluster, 'seed': options.seed},
    'label': {
      'threshold': luss.threshold(options, threshold),
      'saliency': options.saliency,
    },
    'finetune': {
      'crop': luss.crop(224, 0.08),
      'recipe': shared.recipe(_BATCH, num_steps, luss.larc(0.6)),
    },
    'segment': {'inference': luss.inference(options)},
  }


def _views(options: SimpleNamespace, multi_crop: bool) -> dict[str, Any]:
  """Builds views and colors of pretraining."""
  small = multi_crop and options.branch == 'swav'
  large = luss.views('large', 2, 224, (0.14 if small else 0.08, 1.0))
  views = {'large': large, 'colors': _colors(options.branch)}
  if small:
    views['small'] = luss.views('small', 6, 96, (0.05, 0.14))
  return views


def _colors(branch: str) -> dict[str, Any]:
  """Builds color augmentation: of SwAV, or of BYOL as PixPro has it."""
  if branch == 'swav':
    every = luss.jitter()
    return {'large': (every, every), 'small': every, 'red_deviation': 0.228}
  first, second = luss.byol_colors()
  return {'large': (first, second), 'small': first}


def _pretraining_optimizer(
  options: SimpleNamespace, steps_per_epoch: int
) -> dict[str, Any]:
  """Builds LARC for SwAV, LARS with a warm-up of five epochs for PixPro."""
  if options.branch == 'swav':
    return luss.larc(options.lr or 0.6)
  return luss.larc(
    options.lr or 1.0,
    adaptation='lars',
    final_learning_rate=1e-6,
    weight_decay=1e-5,
    warmup_steps=5 * steps_per_epoch,
    warmup_start=0.01,
  )


def _semi_supervised(
  options: SimpleNamespace, num_classes: int
) -> dict[str, Any]:
  """Builds the stages of the semi-supervised protocol."""
  return {'semi': _finetuning(options, num_classes), 'segment_semi': {}}


def _finetuning(options: SimpleNamespace, num_classes: int) -> dict[str, Any]:
  """Builds fine-tuning on the masks of ten images of each class.

  The paper gives the recipe but not its length; 100 epochs are those of the
  newer recipe of the ImageNet-S repository.
  """
  steps_per_epoch = 10 * num_classes // _BATCH
  num_steps = 100 * steps_per_epoch
  if options.semi == 'pass':
    return {
      'split': 'train_semi',
      'crop': luss.crop(224, 0.08),
      'recipe': shared.recipe(_BATCH, num_steps, luss.larc(0.6)),
    }
  dilated = options.semi == 'imagenet_s_os16'
  optimizer = _layer_decay(0.45 if dilated else 0.4, 5 * steps_per_epoch)
  return {
    'split': 'train_semi',
    'crop': luss.crop(224, 0.14),
    # 28 or 56 cells a side: those of the encoder, upsampled by 2 twice.
    'reduction': 4 if dilated else 8,
    'repeated_upsampling': True,
    'output_stride': 16 if dilated else 0,
    'colors': luss.jitter(),
    'recipe': shared.recipe(_BATCH, num_steps, optimizer),
  }


def _layer_decay(decay: float, warmup_steps: int) -> dict[str, Any]:
  """Builds AdamW with a learning rate that falls with each block to the input.

  Norms and biases have no weight decay.
  """
  prefixes = (
    'heads/',
    'encoder/block4',
    'encoder/block3',
    'encoder/block2',
    'encoder/block1',
    'encoder/',
  )
  groups = []
  for depth, prefix in enumerate(prefixes):
    groups.append((f'^{prefix}.*(scale|bias)$', decay**depth, 0.0))
    groups.append((f'^{prefix}', decay**depth, 1.0))
  return {
    'learning_rate': 5e-4,
    'final_learning_rate': 1e-6,
    'warmup_steps': warmup_steps,
    'weight_decay': 5e-4,
    'groups': tuple(groups),
  }


def _describe_submissions(
  config: ml_collections.ConfigDict,
  options: SimpleNamespace,
  num_classes: int,
  depth: int,
) -> None:
  """Sets the descriptions of the method that evaluation servers ask for."""
  name = {'swav': 'PASSs', 'pixpro': 'PASSp'}[options.branch]
  if options.objective != 'pass':
    name = luss_objectives.TITLES[options.objective]
  images = f'ImageNet-S{num_classes} train'
  if config.represent.data.name == 'imagenet/1k':
    images = f'ImageNet-1k train, {images}'
  masks = f'{images}, train-semi with masks'
  for stage, data, manner in (
    ('segment', images, 'fine-tuned on generated labels'),
    (
      'distance',
      masks,
      f'nearest neighbors of its features, k = {_NEIGHBORS}',
    ),
    ('segment_semi', masks, 'fine-tuned on the masks of train-semi'),
  ):
    config[stage].about = shared.block(
      name=name,
      data=data,
      networks=f'ResNet-{depth}',
      link='https://github.com/LUSSeg/PASS',
      description=f'{name} of Large-scale Unsupervised Semantic Segmentation '
      f'(Gao et al.), implemented in JAX; {manner}',
    )


def _segment_smaller(
  config: ml_collections.ConfigDict, options: SimpleNamespace, num_classes: int
) -> None:
  """Adds the stage that segments the smaller size of option `on`.

  Raises:
    ValueError: the size is not smaller, or no stage trains a network that
      segments.
  """
  if not options.on:
    return
  if int(options.on) >= num_classes:
    raise ValueError(
      f'config option on={options.on}: expected a smaller size than '
      f'{num_classes}, whose classes are among those of this one'
    )
  if options.protocol == 'distance':
    raise ValueError(
      f'config option on={options.on}: protocol=distance trains nothing that '
      'segments, expected protocol=unsupervised or protocol=semi'
    )
  config.stages = (*config.stages, 'segment_on')
  semi = options.protocol == 'semi'
  config.segment_on = shared.block(
    **(config.segment_semi if semi else config.segment),
    data={'name': f'imagenet_s/{options.on}'},
    trained_by='semi' if semi else 'finetune',
  )


def _generate_images(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Replaces images and network of the paper by generated and small ones."""
  config.network = networks.small_pass()
  config.images.data.name = config.represent.data.name = 'shapes/single'
  pretraining = config.represent
  compared = None
  if options.objective != 'pass':
    compared = luss_objectives.small_fields(options, 16, 64)
  pretraining.learn = shared.block(
    **luss.objectives(
      options,
      {'queue': 64, 'queue_from_step': 10, 'frozen_steps': 5},
      pixpro={'hidden': 64, 'size': 32},
      alignment={'grid': 5},
      compared=compared,
    )
  )
  pretraining.widths.update(hidden=64, embedding=16, prototypes=30)
  pretraining.large.size = (48, 48)
  if 'small' in pretraining:
    pretraining.small.update(count=2, size=(32, 32))
  pretraining.update(luss.smaller_views(options, 48, pretraining.large.area))
  config.attend.clusters.queue = 64
  config.attend.large.size = (48, 48)
  config.cluster.update(restarts=3, crop=64)
  for name in ('cluster', 'label', 'segment', 'segment_semi', 'distance'):
    config[name].update(short_side=64, batch_size=40)
  if options.on:
    config.segment_on.update(short_side=64, batch_size=40)
    config.segment_on.data.name = 'shapes/scenes'
  for name in ('finetune', 'semi'):
    config[name].crop.size = (64, 64)
  for name in luss.TRAININGS:
    config[name].recipe.batch_size = 16
  config.without_files = ''
