"""The objectives that the LUSS paper compares PASS with (spec §2).

The paper gives a batch of 256 images and the number of epochs. Each objective
has two settings: 'luss', the recipe of its authors for that batch, or scaled to
it in proportion; and 'official', their own batch and number of epochs.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

from configs import luss, shared

# Names of the objectives in the paper's tables.
TITLES = {
  'supervised': 'Supervised',
  'simclr': 'SimCLR',
  'moco': 'MoCo v2',
  'byol': 'BYOL',
  'simsiam': 'SimSiam',
  'densecl': 'DenseCL',
  'pcl': 'PCL',
  'adco': 'AdCo',
}
_BATCH = 256
# Epochs of the setting 'official'.
_OFFICIAL_EPOCHS = {
  'simclr': 100,
  'moco': 200,
  'byol': 100,
  'simsiam': 100,
  'densecl': 200,
  'pcl': 200,
  'adco': 200,
}
_OFFICIAL_BATCH = {'simclr': 4096, 'byol': 4096, 'simsiam': 512}
# Objectives whose authors crop, resize and change colors by other rules than
# torchvision's.
_OWN_RULES = ('simclr', 'byol')
# Images below which the rings of MoCo would have all of them (spec §2.3).
_FEW_IMAGES = 65_536
_SMALL_RING = 16_384
# Of PCL: by the least number of images, the numbers of clusters, and that of
# negatives and of keys in the ring: those of ImageNet's images, and as many
# images a cluster for fewer.
_PCL = {
  1_000_000: ((25_000, 50_000, 100_000), 16_384),
  300_000: ((7_500, 15_000, 30_000), 4_096),
  0: ((1_250, 2_500, 5_000), 1_024),
}
_PCL_FIRST_EPOCH = 20
# Images of the training split of `shapes/single`.
_NUM_SHAPES = 4000
# MoCo v2's augmentation, which most share, and that of SimCLR.
_WEAK = luss.jitter(0.5, hue=0.1)
_STRONG = luss.jitter()


class Images(NamedTuple):
  """Numbers of the images of pretraining and of their classes.

  Attributes:
    count: number of images of the training split.
    num_classes: number of their classes.
    first_class: id of the first class: 1 where 0 is 'other'.
    epochs: number of epochs of pretraining in the paper.
  """

  count: int
  num_classes: int
  first_class: int
  epochs: int


class Setting(NamedTuple):
  """Pretraining by an objective: its fields, recipe and views.

  Attributes:
    fields: fields of the objective's options.
    recipe: batch size, number of steps and optimizer.
    min_area: smallest share of an image that a large view shows.
    colors: augmentation of the colors of the views.
    rules: rules of cropping, of resizing and of the colors.
  """

  fields: dict[str, Any]
  recipe: dict[str, Any]
  min_area: float
  colors: dict[str, Any]
  rules: str


class _Schedule(NamedTuple):
  """Batch and length of a training, and what its learning rate depends on.

  Attributes:
    batch_size: number of images of a step.
    epoch: number of steps of an epoch.
    epochs: number of epochs.
    is_official: whether the setting is that of the authors.
    rate: learning rate that the user chose; 0 for none.
  """

  batch_size: int
  epoch: int
  epochs: int
  is_official: bool
  rate: float

  def sgd(self, rate: float, **fields: Any) -> dict[str, Any]:
    """Builds SGD whose learning rate follows a cosine by epochs."""
    return {
      'name': 'sgd',
      'learning_rate': self.rate or rate,
      'weight_decay': 1e-4,
      'weight_decay_mode': 'l2',
      'schedule_interval': self.epoch,
      **fields,
    }

  def lars(self, rate: float, weight_decay: float, **fields: Any):
    """Builds LARS for a rate at a batch of 256, with ten epochs of warm-up."""
    return {
      'name': 'sgd',
      'adaptation': 'lars',
      'adaptation_eps': 0.0,
      'learning_rate': self.rate or rate * self.batch_size / _BATCH,
      'weight_decay': weight_decay,
      'weight_decay_mode': 'l2',
      'warmup_steps': 10 * self.epoch,
      **fields,
    }


def pretraining(options: SimpleNamespace, images: Images) -> Setting:
  """Builds the pretraining by the objective of the options.

  Args:
    options: options that `luss.resolve` has resolved.
    images: images of pretraining.
  """
  name, is_official = options.objective, options.setting == 'official'
  batch_size = _OFFICIAL_BATCH.get(name, _BATCH) if is_official else _BATCH
  epochs = _OFFICIAL_EPOCHS[name] if is_official else images.epochs
  schedule = _Schedule(
    batch_size, images.count // batch_size, epochs, is_official, options.lr
  )
  fields, optimizer, min_area, colors = _SETTINGS[name](schedule, images)
  num_steps = epochs * schedule.epoch
  colors = {'large': colors}
  if name == 'adco':
    num_steps += optimizer['warmup_steps']
    fields['variant'] = options.adco
    if options.adco == 'multi_crop':
      colors['small'] = _WEAK
  recipe = shared.recipe(batch_size, num_steps, optimizer, evaluate_every=5_000)
  rules = name if is_official and name in _OWN_RULES else 'torchvision'
  colors['rules'] = rules
  return Setting(fields, recipe, min_area, colors, rules)


def small_fields(
  options: SimpleNamespace, batch_size: int, side: int, num_classes: int = 8
) -> dict[str, Any]:
  """Builds the fields of the objective for a small network on a CPU.

  Args:
    options: options that `luss.resolve` has resolved.
    batch_size: number of images of a step.
    side: side of the images, in pixels.
    num_classes: number of classes of the images, without 'other'.
  """
  # The momentum encoder would hardly move in so few steps.
  keys = {'size': 32, 'decay': 0.99}
  ring = {**keys, 'queue': 8 * batch_size}
  return {
    'supervised': {'num_classes': num_classes, 'first_class': 1},
    'simclr': {'size': 32},
    'moco': ring,
    'byol': {'hidden': 128, 'size': 32},
    'simsiam': {'hidden': 32, 'size': 64},
    'densecl': {**ring, 'hidden': 64},
    'pcl': {
      **ring,
      'num_images': _NUM_SHAPES,
      'clusters': (3 * batch_size, 4 * batch_size, 5 * batch_size),
      'negatives': batch_size,
      'every': _NUM_SHAPES // batch_size,
      'from_step': 3 * (_NUM_SHAPES // batch_size),
      'short_side': side,
      'crop': side,
    },
    'adco': {
      **keys,
      'negatives': 4 * batch_size,
      'variant': options.adco,
    },
  }[options.objective]


def _supervised(schedule: _Schedule, images: Images):
  """Builds the setting of ImageNet classification (§2.1)."""
  optimizer = schedule.sgd(0.1, schedule='steps', schedule_interval=1)
  # After 30, 60 and 90 of 100 epochs.
  optimizer['milestones'] = tuple(
    share * schedule.epochs // 10 * schedule.epoch for share in (3, 6, 9)
  )
  fields = {
    'num_classes': images.num_classes,
    'first_class': images.first_class,
  }
  return fields, optimizer, 0.08, ({}, {})


def _simclr(schedule: _Schedule, _: Images):
  """Builds the setting of SimCLR; the released head has 3 layers (§2.2)."""
  fields = {}
  if schedule.is_official:
    fields = {'head': 'released', 'combine_views': 'sum'}
  optimizer = schedule.lars(
    0.3, 1e-4 if schedule.is_official else 1e-6, momentum_of='updates'
  )
  return fields, optimizer, 0.08, (_STRONG, _STRONG)


def _moco(schedule: _Schedule, images: Images):
  """Builds the setting of MoCo v2; few images have a small ring (§2.3).

  DenseCL has the same (§2.8).
  """
  return _ring(images), schedule.sgd(0.03), 0.2, (_WEAK, _WEAK)


def _ring(images: Images) -> dict[str, int]:
  """Builds the field of a smaller ring, if there are few images."""
  return {'queue': _SMALL_RING} if images.count < _FEW_IMAGES else {}


def _byol(schedule: _Schedule, _: Images):
  """Builds the setting of BYOL; its views differ in blur (§2.5)."""
  optimizer = schedule.lars(0.45, 1e-6)
  return {}, optimizer, 0.08, luss.byol_colors()


def _simsiam(schedule: _Schedule, _: Images):
  """Builds the setting of SimSiam; the predictor's rate is constant (§2.6)."""
  optimizer = schedule.sgd(
    0.05 * schedule.batch_size / _BATCH, **luss.constant_rate('simsiam')
  )
  return {}, optimizer, 0.2, (_WEAK, _WEAK)


def _pcl(schedule: _Schedule, images: Images):
  """Builds the setting of PCL v2; prototypes start in epoch 21 (§2.7)."""
  clusters, negatives = next(
    numbers for least, numbers in _PCL.items() if images.count >= least
  )
  fields = {
    'queue': negatives,
    'num_images': images.count,
    'clusters': clusters,
    'negatives': negatives,
    'from_step': _PCL_FIRST_EPOCH * schedule.epoch,
    'every': schedule.epoch,
  }
  return fields, schedule.sgd(0.03), 0.2, (_WEAK, _WEAK)


def _adco(schedule: _Schedule, images: Images):
  """Builds the setting of AdCo (§2.4)."""
  fields, rate, negatives = {}, 0.03, 65_536
  if images.count < _FEW_IMAGES:
    # Its authors' setting for fewer negatives.
    negatives, rate = 8_192, 0.04
    fields = {
      'negatives': negatives,
      'temperature': 0.14,
      'negative_temperature': 0.03,
    }
  optimizer = schedule.sgd(
    rate,
    final_learning_rate=6e-4,
    # The steps that fill the negatives, at the peak.
    warmup_steps=negatives // schedule.batch_size,
    warmup_start=1.0,
  )
  return fields, optimizer, 0.2, (_WEAK, _WEAK)


_SETTINGS = {
  'supervised': _supervised,
  'simclr': _simclr,
  'moco': _moco,
  'byol': _byol,
  'simsiam': _simsiam,
  'densecl': _moco,
  'pcl': _pcl,
  'adco': _adco,
}
