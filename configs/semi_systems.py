"""Systems beside U2PL's own as published: CPS, CCT, UniMatch (V2) and AEL.

`LOSSES` has the builder of each one's block of losses; `PUBLISHED` the settings
of each on the data sets of the papers, `parse` the options with them as
defaults.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from configs import networks, unlabeled
from configs import options as options_lib


def _cps(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of CPS, without or with CutMix."""
  group = fields.pop('group', 2)
  cutmix = {'cutmix': True, 'group': group}
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


def _cct(options: SimpleNamespace, **fields: Any) -> dict[str, Any]:
  """Builds the losses of CCT."""
  fields.pop('group', None)
  return {'name': options.system, **fields}


# By option `system`.
LOSSES = {
  'cps': _cps,
  'cps_cutmix': _cps,
  'cct': _cct,
  'unimatch': _unimatch,
  'unimatch_v2': _unimatch,
  'ael': _ael,
  'u2pl_ael': _ael,
}


class Settings(NamedTuple):
  """Published settings of a system on a data set.

  Attributes:
    size: side of the crops in pixels.
    group: unlabeled images of one GPU, which are mixed with each other.
    batch: labeled images of a step, and as many unlabeled ones.
    epochs: epochs of the unlabeled images; or by the number of labels, of which
      the nearest decides.
    lr: learning rate of the encoder.
    losses: fields of the block of losses.
    stride: stride of the windows of inference; 0 for whole images.
    average: what overlapping windows average, logits or probabilities.
    head_lr: factor of the learning rate of decoder and heads.
    decays_all: whether biases and norms decay, too.
    network: default of the option.
    adam: whether the optimizer is AdamW, else SGD.
    fill: padding of crops.
    architecture: 'light', the DeepLabv3+ of UniMatch; 'cps', that of CPS; the
      same with the blocks of the classifier in the decoder ('cps_features');
      pyramid pooling with CCT's classifier ('psp_shuffle'); or network,
      heads and crops of U2PL ('u2pl').
    scales: range of the scale of images before they are cropped.
    padded_to: multiple of pixels to which whole images are padded; 0 for none.
  """

  size: int
  group: int
  batch: int
  epochs: int | Mapping[int, int]
  lr: float
  losses: Mapping[str, Any]
  stride: int = 0
  average: str = 'logits'
  head_lr: float = 1.0
  decays_all: bool = True
  network: str = 'resnet101'
  adam: bool = False
  fill: str = 'mean'
  architecture: str = 'light'
  scales: tuple[float, float] = (0.5, 2.0)
  padded_to: int = 0

  @property
  def optimizer(self) -> dict[str, Any]:
    """Builds rule, schedule and decay; the rate is that of the options."""
    groups = []
    if self.head_lr != 1:
      groups.append(('^(decoder|heads)/', self.head_lr, 1.0))
    if not self.decays_all:
      groups.append(('(^|/)(bias|scale)$', 1.0, 0.0))
    rule = {'weight_decay': 0.01}
    if not self.adam:
      rule = {'name': 'sgd', 'weight_decay': 1e-4, 'weight_decay_mode': 'l2'}
    fields = {'groups': tuple(groups)} if groups else {}
    return {'schedule': 'poly', **rule, **fields}

  @property
  def protocol(self) -> dict[str, Any]:
    """Builds the inference protocol."""
    if not self.stride:
      # Patches of a ViT have to fit; most other networks take any size.
      multiple = 14 if 'vit' in self.network else self.padded_to
      fields = {'size_multiple': multiple} if multiple else {}
      return {'align_corners': True, **fields}
    return {
      'tiling': 'sliding_window',
      'window': (self.size, self.size),
      'stride': (self.stride, self.stride),
      'average': self.average,
      'align_corners': True,
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
  # The longer side has 200 to 800 pixels, 500 at the scale 1.
  scales=(0.4, 1.6),
  padded_to=8,
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
    'cps': _CPS_VOC,
    'cps_cutmix': _CPS_VOC._replace(losses={'weight': 1.0}),
    'cct own': _CCT_VOC,
    'cct cps': _CCT_OF_CPS_VOC,
    'unimatch': _UNIMATCH_VOC,
    'unimatch_v2': _UNIMATCH_V2_VOC,
    'ael': _AEL_VOC,
    'u2pl_ael': _AEL_VOC,
  },
  'cityscapes': {
    'cps': _CPS_CITYSCAPES,
    'cps_cutmix': _CPS_CITYSCAPES._replace(
      group=2, losses=_CPS_CITYSCAPES.losses | {'weight': 5.0}
    ),
    'cct cps': _CPS_CITYSCAPES._replace(
      losses=_CCT_OF_CPS, architecture='cps_features'
    ),
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
    'heads': _heads(options.network, settings.architecture),
    'crop': {
      'name': 'random',
      'size': (size, size),
      'scales': settings.scales,
      'fill': settings.fill if options.pad_label == 'paper' else 'mean',
      'label_resize': options.label_resize,
    },
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
  if architecture == 'psp_shuffle':
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
  if architecture == 'cps_features':
    return {'kind': 'conv', 'kernel': 1}
  return {'dropout_rate': 0.0}
