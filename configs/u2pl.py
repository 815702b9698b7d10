"""Parts of a config that the experiments of U2PL share.

`paper` builds an experiment of the paper, `small` one for a CPU; `u2pl_losses`
builds their losses.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import (
  networks,
  semi_systems,
  shared,
  switches,
  u2pl_losses,
  unlabeled,
)
from configs.semi_settings import Settings

# Options of every experiment.
_METHOD = {
  'system': u2pl_losses.SYSTEMS,
  **dict.fromkeys(u2pl_losses.PARTS, switches.CHOICES),
  'contrast_weight': 0.1,  # of the contrastive loss
  'anchor_entropy': ['paper', 'released'],  # decides which pixels are anchors
  # cps_cutmix: images are mixed with another one, or with another crop of
  # themselves, as in the released code.
  'pair': ['other', 'self'],
  'start': '',  # a finished stage, for encoder and decoder
  'tiny': False,  # 60 steps; experiments of the paper: on generated images
}
# Options of the experiments of the paper, which add `labels`, `epochs`, `lr`.
PAPER = {
  **_METHOD,
  'list': '',  # file with the names of the labeled images; {labels} in its
  # path is replaced by their number
  'seed': 0,  # of the choice of labeled images and of training
  'run': 0,  # another choice of labeled images with the same seed
  'equal_steps': False,  # sup_only: as many steps as the other systems
  # Of cct and gct, whose settings: their authors' own, or those of the authors
  # of CPS, whose results later tables have; auto: the first that there are.
  'implementation': ['auto', 'own', 'cps'],
  # Scales of images before the crop: from a range, or some of a list, where the
  # authors have one (CPS, PseudoSeg, and CCT and GCT of CPS's authors), which
  # auto then takes; of CCT's authors, lengths of the longer side.
  'scales': ['auto', 'uniform', 'listed'],
  'batch': 16,  # labeled images of a step, and as many unlabeled ones
  'pad_label': ['paper', 'ignored'],  # of padding; paper: class 0
  # Rule by which labels are scaled: as images, or as in the released code, half
  # a pixel beside them.
  'label_resize': ['centers', 'released'],
  # resnet101_coco: pretrained on COCO, as by the authors of GCT.
  'network': [
    *('resnet101', 'resnet50', 'resnet101_coco', 'transunet'),
    *networks.PLAIN_VITS,
  ],
  'encoder': 'auto',  # auto: public weights of the network; '': random values
}
# Options of the experiments for a CPU.
SMALL = {
  **_METHOD,
  **shared.LABELED,
  'lr': 0.0,  # 0: the config's own
  'encoder_lr': 0.0,  # factor of the encoder's rate; 0: the config's own
  **unlabeled.OPTIONS,
  'encoder': '',  # a finished stage, or a weight file
}

# Inference upsamples logits as training does: corners on corners.
WHOLE_IMAGE = {'align_corners': True}


def paper(
  options: SimpleNamespace,
  *,
  images: dict[str, Any],
  size: int,
  losses: dict[str, Any],
  steps_per_epoch: int,
  optimizer: dict[str, Any],
  epochs_per_evaluation: int,
  evaluate: dict[str, Any],
  network: ml_collections.ConfigDict | None = None,
  heads: dict[str, Any] | None = None,
  crop: dict[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """Builds an experiment of the paper.

  Args:
    options: options of the config: those of `PAPER`, `labels` and `epochs`.
    images: blocks of the data set and its splits.
    size: side of the crops in pixels.
    losses: block of the losses of training.
    steps_per_epoch: number of steps of an epoch of training.
    optimizer: block of the optimizer of training.
    epochs_per_evaluation: number of epochs between two evaluations during
      training.
    evaluate: block of the reported evaluation.
    network: block of the network; None for that of U2PL.
    heads: block of the heads; None for those of U2PL.
    crop: block of the crops; None for those of U2PL.

  Raises:
    ValueError: options contradict each other.
  """
  config = shared.block(
    program='u2pl.main',
    without_files=shared.TINY_ADVICE,
    network=network or _paper_network(options),
    train={
      **images,
      'subset': _listed_subset(options),
      'learn': losses,
      'heads': heads or _paper_heads(options),
      'start': _start(options.start, networks.encoder_weights(options)),
      'crop': crop or _scaled_crop(options, size),
      'steps_per_epoch': steps_per_epoch,
      'recipe': shared.recipe(
        options.batch,
        steps_per_epoch * options.epochs,
        optimizer,
        evaluate_every=epochs_per_evaluation * steps_per_epoch,
      ),
    },
    evaluate=evaluate,
  )
  config.train.recipe.seed = options.seed
  if options.tiny:
    _generate_images(config)
    shorten(config)
  return config


def published(
  options: SimpleNamespace, settings: Settings, **common: Any
) -> ml_collections.ConfigDict:
  """Builds the experiment of a system with the settings of its authors.

  Args:
    options: options of the experiment.
    settings: published settings.
    **common: arguments of `paper` that the data set decides.
  """
  losses = u2pl_losses.losses(options, group=settings.group, **settings.losses)
  blocks = semi_systems.paper_blocks(options, settings, losses)
  return paper(options, **common, **blocks)


def _paper_network(options: SimpleNamespace) -> ml_collections.ConfigDict:
  """Builds the network of U2PL, or the TransUNet that an option names.

  Raises:
    ValueError: the network is one of UniMatch V2.
  """
  if options.network in networks.PLAIN_VITS:
    raise ValueError(
      f'config option network={options.network}: expected it with '
      f'system=unimatch_v2, got system={options.system}'
    )
  if options.network == 'transunet':
    return networks.unet('transunet')
  return networks.deeplabv3plus(options.network)


def _paper_heads(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the heads of `_paper_network`."""
  # Logits at full resolution, where those of DeepLabv3+ are at a quarter.
  return {'kind': 'conv'} if options.network == 'transunet' else {}


def _listed_subset(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the choice of labeled images, by a list or at random."""
  return {
    'labels': options.labels,
    'list': options.list.replace('{labels}', str(options.labels)),
    'seed': options.seed,
    'run': options.run,
  }


def _scaled_crop(options: SimpleNamespace, size: int) -> dict[str, Any]:
  """Builds the square random crop of the paper, after scaling by 0.5 to 2."""
  return {
    'name': 'random',
    'size': (size, size),
    'scales': (0.5, 2.0),
    'balanced': True,
    'centered': True,
    'fill': {'paper': 'paper', 'ignored': 'mean'}[options.pad_label],
    'label_resize': options.label_resize,
  }


def small(
  options: SimpleNamespace,
  *,
  network: ml_collections.ConfigDict,
  encoder: str,
  train: dict[str, Any],
  labels: int,
  epochs: int,
  epochs_per_evaluation: int,
  learning_rate: float,
  evaluate: dict[str, Any],
  encoder_lr: float = 1.0,
  notes: tuple[str, ...] = (),
) -> ml_collections.ConfigDict:
  """Builds an experiment for a CPU, with 8 images of each kind a step.

  Args:
    options: options of the config: those of `SMALL`.
    network: block of the network of student and teacher.
    encoder: a finished stage or a weight file; '' for random values.
    train: blocks of data set, crop and losses of training, and
      `steps_per_epoch`.
    labels: number of labeled images if no option gives it; 0 for all.
    epochs: number of epochs of training.
    epochs_per_evaluation: number of epochs between two evaluations during
      training.
    learning_rate: learning rate if no option gives it.
    evaluate: block of the reported evaluation.
    encoder_lr: factor of the encoder's learning rate if no option gives it.
    notes: lines about what the config chose, for the user.

  Raises:
    ValueError: options contradict each other.
  """
  config = shared.block(
    program='u2pl.main',
    notes=notes,
    network=network,
    train={
      'subset': shared.subset(options, labels),
      'heads': {'kind': 'conv', 'width': 32, 'representation': 32},
      'start': _start(options.start, encoder),
      'recipe': shared.recipe(
        8,
        epochs * train['steps_per_epoch'],
        shared.adam(
          options.lr or learning_rate,
          warmup_steps=50,
          **shared.encoder_group(options, network, encoder_lr),
        ),
        evaluate_every=epochs_per_evaluation * train['steps_per_epoch'],
      ),
      **train,
    },
    evaluate=evaluate,
  )
  config.train.recipe.seed = options.seed
  if options.tiny:
    shorten(config)
  return config


def steps_per_epoch(
  options: SimpleNamespace,
  max_labels: int,
  num_images: int,
  includes_labeled: bool = False,
) -> int:
  """Computes the number of steps of an epoch.

  An epoch visits the unlabeled images and omits a last partial batch. For
  sup_only it visits the labeled images and includes a last partial batch.

  Args:
    options: options `system`, `labels`, `batch` and `equal_steps`.
    max_labels: number of images that may be labeled.
    num_images: number of labeled and unlabeled images together.
    includes_labeled: whether the labeled images are among the unlabeled ones.

  Raises:
    ValueError: there are too few images of either kind, or `equal_steps` has
      no effect.
  """
  sup_only = options.system == 'sup_only'
  min_batch = 1 if sup_only else 2
  if options.batch < min_batch:
    reason = '' if sup_only else ', as images are mixed within their batch'
    raise ValueError(
      f'config option batch={options.batch}: expected {min_batch} or '
      f'more{reason}'
    )
  most = min(max_labels, num_images - (0 if sup_only else options.batch))
  if not 0 < options.labels <= most:
    raise ValueError(
      f'config option labels={options.labels}: expected 1 to {most}; with '
      'list=FILE, too, as it decides the length of an epoch'
    )
  if options.equal_steps and not sup_only:
    raise ValueError(
      f'config option equal_steps: expected it with system=sup_only, got '
      f'system={options.system}, which decides the number of steps'
    )
  if sup_only and not options.equal_steps:
    return -(-options.labels // options.batch)
  num_labeled = 0 if includes_labeled else options.labels
  return (num_images - num_labeled) // options.batch


def sgd(learning_rate: float, **fields: Any) -> dict[str, Any]:
  """Builds SGD with momentum and L2 decay, and a polynomial schedule to 0."""
  return {
    'name': 'sgd',
    'learning_rate': learning_rate,
    'schedule': 'poly',
    'weight_decay': 1e-4,
    'weight_decay_mode': 'l2',
    **fields,
  }


def centered(size: int) -> dict[str, Any]:
  """Builds the protocol of images padded to a size that none exceeds."""
  return {
    'tiling': 'sliding_window',
    'window': (size, size),
    'stride': (size, size),
    'padding_mode': 'mean',
    'size_multiple': size,
    'align_corners': True,
  }


def _start(start: str, encoder: str) -> dict[str, Any]:
  """Builds the start: of encoder and decoder, of the encoder, or of nothing.

  Args:
    start: a finished stage with encoder and decoder, or ''.
    encoder: a finished stage or a weight file with an encoder, or ''.

  Raises:
    ValueError: both are given.
  """
  if encoder and start:
    raise ValueError(
      f'config options encoder={encoder} and start={start} contradict each '
      'other: give one of them'
    )
  if start:
    return {'path': start, 'take': ('encoder', 'decoder')}
  return shared.encoder_start(encoder)


def _generate_images(config: ml_collections.ConfigDict) -> None:
  """Replaces images and networks of the paper by generated and small ones."""
  small_networks = {
    'hybrid_vit': (lambda: networks.small('transunet'), 64),
    'vit': (networks.small_vit_dpt, 70),
  }
  build, size = small_networks.get(
    config.network.encoder.name, (networks.small_deeplabv3plus, 65)
  )
  config.network = build()
  train = config.train
  train.data = shared.block(name='shapes/scenes')
  train.update(split='train', unlabeled='')
  train.heads.update(width=16, representation=16)
  train.subset.update(labels=100, list='', seed=0, run=0)
  train.crop.size = (size, size)
  if 'long_side' in train.crop:
    train.crop.long_side = (size // 2, 2 * size)
  train.learn.update(supervised={'kept_per_image': 500})
  if hasattr(train.learn.get('consistency'), 'mixing'):
    train.learn.consistency.mixing.group = 4
  if train.learn.get('name') == 'gct':
    train.learn.update(detector=semi_systems.SMALL_DETECTOR)
  if train.learn.get('contrast'):
    train.learn.contrast.update(
      num_anchors=32, capacity=500, first_capacity=1000, max_push=64
    )
  if train.learn.get('name') == 'u2pl_ael':
    train.learn.contrast_start = 2
  train.recipe.batch_size = 8
  # Padding stays where the experiment of the paper pads.
  padded = 'padding_mode' in config.evaluate.protocol
  config.evaluate.protocol = shared.block(
    **(centered(size) if padded else WHOLE_IMAGE)
  )
  config.evaluate.update(batch_size=40, which='last')


def shorten(config: ml_collections.ConfigDict) -> None:
  """Cuts the training to six epochs of 10 steps."""
  config.train.update(
    steps_per_epoch=10, recipe={'num_steps': 60, 'evaluate_every': 30}
  )
  for fields, name, most in (
    (config.train.learn, 'warmup_epochs', 1),
    (config.train.recipe.optimizer, 'warmup_steps', 5),
  ):
    if name in fields:
      fields[name] = min(fields[name], most)
  config.update(operation={'log_every': 10, 'save_every': 20})
