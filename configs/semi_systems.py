"""Systems beside U2PL's own, such as CPS, CCT and UniMatch, as published.

`LOSSES` has the builder of each one's block of losses; `PUBLISHED` the settings
of each on the data sets of the papers, `parse` the options with them as
defaults.
"""

from types import SimpleNamespace
from typing import Any

from configs import networks, unlabeled
from configs import options as options_lib
from configs.semi_settings import Settings


def _cps(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of CPS, without or with CutMix."""
  group = fields.pop('group', 2)
  cutmix = {'cutmix': True, 'group': group, 'pair': options.pair}
  return {
    'name': 'cps',
    **(cutmix if options.system == 'cps_cutmix' else {}),
    **fields,
  }


def _unimatch(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of UniMatch or UniMatch V2."""
  view = unlabeled.student_view(options) if hasattr(options, 'jitter') else {}
  views: dict[str, Any] = {'group': fields.pop('group', 2)}
  if 'color' in view:
    views['color'] = unlabeled.PUBLISHED_COLORS | view.pop('color')
  teacher = {}
  if options.system == 'unimatch_v2' and getattr(options, 'ema', 0):
    # A block replaces the default as a whole.
    teacher = {
      'teacher': {'decay': options.ema, 'copy_epochs': 0, 'statistics': 'ema'}
    }
  return {'name': options.system, 'views': views, **teacher, **fields, **view}


def _ael(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of AEL, or of U2PL on AEL."""
  fields.pop('group', 0)
  if hasattr(options, 'ema'):
    # A block replaces the default as a whole.
    if teacher := unlabeled.teacher(options):
      fields['teacher'] = {'copy_epochs': 0, **teacher}
    fields |= unlabeled.student_view(options)
    if options.system == 'u2pl_ael':
      fields['contrast_start'] = 0  # That is, after the warm-up.
  if options.network == 'transunet':
    # The auxiliary head reads a map that it does not have.
    fields['supervised'] = {**fields['supervised'], 'auxiliary': 0.0}
  return {'name': options.system, **fields}


# Flaw detector of GCT for images of 64 pixels.
SMALL_DETECTOR = {'width': 16, 'num_levels': 2}


def _gct(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of GCT."""
  fields.pop('group', None)
  if hasattr(options, 'jitter'):  # of small images
    fields['detector'] = SMALL_DETECTOR
  return {'name': 'gct', **fields}


def _unmixed(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of a system that mixes no images."""
  fields.pop('group', None)
  return {'name': options.system, **fields}


# By option `system`.
LOSSES = {
  'mt_mse': _unmixed,
  'cps': _cps,
  'cps_cutmix': _cps,
  'cct': _unmixed,
  'gct': _gct,
  'pseudoseg': _unmixed,
  'pc2seg': _unmixed,
  'unimatch': _unimatch,
  'unimatch_v2': _unimatch,
  'ael': _ael,
  'u2pl_ael': _ael,
}

_CPS_VOC = Settings(
  size=512,
  group=2,
  batch=8,
  epochs={662: 32, 1323: 34, 2646: 40, 5291: 60},
  lr=2.5e-3,  # 0.01 of the released config, divided by its 4 GPUs
  losses={'weight': 1.5},
  stride=342,
  decays_all=False,
  architecture='cps',
  listed_scales=(0.5, 0.75, 1.0, 1.5, 1.75, 2.0),
)
_CPS_CITYSCAPES = _CPS_VOC._replace(
  size=800,
  group=1,
  epochs={186: 128, 372: 137, 744: 160, 1488: 240},
  losses={'weight': 6.0, 'supervised': {'kind': 'ohem'}},
  stride=534,
)
# Of the authors of CPS: two decoders of each kind, none with adversarial noise,
# and a constant weight.
_CCT_OF_CPS = {
  'annealing': 0.99,
  'ramp_epochs': 0,
  'decoders': {
    **dict.fromkeys(('dropout', 'feature_drop', 'noise'), 2),
    **dict.fromkeys(('cutout', 'context', 'object'), 2),
    'vat': 0,
  },
}
_CCT_OF_CPS_VOC = _CPS_VOC._replace(
  group=1, losses=_CCT_OF_CPS, architecture='cps_features'
)
_CCT_VOC = Settings(
  size=320,
  group=1,
  batch=10,
  epochs=80,
  lr=1e-3,
  losses={},
  head_lr=10.0,
  network='resnet50',
  architecture='psp_shuffle',
  long_side=(200, 800),
  padded_to=8,
)
# Of the authors of CPS, whose rates are those of 4 GPUs and, on Cityscapes, 8.
_GCT_OF_CPS = {
  'joint': False,
  'ramp_epochs': 3,
  'detector': {
    'learning_rate': 4e-4,
    'schedule': 'constant',
    'after_update': True,
  },
}
_GCT_OF_CPS_VOC = _CPS_VOC._replace(group=1, losses=_GCT_OF_CPS)
_GCT_VOC = Settings(
  size=513,
  group=1,
  batch=2,
  epochs={662: 45, 1323: 45, 2646: 55, 5291: 80},
  lr=2.5e-4,
  losses={},
  network='resnet101_coco',
  architecture='psp',
  weight_decay=5e-4,
)
# 30,030 steps, where the authors have 30,000.
_PSEUDOSEG_VOC = Settings(
  size=513,
  group=1,
  batch=64,
  epochs=182,
  lr=7e-3,
  losses={'includes_labeled': True},
  decays_all=False,
  framed=True,
  listed_scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
)
# None are published on Cityscapes: those of CPS.
_PSEUDOSEG_CITYSCAPES = _CPS_CITYSCAPES._replace(
  losses={'supervised': {'kind': 'ohem'}}, architecture='light'
)
_UNIMATCH_VOC = Settings(
  size=321,
  group=2,
  batch=8,
  epochs=80,
  lr=1e-3,
  losses={},
  head_lr=10.0,
  fill='black',
)
# Of 200,000 pixels of the two images of one GPU.
_HARD = {'kind': 'ohem', 'kept_per_image': 100_000}
_UNIMATCH_CITYSCAPES = _UNIMATCH_VOC._replace(
  size=801,
  epochs=240,
  lr=5e-3,
  losses={'confidence': 0.0, 'supervised': _HARD},
  stride=534,
  average='probs',
  head_lr=1.0,
)
_UNIMATCH_V2_VOC = Settings(
  size=518,
  group=4,
  batch=16,
  epochs=60,
  lr=5e-6,
  losses={},
  head_lr=40.0,
  network='vit_b14',
  adam=True,
  fill='black',
)
_UNIMATCH_V2_CITYSCAPES = _UNIMATCH_V2_VOC._replace(
  size=798,
  group=2,
  batch=8,
  epochs=180,
  losses={'supervised': _HARD},
  stride=532,
  average='probs',
)
# Of 100,000 pixels of the two images of one GPU, as in U2PL on Cityscapes.
_AUXILIARY_HARD = {'kind': 'ohem', 'auxiliary': 0.4}
_AEL_VOC = Settings(
  size=513,
  group=2,
  batch=16,
  epochs=80,
  lr=1.25e-3,  # 0.01 of the released config, divided by its 8 GPUs
  losses={
    'supervised': _AUXILIARY_HARD,
    'confidence': 0.7,
    'paste': {'num_draws': 1},
    'boxes': {'component': 0.03, 'image': 0.03},
  },
  head_lr=10.0,
  architecture='u2pl',
)
_AEL_CITYSCAPES = _AEL_VOC._replace(
  size=769,
  epochs=200,
  losses={
    'supervised': _AUXILIARY_HARD,
    # Road, sidewalk, building, vegetation and sky.
    'paste': {'excluded': (0, 1, 2, 8, 10)},
  },
  stride=513,
  average='probs',
)
# By data set, then by option `system` and, where the authors of CPS have
# implemented it again, option `implementation`.
PUBLISHED: dict[str, dict[str, Settings]] = {
  'voc': {
    'mt_mse': _CPS_VOC._replace(group=1, losses={}),
    'cps': _CPS_VOC,
    'cps_cutmix': _CPS_VOC._replace(losses={'weight': 1.0}),
    'cct own': _CCT_VOC,
    'cct cps': _CCT_OF_CPS_VOC,
    'gct own': _GCT_VOC,
    'gct cps': _GCT_OF_CPS_VOC,
    'pseudoseg': _PSEUDOSEG_VOC,
    'pc2seg': _PSEUDOSEG_VOC._replace(representation=128),
    'unimatch': _UNIMATCH_VOC,
    'unimatch_v2': _UNIMATCH_V2_VOC,
    'ael': _AEL_VOC,
    'u2pl_ael': _AEL_VOC,
  },
  'cityscapes': {
    'mt_mse': _CPS_CITYSCAPES._replace(losses={'supervised': {'kind': 'ohem'}}),
    'cps': _CPS_CITYSCAPES,
    'cps_cutmix': _CPS_CITYSCAPES._replace(
      group=2, losses=_CPS_CITYSCAPES.losses | {'weight': 5.0}
    ),
    'cct cps': _CPS_CITYSCAPES._replace(
      losses=_CCT_OF_CPS, architecture='cps_features'
    ),
    'gct cps': _CPS_CITYSCAPES._replace(
      losses={
        **_GCT_OF_CPS,
        'detector': _GCT_OF_CPS['detector'] | {'learning_rate': 8e-4},
        'supervised': _CPS_CITYSCAPES.losses['supervised'],
      }
    ),
    'pseudoseg': _PSEUDOSEG_CITYSCAPES,
    'pc2seg': _PSEUDOSEG_CITYSCAPES._replace(representation=128),
    'unimatch': _UNIMATCH_CITYSCAPES,
    'unimatch_v2': _UNIMATCH_V2_CITYSCAPES,
    'ael': _AEL_CITYSCAPES,
    'u2pl_ael': _AEL_CITYSCAPES._replace(average='logits'),
  },
}


def parse(
  argument: str | None, data: str, **defaults: Any
) -> tuple[SimpleNamespace, Settings | None]:
  """Parses options whose defaults are those of the system that they choose.

  Args:
    argument: options of the command line.
    data: data set, one of `PUBLISHED`.
    **defaults: defaults of U2PL, among them `system`, `labels`, `epochs`,
      `lr`, `batch` and `network`.

  Returns:
    The options, and the published settings; None of U2PL and its baselines.

  Raises:
    ValueError: an option is unknown, or its value has another type.
  """
  options = options_lib.parse(argument, **defaults)
  settings = _published(options, data)
  if options.scales == 'listed' and not (settings and settings.listed_scales):
    raise ValueError(
      'config option scales=listed: expected scales=uniform, as the authors of '
      f'system={options.system} have a range'
    )
  if settings is None:
    return options, None
  epochs = settings.epochs
  if not isinstance(epochs, int):
    nearest = min(epochs, key=lambda labels: abs(labels - options.labels))
    epochs = epochs[nearest]
  others = [name for name in defaults['network'] if name != settings.network]
  own = {
    'epochs': epochs,
    'lr': settings.lr,
    'batch': settings.batch,
    'network': [settings.network, *others],
  }
  return options_lib.parse(argument, **defaults | own), settings


def _published(options: SimpleNamespace, data: str) -> Settings | None:
  """Returns the published settings; None of U2PL and its baselines.

  Raises:
    ValueError: the option `implementation` names settings that there are not.
  """
  by_system, system = PUBLISHED[data], options.system
  chosen = options.implementation
  names = [
    name.partition(' ')[2]
    for name in by_system
    if name.partition(' ')[0] == system
  ]
  if not any(names):
    if chosen != 'auto':
      raise ValueError(
        f'config option implementation={chosen}: expected auto, as there is '
        f'one implementation of system={system}'
      )
    return by_system.get(system)
  if chosen not in ('auto', *names):
    raise ValueError(
      f'config option implementation={chosen}: expected one of '
      f'{", ".join(names)}, of which there are settings of system={system} on '
      'this data set'
    )
  return by_system[f'{system} {names[0] if chosen == "auto" else chosen}']


def paper_blocks(
  options: SimpleNamespace, settings: Settings, losses: dict[str, Any]
) -> dict[str, Any]:
  """Builds the blocks in which an experiment of a paper differs from U2PL's.

  Args:
    options: options of the experiment.
    settings: published settings.
    losses: block of the losses.

  Returns:
    Arguments of `u2pl.paper`.
  """
  # Maps of other networks have no odd sides.
  is_odd = settings.size % 2 and options.network == 'transunet'
  size = settings.size - int(is_odd)
  blocks = {
    'size': size,
    'losses': losses,
    'optimizer': {'learning_rate': options.lr, **settings.optimizer},
    'evaluate': {'protocol': settings.protocol, 'which': 'best'},
  }
  if settings.architecture == 'u2pl':
    return blocks
  return blocks | {
    'network': network(options.network, settings.architecture),
    'heads': {
      **_heads(options.network, settings.architecture),
      **({'representation': rep} if (rep := settings.representation) else {}),
    },
    'crop': _crop(options, settings, size),
  }


def _crop(
  options: SimpleNamespace, settings: Settings, size: int
) -> dict[str, Any]:
  """Builds the crop; `scales=uniform` replaces lists and lengths by scales."""
  if settings.long_side and options.scales != 'uniform':
    return {
      'name': 'long_side',
      'size': (size, size),
      'long_side': settings.long_side,
    }
  lists = settings.listed_scales and options.scales != 'uniform'
  return {
    'name': 'random',
    'size': (size, size),
    'scales': settings.listed_scales if lists else settings.scales,
    'fill': settings.fill if options.pad_label == 'paper' else 'mean',
    'label_resize': options.label_resize,
  }


def network(name: str, architecture: str) -> Any:
  """Builds the networks of the systems.

  Args:
    name: option `network`.
    architecture: field of `Settings`.
  """
  if name == 'transunet':
    return networks.unet(name)
  if name in networks.PLAIN_VITS:
    return networks.named(f'{name}+dpt')
  if architecture in ('psp', 'psp_shuffle'):
    return networks.psp(name)
  config = networks.light_deeplabv3plus(name)
  if architecture != 'light':
    # The last block of CPS has the dilations 2, 4 and 8.
    config.encoder.multi_grid = (2, 2, 4)
  if architecture == 'cps_features':
    config.decoder.num_refinements = 2
  return config


def _heads(network_name: str, architecture: str) -> dict[str, Any]:
  if network_name == 'transunet':
    return {'kind': 'conv'}
  if network_name in networks.PLAIN_VITS:
    return {'kind': 'conv', 'kernel': 1}
  if architecture == 'psp_shuffle':
    return {'kind': 'shuffle'}
  if architecture in ('psp', 'cps_features'):
    return {'kind': 'conv', 'kernel': 1}
  return {'dropout_rate': 0.0}
