"""Parts of a config that the experiments of weak supervision share.

`losses` builds the losses of the system that an option chooses, `small_mit` a
network with attention for a CPU.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections

from configs import networks, shared, switches

# By option `system`: U2PL+ on AFA, AFA, a classifier whose CAMs are evaluated,
# and training on masks, an upper bound.
SYSTEMS = ['u2pl_plus', 'afa', 'cam', 'full']
# Parts of AFA and U2PL+ that options turn on and off.
_PARTS = {
  'affinity': 'affinity loss and propagated labels',
  'energy': 'dense energy of the predictions',
  'contrast': 'contrastive loss between pixels',
}
OPTIONS = {
  'system': SYSTEMS,
  **dict.fromkeys(_PARTS, switches.CHOICES),
  'contrast_weight': 0.1,  # of the contrastive loss
  'beta': 0.45,  # of Eqs. 29 and 31: value of a CAM that makes an anchor
  'literal': False,  # anchors of absent classes, as Eq. 29 is written
  'maps': ['cam', 'propagated'],  # M^c of Eqs. 29-31: CAMs, or after the walk
  'keys': ['student', 'teacher'],  # network of keys and prototypes
  'refine': ['none', 'par'],  # CAMs before they are evaluated; of system=cam
  'seed': 0,
  'crf': False,  # refine predictions; needs the package pydensecrf2
  'tiny': False,  # 60 steps; on generated images
}
# Groups of AFA: norms of a pretrained encoder are frozen; decoder and heads
# learn at ten times the rate.
GROUPS = (
  ('^encoder/.*norm', 0.0, 0.0),
  ('^(decoder|heads)/', 10.0, 1.0),
)


def losses(
  options: SimpleNamespace,
  *,
  class_steps: int,
  refined_steps: int,
  attends: bool = True,
  cam: dict[str, Any] | None = None,
  affinity: dict[str, Any] | None = None,
  energy: dict[str, Any] | None = None,
  contrast: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Builds the losses of U2PL+, AFA, a classifier or training on masks.

  Args:
    options: parsed options, among them `OPTIONS`.
    class_steps: last step with the class loss alone.
    refined_steps: last step with refined labels; later ones are propagated.
    attends: whether the encoder has attention, which affinities are made of.
    cam: further fields of CAMs and labels.
    affinity: further fields of the affinities.
    energy: further fields of the energy.
    contrast: further fields of the contrastive loss.

  Raises:
    ValueError: a part is turned on, or an option given, that has no effect on
      the system.
  """
  has = _parts(options, attends)
  if options.system == 'full':
    return {'supervision': 'masks', 'affinity': None}
  if options.system == 'cam':
    return {'segmentation': False, 'affinity': None, 'cam': {**(cam or {})}}
  fields: dict[str, Any] = {
    'class_steps': class_steps,
    'refined_steps': refined_steps,
    'cam': {**(cam or {})},
    'affinity': {**(affinity or {})} if has['affinity'] else None,
    'energy': {**(energy or {})} if has['energy'] else None,
  }
  if has['contrast']:
    fields['contrast'] = {
      'weight': options.contrast_weight,
      'anchor_threshold': options.beta,
      'negative_threshold': options.beta,
      'absent_anchors': options.literal,
      'maps': options.maps,
      'key_source': options.keys,
      **(contrast or {}),
    }
  return fields


def _parts(options: SimpleNamespace, attends: bool) -> dict[str, bool]:
  """Returns which parts of the method are on.

  Raises:
    ValueError: as `losses`.
  """
  labels_pixels = options.system in ('u2pl_plus', 'afa')
  own = {
    'affinity': labels_pixels and attends,
    'energy': False,
    'contrast': options.system == 'u2pl_plus',
  }
  has = switches.active_parts(options, own)
  for part, meaning in _PARTS.items():
    if has[part] and not labels_pixels:
      raise ValueError(
        f'config option {part}=on: system={options.system} has no place for '
        f'{meaning}: expected u2pl_plus or afa'
      )
  of_contrast = {
    'contrast_weight': 0.1,
    'beta': 0.45,
    'literal': False,
    'maps': 'cam',
    'keys': 'student',
  }
  of_parts = {name: (value, 'contrast') for name, value in of_contrast.items()}
  switches.check_part_options(options, has, _PARTS, of_parts)
  if options.maps == 'propagated' and not has['affinity']:
    raise ValueError(
      'config option maps=propagated: expected affinity=on and an encoder with '
      'attention, since affinities propagate the maps'
    )
  return has


def cam_refinement(options: SimpleNamespace) -> str | None:
  """Returns the refinement of evaluated CAMs that option `refine` chooses.

  Args:
    options: parsed options, among them `OPTIONS`.

  Raises:
    ValueError: the system's CAMs are not evaluated.
  """
  if options.refine == 'none':
    return None
  if options.system != 'cam':
    raise ValueError(
      f'config option refine={options.refine}: expected system=cam, whose CAMs '
      f'are evaluated, got system={options.system}'
    )
  return options.refine


def small_mit() -> ml_collections.ConfigDict:
  """Builds a MiT and SegFormer's decoder for a CPU.

  Its last two maps have stride 8, of which the last attends to all cells.
  """
  return shared.block(
    encoder={
      'name': 'mit',
      'hidden_sizes': (16, 32, 64),
      'num_layers': (1, 1, 2),
      'num_heads': (1, 1, 2),
      'strides': (4, 2, 1),
      'reductions': (4, 2, 1),
    },
    decoder={'name': 'segformer', 'width': 32},
  )


def small_resnet() -> ml_collections.ConfigDict:
  """Builds a ResNet of stride 8 and SegFormer's decoder for a CPU."""
  return shared.block(
    **networks.small_pass(), decoder={'name': 'segformer', 'width': 32}
  )


def small_losses(
  options: SimpleNamespace, steps: int, attends: bool = True
) -> dict[str, Any]:
  """Builds the losses for images of some 100 pixels a side, on a CPU.

  Args:
    options: parsed options, among them `OPTIONS`.
    steps: number of training steps.
    attends: whether the encoder has attention.
  """
  return losses(
    options,
    attends=attends,
    class_steps=steps // 4,
    refined_steps=steps // 2,
    cam={'refinement': {'dilations': (1, 2, 4, 8)}},
    affinity={'radius': 3},
    energy={'distance': 10.0},
    contrast={
      'num_anchors': 64,
      'capacity': 2000,
      'max_push': 256,
      'keys_per_image': 32,
    },
  )


def generate_images(config: ml_collections.ConfigDict) -> None:
  """Replaces images and network of the paper by generated and small ones."""
  config.network = small_mit()
  weak = config.weak
  weak.update(data={'name': 'shapes/scenes'}, split='train')
  weak.update(start={'path': '', 'take': ()})
  weak.crop.size = (64, 64)
  weak.update(heads={'width': 16, 'representation': 16})
  weak.recipe.batch_size = 8
  weak.recipe.optimizer.learning_rate = 1e-3
  weak.recipe.optimizer.groups = ()
  config.evaluate = shared.block(
    protocol={'scales': (1.0, 0.5), 'scale_merge': 'max', 'flip': True},
    batch_size=40,
  )


def shorten(config: ml_collections.ConfigDict, options: Any) -> None:
  """Cuts the training to 60 steps, 10 of them of the class loss alone."""
  recipe = config.weak.recipe
  recipe.update(num_steps=60, evaluate_every=30)
  recipe.optimizer.warmup_steps = 5
  learn = small_losses(options, 60, config.network.encoder.name == 'mit')
  if 'class_steps' in learn:
    learn |= {'class_steps': 10, 'refined_steps': 30}
  config.weak.learn = shared.block(**learn)
  config.update(operation={'log_every': 10, 'save_every': 20})
