"""Parts of a config that the experiments of PASS share.

`configs.imagenet_s` builds the experiments of the paper of these.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import shared

# Objectives that PASS is compared with, see `configs.luss_objectives`.
_COMPARED = (
  *('supervised', 'simclr', 'moco', 'byol'),
  *('simsiam', 'densecl', 'pcl', 'adco'),
)
# Options of every experiment.
PASS = {
  'branch': ['swav', 'pixpro'],  # PASSs or PASSp
  # In place of PASS, one that it is compared with; P2P, and SwAV with D2S, can
  # be added.
  'objective': ['pass', *_COMPARED],
  # Of the objective: for the paper's batch of 256, or that of its authors.
  'setting': ['luss', 'official'],
  # Of AdCo: queries of one view, of both, or of five crops of different sizes;
  # auto: symmetric, or plain with setting=official.
  'adco': ['auto', 'plain', 'symmetric', 'multi_crop'],
  # SwAV; false leaves PixPro and P2P. auto: of other objectives, if D2S or P2P
  # needs it.
  'clusters': ['auto', 'true', 'false'],
  # unsupervised: from images to segments; distance: pretraining, judged by
  # nearest labeled regions; semi: pretraining, and fine-tuning on masks of ten
  # images of each class.
  'protocol': ['unsupervised', 'distance', 'semi'],
  # auto: regression, of other objectives than PASS off.
  'p2p': ['auto', 'regression', 'clustering', 'contrastive', 'off'],
  'project': True,  # project pixels before P2P
  # Batch statistics of P2P's predictor: of both views (released code), or each.
  'predictor_statistics': ['joint', 'per_view'],
  # Stages; auto: 3, of pixpro 3 and 2, of other objectives than PASS off.
  'd2s': ['auto', '3', '32', 'off'],
  'd2s_targets': ['deep', 'own'],  # features whose assignments are the targets
  'd2s_view': ['other', 'same'],  # view of the targets
  'combine': ['mean', 'sum'],  # losses of SwAV and D2S: as in the code or paper
  'untrained': False,  # random features, as a baseline
  'shared_attention': False,  # one attention map for all channels
  # Features that are clustered; auto: attended, or image if pretraining brings
  # no prototypes for the attention.
  'cluster': ['auto', 'attended', 'image', 'pixel'],
  'threshold': '',  # of attention or saliency; '': as `choose` says
  # val: the best on val; published: that of the paper, and 0.5 of saliency.
  'choose': ['val', 'published'],
  'saliency': '',  # in place of attention: 'rc', or a folder of maps
  'inference': ['auto', 'logits', 'cam'],  # auto: cam for cluster=image
  'lr': 0.0,  # of pretraining; 0: the config's own
  'seed': 0,
  'encoder': '',  # a finished stage or a weight file to start from
  'tiny': False,  # 60 steps a stage; ImageNet-S: on generated images
}

# Of AdCo's multi-crop: sides beside one of 224 pixels, and the largest area.
_SMALLER_CROPS = ((192, 0.86), (160, 0.715), (128, 0.571), (96, 0.429))
# Threshold of saliency (spec §3.4).
_SALIENCY_THRESHOLD = 0.5
# Stages that train.
TRAININGS = ('represent', 'attend', 'finetune', 'semi')


def resolve(options: SimpleNamespace) -> SimpleNamespace:
  """Resolves the options whose value is 'auto'.

  Args:
    options: parsed options, among them those of `PASS`.

  Raises:
    ValueError: an option is none of the objective's.
  """
  is_pass = options.objective == 'pass'
  _check_objective(options)
  needs_clusters = options.d2s in ('3', '32') or options.p2p == 'clustering'
  resolved = SimpleNamespace(**vars(options))
  resolved.clusters = {
    'true': True,
    'false': False,
    'auto': is_pass or needs_clusters,
  }[options.clusters]
  if options.p2p == 'auto':
    resolved.p2p = 'regression' if is_pass else 'off'
  if options.d2s == 'auto':
    stages_of_pass = '32' if options.branch == 'pixpro' else '3'
    is_used = is_pass and resolved.clusters
    resolved.d2s = stages_of_pass if is_used else 'off'
  if options.adco == 'auto':
    is_official = options.setting == 'official'
    resolved.adco = 'plain' if is_official else 'symmetric'
  if options.cluster == 'auto':
    has_prototypes = is_pass or resolved.clusters
    resolved.cluster = 'attended' if has_prototypes else 'image'
  if not is_pass:
    _check_additions(resolved)
  return resolved


def _check_additions(options: SimpleNamespace) -> None:
  """Raises ValueError for options of P2P, D2S or SwAV where it is not added."""
  for name, default, is_used, needed in (
    ('project', True, options.p2p != 'off', 'p2p=regression'),
    ('d2s_targets', 'deep', options.d2s != 'off', 'd2s=3'),
    ('d2s_view', 'other', options.d2s != 'off', 'd2s=3'),
    ('combine', 'mean', options.d2s != 'off', 'd2s=3'),
  ):
    value = getattr(options, name)
    if value != default and not is_used:
      raise ValueError(
        f'config option {name}={value}: objective={options.objective} does not '
        f'have it by itself, expected it with {needed}'
      )


def _check_objective(options: SimpleNamespace) -> None:
  """Raises ValueError for options that the objective does not have."""
  has_one_setting = options.objective in ('pass', 'supervised')
  if has_one_setting and options.setting != 'luss':
    raise ValueError(
      f'config option setting={options.setting}: expected luss with objective='
      f'{options.objective}, which has one setting'
    )
  if options.objective != 'adco' and options.adco != 'auto':
    raise ValueError(
      f'config option adco={options.adco}: expected it with objective=adco, '
      f'got objective={options.objective}'
    )
  if options.objective != 'pass' and options.branch != 'swav':
    raise ValueError(
      f'config option branch={options.branch}: expected none with objective='
      f'{options.objective}, which replaces the branches of PASS'
    )


def stages(options: SimpleNamespace) -> tuple[str, ...]:
  """Returns the stages of a protocol, in order.

  Args:
    options: options that `resolve` has resolved.

  Raises:
    ValueError: attention needs clusters, and there are none.
  """
  if options.protocol == 'distance':
    return ('represent', 'distance')
  if options.protocol == 'semi':
    return ('represent', 'semi', 'segment_semi')
  if options.cluster != 'attended':
    return ('represent', 'cluster', 'label', 'finetune', 'segment')
  if not options.clusters and options.objective == 'pass':
    raise ValueError(
      'config option clusters=false: attention is trained by clusters, '
      'expected it with protocol=distance, protocol=semi or cluster=image'
    )
  return ('represent', 'attend', 'cluster', 'label', 'finetune', 'segment')


def fresh_projection(options: SimpleNamespace) -> dict[str, bool]:
  """Builds the field of an attention whose encoder brings no projection.

  Args:
    options: options that `resolve` has resolved.
  """
  if options.clusters or options.objective == 'pass':
    return {}
  return {'fresh_projection': True}


def objectives(
  options: SimpleNamespace,
  clusters: dict[str, int],
  pixpro: dict[str, Any] | None = None,
  alignment: dict[str, Any] | None = None,
  compared: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Builds the objectives of pretraining.

  Args:
    options: options that `resolve` has resolved.
    clusters: queue of SwAV (embeddings of each large view, over all devices),
      the step from which it fills, and the step from which prototypes train.
    pixpro: sizes of PixPro that differ from the defaults.
    alignment: fields of P2P that differ from the defaults.
    compared: fields of the objective that replaces those of PASS, if one does.

  Raises:
    ValueError: no objective is left, D2S without clusters, or statistics of a
      predictor without P2P.
  """
  has_pixpro = options.branch == 'pixpro'
  is_pass = options.objective == 'pass'
  if is_pass and not options.clusters and not has_pixpro:
    raise ValueError(
      'config option clusters=false: branch=swav has no other objective, '
      'expected it with branch=pixpro'
    )
  if not options.clusters and options.d2s != 'off':
    raise ValueError(
      f'config option d2s={options.d2s}: needs clusters=true, whose '
      'assignments are the targets'
    )
  if options.p2p == 'off' and options.predictor_statistics != 'joint':
    raise ValueError(
      f'config option predictor_statistics={options.predictor_statistics}: '
      'p2p=off has no predictor, expected it with p2p=regression'
    )
  p2p = {
    'kind': options.p2p,
    'project': options.project,
    'predictor_statistics': options.predictor_statistics,
    **(alignment or {}),
  }
  return {
    'clusters': clusters if options.clusters else None,
    'alignment': None if options.p2p == 'off' else p2p,
    'shallow': {
      'stages': {'3': (3,), '32': (3, 2), 'off': ()}[options.d2s],
      'targets': options.d2s_targets,
      'view': options.d2s_view,
    },
    'pixpro': (pixpro or {}) if has_pixpro else None,
    **({} if is_pass else {options.objective: compared or {}}),
    'combine': options.combine,
  }


def views(
  name: str,
  count: int,
  size: int,
  area: tuple[float, float],
  rules: str = 'torchvision',
) -> dict[str, Any]:
  """Builds a group of square views; torchvision's are antialiased."""
  return {
    'name': name,
    'count': count,
    'size': (size, size),
    'area': area,
    'antialias': rules == 'torchvision',
    'rules': rules,
  }


def large_views(
  options: SimpleNamespace,
  size: int,
  area: tuple[float, float],
  rules: str = 'torchvision',
) -> dict[str, Any]:
  """Builds the large views: two, or the one of supervised training alone.

  Args:
    options: options that `resolve` has resolved.
    size: side of a view, in pixels.
    area: range of its area, as a fraction of the image's.
    rules: rules of its box and of its resizing.
  """
  is_alone = options.p2p == 'off' and not options.clusters
  count = 1 if options.objective == 'supervised' and is_alone else 2
  return views('large', count, size, area, rules)


def smaller_views(
  options: SimpleNamespace, size: int, area: tuple[float, float]
) -> dict[str, Any]:
  """Builds the views of other sizes: four of AdCo's multi-crop (spec §2.4).

  Large views of 224 pixels and areas of 0.2 to 1 have the published ones, other
  large views those in proportion, of a multiple of 4 pixels.

  Args:
    options: options that `resolve` has resolved.
    size: side of a large view, in pixels.
    area: range of its area, as a fraction of the image's.
  """
  if options.objective != 'adco' or options.adco != 'multi_crop':
    return {}
  groups = []
  for number, (side, share) in enumerate(_SMALLER_CROPS, start=1):
    least, largest = (round(share * each, 3) for each in area)
    scaled = 4 * round(side * size / (4 * 224))
    groups.append(views(f'smaller{number}', 1, scaled, (least, largest)))
  return {'smaller': tuple(groups)}


def crop(size: int, min_area: float) -> dict[str, Any]:
  """Builds a random square crop, antialiased as by Pillow."""
  return {
    'name': 'inception',
    'size': (size, size),
    'area': (min_area, 1.0),
    'antialias': True,
  }


def jitter(strength: float = 1.0, **fields: Any) -> dict[str, Any]:
  """Builds color augmentation; strength 1 is that of SwAV."""
  return {
    'jitter': 0.8,
    'brightness': 0.8 * strength,
    'contrast': 0.8 * strength,
    'saturation': 0.8 * strength,
    'hue': 0.2 * strength,
    'gray': 0.2,
    'blur': 0.5,
    **fields,
  }


def byol_colors() -> tuple[dict[str, Any], dict[str, Any]]:
  """Builds the augmentation of BYOL's two views, which PixPro has, too."""
  first = jitter(0.5, saturation=0.2, hue=0.1, blur=1.0)
  return first, {**first, 'blur': 0.1, 'solarize': 0.2}


def constant_rate(objective: str) -> dict[str, Any]:
  """Builds the field of parameters whose learning rate has no schedule."""
  if objective != 'simsiam':
    return {}
  return {'constant_rate': '^heads/simsiam/predictor/'}


def larc(learning_rate: float, **fields: Any) -> dict[str, Any]:
  """Builds SGD with LARC and a cosine schedule to a thousandth of the rate."""
  return {
    'name': 'sgd',
    'adaptation': 'larc',
    'learning_rate': learning_rate,
    'final_learning_rate': 0.001 * learning_rate,
    'weight_decay': 1e-6,
    'weight_decay_mode': 'l2',
    **fields,
  }


def threshold(
  options: SimpleNamespace, published: float | None = None
) -> float:
  """Returns the threshold of attention or saliency; negative: the best on val.

  Args:
    options: parsed options, among them those of `PASS`.
    published: threshold of attention that the paper reports; None if it
      reports none for the data.

  Raises:
    ValueError: `threshold` is no number, or none is published.
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
  if options.saliency:
    return _SALIENCY_THRESHOLD
  if published is None:
    raise ValueError(
      'config option choose=published: expected val, as the paper has no '
      'threshold for these data; threshold=NUMBER sets one'
    )
  return published


def inference(options: SimpleNamespace) -> str:
  """Returns what label maps are inferred from: 'logits' or 'cam'."""
  if options.inference == 'auto':
    return 'cam' if options.cluster == 'image' else 'logits'
  return options.inference


def start(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the start of pretraining: random values, or `encoder`."""
  if not options.encoder:
    return {}
  return {'path': options.encoder, 'take': ('encoder',)}


def finish(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> ml_collections.ConfigDict:
  """Returns the config with what `seed`, `untrained` and `tiny` choose."""
  for name in TRAININGS:
    config[name].recipe.seed = options.seed
  if options.objective == 'simsiam':
    # Residual branches start as 0 (spec §2.6).
    config.network.encoder.zero_init = True
  if options.untrained:
    # One step that changes nothing.
    config.represent.recipe.num_steps = 1
    config.represent.recipe.optimizer = shared.block(**larc(1e-30))
  if options.tiny:
    _shorten(config, options)
  return config


def _shorten(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """Cuts every training to 60 steps."""
  for name in TRAININGS:
    recipe = config[name].recipe
    recipe.num_steps = min(recipe.num_steps, 60)
    if 'evaluate_every' in recipe:
      recipe.evaluate_every = 30
    if 'warmup_steps' in recipe.optimizer:
      recipe.optimizer.warmup_steps = min(recipe.optimizer.warmup_steps, 5)
  optimizer = config.represent.recipe.optimizer
  if 'milestones' in optimizer:
    optimizer.milestones = (20, 40, 50)
  if 'schedule_interval' in optimizer:
    optimizer.schedule_interval = min(optimizer.schedule_interval, 15)
  if options.objective == 'pcl':
    config.represent.learn.pcl.update(from_step=15, every=15)
  clusters = config.represent.learn.clusters
  if clusters:
    clusters.update(queue_from_step=10, frozen_steps=5)
  config.update(operation={'log_every': 10, 'save_every': 20})
