"""Losses of the systems that the option `system` of U2PL's configs chooses.

U2PL, what it is compared with, and the parts of Table IV; `semi_systems` has
the other systems.
"""

from types import SimpleNamespace
from typing import Any

from configs import semi_systems, shared, switches, unlabeled

# Systems with a teacher, of which U2PL is one.
_WITH_TEACHER = ['u2pl_plus', 'u2pl', 'cutmix', 'classmix', 'mt']
# Systems with a contrastive loss between pixels.
WITH_CONTRAST = ['u2pl', 'u2pl_plus', 'u2pl_ael']
# By option `system`: U2PL+, U2PL, and what they are compared with.
SYSTEMS = [*_WITH_TEACHER, 'sup_only', *semi_systems.LOSSES]
# Parts of the method that Table IV turns on and off.
PARTS = {
  'bank': 'negatives of earlier steps',
  'dpa': 'a falling share of unreliable pixels (dynamic partition)',
  'prt': 'negatives by rank windows (probability rank threshold)',
  'un': 'unreliable pixels as negatives',
  'pd': 'prototypical denoising',
  'mp': 'momentum prototypes',
  'sce': 'symmetric cross entropy',
}
_MIXING = {
  'u2pl_plus': 'cutmix',
  'u2pl': 'cutmix',
  'cutmix': 'cutmix',
  'classmix': 'classmix',
  'mt': 'none',
}
# Contrast where no option says otherwise.
_CONTRAST = {'weight': 0.1, 'anchor_entropy': 'paper'}


def small_losses(
  options: SimpleNamespace, warmup_epochs: int, weight: float, **contrast: Any
) -> dict[str, Any]:
  """Builds the losses of training on small images.

  Args:
    options: options of the config: those of `SMALL`.
    warmup_epochs: number of epochs of training on labeled images alone.
    weight: weight of the loss of unlabeled images.
    **contrast: further fields of the contrastive loss.

  Raises:
    ValueError: a part is turned on, or an option given, that has no effect on
      the system.
  """
  unlabeled.refuse_options(options)
  sizes = {
    'num_anchors': 64,
    'capacity': 2000,
    'first_capacity': 4000,
    'max_push': 256,
  }
  if options.system in semi_systems.LOSSES:
    return losses(
      options,
      supervised=shared.class_weights(options),
      contrast={**sizes, **contrast},
      weight=weight,
      warmup_epochs=warmup_epochs,
    )
  return losses(
    options,
    supervised=shared.class_weights(options),
    teacher=unlabeled.teacher(options),
    consistency={'weight': weight, **unlabeled.student_view(options)},
    contrast={**sizes, **contrast},
    warmup_epochs=warmup_epochs,
  )


def losses(
  options: SimpleNamespace,
  *,
  mixing: dict[str, Any] | None = None,
  consistency: dict[str, Any] | None = None,
  contrast: dict[str, Any] | None = None,
  **fields: Any,
) -> dict[str, Any]:
  """Builds the losses of U2PL, U2PL+ or a baseline.

  Args:
    options: `system`, a switch for each part, and those of contrast.
    mixing: further fields of the strong augmentation.
    consistency: further fields of the loss of unlabeled images.
    contrast: further fields of the contrastive loss.
    **fields: further fields of the losses, such as `supervised`; all of them
      for a system beside U2PL's own.

  Raises:
    ValueError: a part is turned on, or an option given, that has no effect on
      the system.
  """
  if options.pair != 'other' and options.system != 'cps_cutmix':
    raise ValueError(
      f'config option pair={options.pair}: expected it with '
      f'system=cps_cutmix, got system={options.system}'
    )
  has = _parts(options)
  contrasts = options.system in WITH_CONTRAST
  pseudo_labels = {
    'reverse': 0.1 if has['sce'] else 0.0,
    'denoise': 'raw' if has['pd'] else 'off',
  }
  branch = _branch(options, has, contrast or {})
  if options.system in semi_systems.LOSSES:
    if contrasts:
      fields |= pseudo_labels | branch
    return semi_systems.LOSSES[options.system](options, **fields)
  return {
    'consistency': None
    if options.system == 'sup_only'
    else {
      'filtered': contrasts,
      **pseudo_labels,
      'mixing': {'kind': _MIXING[options.system], **(mixing or {})},
      **(consistency or {}),
    },
    **branch,
    **fields,
  }


def _branch(
  options: SimpleNamespace, has: dict[str, bool], contrast: dict[str, Any]
) -> dict[str, Any]:
  """Builds the fields of the contrastive branch.

  Args:
    options: `system`, and those of contrast.
    has: whether each part is on.
    contrast: further fields of the contrastive loss.

  Raises:
    ValueError: an option is given that has no effect on the system.
  """
  has_contrast = options.system in WITH_CONTRAST
  given = {
    'weight': options.contrast_weight,
    'anchor_entropy': options.anchor_entropy,
  }
  if not has_contrast and given != _CONTRAST:
    raise ValueError(
      'config options contrast_weight and anchor_entropy: '
      f'system={options.system} has no contrast, expected one of '
      f'{", ".join(WITH_CONTRAST)}'
    )
  fields = {
    **given,
    'by_rank': has['prt'],
    'negatives': 'unreliable' if has['un'] else 'reliable',
    'bank': has['bank'],
    **contrast,
  }
  return {
    'contrast': fields if has_contrast else None,
    'partition': {'dynamic': has['dpa']},
    'prototype_momentum': 0.999 if has['mp'] else 0.0,
  }


def _parts(options: SimpleNamespace) -> dict[str, bool]:
  """Returns which parts of the method are on.

  Raises:
    ValueError: a part is turned on that has no effect on the system.
  """
  system = options.system
  contrasts, plus = system in WITH_CONTRAST, system == 'u2pl_plus'
  own = dict.fromkeys(('bank', 'dpa', 'prt', 'un'), contrasts)
  own |= dict.fromkeys(('pd', 'mp', 'sce'), plus)
  has = switches.active_parts(options, own)
  # Without contrast only pseudo-labels and their loss are left to change, and
  # prototypes matter only to denoise pseudo-labels.
  possible = ('pd', 'sce', *(('mp',) if has['pd'] else ()))
  if contrasts:
    possible = tuple(PARTS)
  elif system not in _WITH_TEACHER:
    possible = ()
  for part, meaning in PARTS.items():
    if getattr(options, part) == 'on' and part not in possible:
      where = WITH_CONTRAST
      if part in ('pd', 'sce'):
        where = [*_WITH_TEACHER, 'u2pl_ael']
      also = ', or pd=on beside it' if part == 'mp' and possible else ''
      raise ValueError(
        f'config option {part}=on: system={system} has no place for {meaning}: '
        f'expected one of {", ".join(where)}{also}'
      )
  return has
