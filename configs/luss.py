"""Parts of a config that the experiments of PASS share.

`configs.imagenet_s` builds the experiments of the paper of these.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import shared

# Options of every experiment.
PASS = {
  'branch': ['swav', 'pixpro'],  # PASSs or PASSp
  'clusters': True,  # SwAV; false leaves PixPro and P2P
  # unsupervised: from images to segments; distance: pretraining, judged by
  # nearest labeled regions; semi: pretraining, and fine-tuning on masks of ten
  # images of each class.
  'protocol': ['unsupervised', 'distance', 'semi'],
  'p2p': ['regression', 'clustering', 'contrastive', 'off'],
  'project': True,  # project pixels before P2P
  # Batch statistics of P2P's predictor: of both views (released code), or each.
  'predictor_statistics': ['joint', 'per_view'],
  'd2s': ['auto', '3', '32', 'off'],  # stages; auto: 3, of pixpro 3 and 2
  'd2s_targets': ['deep', 'own'],  # features whose assignments are the targets
  'd2s_view': ['other', 'same'],  # view of the targets
  'combine': ['mean', 'sum'],  # losses of SwAV and D2S: as in the code or paper
  'untrained': False,  # random features, as a baseline
  'shared_attention': False,  # one attention map for all channels
  'cluster': ['attended', 'image', 'pixel'],  # features that are clustered
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

# Threshold of saliency (spec §3.4).
_SALIENCY_THRESHOLD = 0.5
# Stages that train.
TRAININGS = ('represent', 'attend', 'finetune', 'semi')


def stages(options: SimpleNamespace) -> tuple[str, ...]:
  """Returns the stages of a protocol, in order.

  Args:
    options: parsed options, among them those of `PASS`.

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
      'config option clusters=false: attention is trained by clusters, '
      'expected it with protocol=distance, protocol=semi or cluster=image'
    )
  return ('represent', 'attend', 'cluster', 'label', 'finetune', 'segment')


def objectives(
  options: SimpleNamespace,
  clusters: dict[str, int],
  pixpro: dict[str, Any] | None = None,
  alignment: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Builds the objectives of pretraining.

  Args:
    options: parsed options, among them those of `PASS`.
    clusters: queue of SwAV (embeddings of each large view, over all devices),
      the step from which it fills, and the step from which prototypes train.
    pixpro: sizes of PixPro that differ from the defaults.
    alignment: fields of P2P that differ from the defaults.

  Raises:
    ValueError: no objective is left, D2S without clusters, or statistics of a
      predictor without P2P.
  """
  has_pixpro = options.branch == 'pixpro'
  if not options.clusters and not has_pixpro:
    raise ValueError(
      'config option clusters=false: branch=swav has no other objective, '
      'expected it with branch=pixpro'
    )
  if not options.clusters and options.d2s not in ('auto', 'off'):
    raise ValueError(
      f'config option d2s={options.d2s}: needs clusters=true, whose '
      'assignments are the targets'
    )
  if options.p2p == 'off' and options.predictor_statistics != 'joint':
    raise ValueError(
      f'config option predictor_statistics={options.predictor_statistics}: '
      'p2p=off has no predictor, expected it with p2p=regression'
    )
  d2s_stages = {
    'auto': (3, 2) if has_pixpro else (3,),
    '3': (3,),
    '32': (3, 2),
    'off': (),
  }
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
      'stages': d2s_stages[options.d2s] if options.clusters else (),
      'targets': options.d2s_targets,
      'view': options.d2s_view,
    },
    'pixpro': (pixpro or {}) if has_pixpro else None,
    'combine': options.combine,
  }


def views(
  name: str, count: int, size: int, area: tuple[float, float]
) -> dict[str, Any]:
  """Builds a group of square views, antialiased as by Pillow."""
  return {
    'name': name,
    'count': count,
    'size': (size, size),
    'area': area,
    'antialias': True,
  }


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


def threshold(options: SimpleNamespace, published: float = -1.0) -> float:
  """Returns the threshold of attention or saliency; negative: the best on val.

  Args:
    options: parsed options, among them those of `PASS`.
    published: threshold of attention that the paper reports.

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
  return _SALIENCY_THRESHOLD if options.saliency else published


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
  if options.untrained:
    # One step that changes nothing.
    config.represent.recipe.num_steps = 1
    config.represent.recipe.optimizer = shared.block(**larc(1e-30))
  if options.tiny:
    _shorten(config)
  return config


def _shorten(config: ml_collections.ConfigDict) -> None:
  """Cuts every training to 60 steps."""
  for name in TRAININGS:
    recipe = config[name].recipe
    recipe.num_steps = min(recipe.num_steps, 60)
    if 'evaluate_every' in recipe:
      recipe.evaluate_every = 30
    if 'warmup_steps' in recipe.optimizer:
      recipe.optimizer.warmup_steps = min(recipe.optimizer.warmup_steps, 5)
  clusters = config.represent.learn.clusters
  if clusters:
    clusters.update(queue_from_step=10, frozen_steps=5)
  config.update(operation={'log_every': 10, 'save_every': 20})
