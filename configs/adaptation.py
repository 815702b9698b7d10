"""Parts of a config that the experiments of domain adaptation share.

`losses` builds the losses of the system that an option chooses, `daformer` the
network, and `rare_classes` the sampling of source images.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import networks, shared, switches

# By option `system`: U2PL+ on DAFormer, DAFormer, training on the source alone,
# and on the target's labels, an upper bound.
SYSTEMS = ['u2pl_plus', 'daformer', 'source_only', 'target_only']
# Parts of DAFormer and of U2PL+ that options turn on and off.
_PARTS = {
  'rcs': 'rare class sampling of source images',
  'fd': 'feature distance to the frozen initial encoder',
  'mixing': 'source pixels in target images (DACS)',
  'contrast': 'contrastive loss between pixels',
  'filter': 'no weight for unreliable pseudo-labels',
  'sce': 'symmetric cross entropy on mixed images',
  'pd': 'prototypical denoising',
}
_OF_U2PL = ('contrast', 'filter', 'sce', 'pd')
OPTIONS = {
  'system': SYSTEMS,
  **dict.fromkeys(_PARTS, switches.CHOICES),
  'contrast_weight': 0.1,  # of the contrastive loss
  'negatives': ['unreliable', 'reliable', 'all', 'none'],  # target pixels
  # Weight of target pixels: the share of confident ones, the inverse of the
  # share of reliable ones (Eq. 14), or the product.
  'weighting': ['share', 'reliable', 'both'],
  'seed': 0,
  'tiny': False,  # 60 steps; on generated images
}
# Groups of a MiT and its decoder, by Hoyer et al.: of the encoder, norms do not
# decay; decoder and heads learn at ten times the rate, and all of them decays.
GROUPS = (
  ('^encoder/.*norm', 1.0, 0.0),
  ('^(decoder|heads)/', 10.0, 1.0),
)


def losses(
  options: SimpleNamespace,
  *,
  start_step: int,
  has_encoder: bool = True,
  self_training: dict[str, Any] | None = None,
  feature_distance: dict[str, Any] | None = None,
  contrast: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Builds the losses of U2PL+, DAFormer or of training on one domain.

  Args:
    options: parsed options, among them `OPTIONS`.
    start_step: first step with contrast and denoising.
    has_encoder: whether the encoder starts from pretrained weights, of which
      the feature distance reminds it unless an option turns it off.
    self_training: further fields of the loss of mixed images.
    feature_distance: further fields of the feature distance.
    contrast: further fields of the contrastive loss.

  Raises:
    ValueError: a part is turned on, or an option given, that has no effect on
      the system.
  """
  has = parts(options, has_encoder)
  if not adapts(options):
    distance = {**(feature_distance or {})} if has['fd'] else None
    return {'self_training': None, 'feature_distance': distance}
  return {
    'self_training': {
      'mixing': 'dacs' if has['mixing'] else 'none',
      'filtered': has['filter'],
      'weighting': options.weighting,
      'reverse': 0.1 if has['sce'] else 0.0,
      'denoise': 'raw' if has['pd'] else 'off',
      **(self_training or {}),
    },
    'feature_distance': {**(feature_distance or {})} if has['fd'] else None,
    'contrast': {
      'weight': options.contrast_weight,
      'negatives': options.negatives,
      **(contrast or {}),
    }
    if has['contrast']
    else None,
    'start_step': start_step,
  }


def adapts(options: SimpleNamespace) -> bool:
  """Returns whether the system trains on images of the target."""
  return options.system in ('u2pl_plus', 'daformer')


def parts(options: SimpleNamespace, has_encoder: bool) -> dict[str, bool]:
  """Returns which parts of the method are on.

  Args:
    options: parsed options, among them `OPTIONS`.
    has_encoder: whether the encoder starts from pretrained weights.

  Raises:
    ValueError: a part is turned on, or an option given, that has no effect on
      the system.
  """
  own = dict.fromkeys(('rcs', 'mixing'), adapts(options))
  own['fd'] = adapts(options) and has_encoder
  own |= dict.fromkeys(_OF_U2PL, options.system == 'u2pl_plus')
  has = switches.active_parts(options, own)
  # They change how source images are drawn, and the loss of source images.
  possible = ('rcs', 'fd', *(_PARTS if adapts(options) else ()))
  for part, meaning in _PARTS.items():
    if has[part] and part not in possible:
      raise ValueError(
        f'config option {part}=on: system={options.system} has no place for '
        f'{meaning}: expected u2pl_plus or daformer'
      )
  of_parts = {
    'contrast_weight': (0.1, 'contrast'),
    'negatives': ('unreliable', 'contrast'),
    'weighting': ('share', 'filter'),
  }
  switches.check_part_options(options, has, _PARTS, of_parts)
  return has


def rare_classes(
  options: SimpleNamespace, **fields: Any
) -> dict[str, Any] | None:
  """Builds rare class sampling; None where it is off.

  Args:
    options: parsed options, among them `OPTIONS`.
    **fields: further fields of the sampler.
  """
  return fields if parts(options, True)['rcs'] else None


def daformer(encoder: str) -> ml_collections.ConfigDict:
  """Builds DAFormer's network of the published width.

  Args:
    encoder: name of a MiT, as 'mit_b5'.
  """
  network = networks.named(f'{encoder}+daformer', width=4)
  return shared.block(**network, dtype='bfloat16')


def small_daformer() -> ml_collections.ConfigDict:
  """Builds a MiT and DAFormer's decoder for a CPU, of strides 4 to 32."""
  return shared.block(
    encoder={
      'name': 'mit',
      'hidden_sizes': (16, 32, 64, 64),
      'num_layers': (1, 1, 1, 1),
      'num_heads': (1, 1, 2, 2),
    },
    decoder={'name': 'daformer', 'width': 32, 'dilations': (1, 2, 3)},
  )


def shorten(config: ml_collections.ConfigDict) -> None:
  """Cuts the training to 60 steps, 10 of them without contrast."""
  recipe = config.adapt.recipe
  recipe.update(num_steps=60, evaluate_every=30)
  recipe.optimizer.warmup_steps = 5
  if 'start_step' in config.adapt.learn:
    config.adapt.learn.start_step = 10
  config.update(operation={'log_every': 10, 'save_every': 20})


def generate_images(config: ml_collections.ConfigDict) -> None:
  """Replaces images and network of the paper by generated and small ones."""
  config.network = small_daformer()
  adapt, crop = config.adapt, {'name': 'random', 'size': (64, 64)}
  adapt.update(data={'name': 'shapes/source'}, start={'path': '', 'take': ()})
  adapt.crop = shared.block(**crop, max_class_share=0.95)
  adapt.target = shared.block(data={'name': 'shapes/target'}, crop=crop)
  adapt.recipe.batch_size = 8
  if adapt.rare_classes is not None:
    adapt.rare_classes.update(min_pixels=50, min_crop_pixels=20)
  adapt.update(heads={'width': 16, 'representation': 16})
  learn = adapt.learn
  if learn.self_training:
    learn.self_training.update(ignored_top=2, ignored_bottom=15)
  if learn.feature_distance is not None:
    learn.feature_distance.update(classes=tuple(range(1, 9)))
  if learn.get('contrast'):
    learn.contrast.update(
      num_anchors=32, capacity=500, first_capacity=1000, max_push=64
    )
  config.evaluate = shared.block(protocol={}, batch_size=40)
