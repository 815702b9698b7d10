"""Options of the EMA teacher, the pseudo-labels and the student's augmentation.

OPTIONS are those of the small experiments of U2PL.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from configs import options as options_lib

OPTIONS = {
  # Decay of the EMA teacher; 0: 0.99, or 0.996 in unimatch_v2.
  'ema': 0.0,
  # Batch statistics of the teacher: of its own passes, or the student's.
  'statistics': ['own', 'ema', 'copy'],
  # Least probability of a pseudo-label for the student to learn it; 0: none,
  # or 0.95 in unimatch and unimatch_v2.
  'confidence': 0.0,
  # Probabilities that the student sees an unlabeled image with other colors, in
  # gray, or blurred; 0: never, or 0.8, 0.2 and 0.5 in unimatch and unimatch_v2.
  'jitter': 0.0,
  'gray': 0.0,
  'blur': 0.0,
}
# Strengths of the changes of colors, those of UniMatch (Yang et al. 2023).
_COLORS = {
  'brightness': 0.5,
  'contrast': 0.5,
  'saturation': 0.5,
  'hue': 0.25,
}
# All of UniMatch's, which a system without an own block does not state.
PUBLISHED_COLORS = {'jitter': 0.8, 'gray': 0.2, 'blur': 0.5, **_COLORS}

# Systems with an EMA teacher that is run in training mode.
_TEACHERS = ('u2pl_plus', 'u2pl', 'cutmix', 'classmix', 'mt')
_VIEWS = (*_TEACHERS, 'unimatch', 'unimatch_v2')
_AEL = ('ael', 'u2pl_ael')
# Systems that take each option.
_TAKEN_BY = {
  'ema': (*_TEACHERS, 'unimatch_v2', *_AEL),
  'statistics': (*_TEACHERS, *_AEL),
  'confidence': (*_VIEWS, *_AEL),
  'jitter': _VIEWS,
  'gray': _VIEWS,
  'blur': _VIEWS,
}

# Settings of the systems with an EMA teacher that learn most from unlabeled
# photographs with a pretrained encoder; docs/results/photographs.md.
PHOTOGRAPHS = {
  'ema': 0.98,
  'statistics': ['ema', 'own', 'copy'],
  'confidence': 0.8,
  'jitter': 0.8,
}


def parse(
  argument: str | None, own: Mapping[str, Any], **defaults: Any
) -> SimpleNamespace:
  """Parses options of which some have other defaults with an EMA teacher.

  Args:
    argument: options of the command line.
    own: defaults with a system whose EMA teacher is run in training mode.
    **defaults: defaults of all options, among them `OPTIONS` and `system`.

  Raises:
    ValueError: an option is unknown, or its value has another type.
  """
  options = options_lib.parse(argument, **defaults)
  if options.system not in _TEACHERS:
    return options
  return options_lib.parse(argument, **defaults | own)


def refuse_options(options: SimpleNamespace) -> None:
  """Raises ValueError for options that the system does not take.

  Args:
    options: parsed options, among them `OPTIONS` and `system`.

  Raises:
    ValueError: one of `OPTIONS` differs from its default.
  """
  for name, default in OPTIONS.items():
    value = getattr(options, name)
    given = value != (default[0] if isinstance(default, list) else default)
    if given and options.system not in _TAKEN_BY[name]:
      raise ValueError(
        f'config option {name}={value}: expected one of the systems '
        f'{", ".join(_TAKEN_BY[name])}, got system={options.system}'
      )


def teacher(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the fields of the block `teacher` that differ from its defaults."""
  fields: dict[str, Any] = {'decay': options.ema} if options.ema else {}
  if options.statistics != 'own':
    fields['statistics'] = options.statistics
  return fields


def student_view(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the fields of pseudo-label confidence and color augmentation.

  Fields whose options have the default are left out.
  """
  changes = {
    name: getattr(options, name)
    for name in ('jitter', 'gray', 'blur')
    if getattr(options, name)
  }
  fields: dict[str, Any] = {}
  if options.confidence:
    fields['confidence'] = options.confidence
  if changes:
    fields['color'] = changes | (_COLORS if 'jitter' in changes else {})
  return fields
