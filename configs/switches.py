"""Options that turn parts of a method on and off."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

# Values of such an option; 'auto' leaves the choice to the system.
CHOICES = ['auto', 'on', 'off']


def active_parts(
  options: SimpleNamespace, own: Mapping[str, bool]
) -> dict[str, bool]:
  """Returns which parts are on: by the options, else by the system.

  Args:
    options: parsed options, among them one of `CHOICES` for each part.
    own: whether the system has the part, by name of the part.
  """
  return {
    part: {'auto': default, 'on': True, 'off': False}[getattr(options, part)]
    for part, default in own.items()
  }


def check_part_options(
  options: SimpleNamespace,
  active: Mapping[str, bool],
  meanings: Mapping[str, str],
  of_parts: Mapping[str, tuple[Any, str]],
) -> None:
  """Checks that each option that is given changes a part that is on.

  Args:
    options: parsed options.
    active: which parts are on.
    meanings: by name of the part what it is, for messages.
    of_parts: by name of the option its default, and the part that it changes.

  Raises:
    ValueError: an option has no effect.
  """
  for name, (default, part) in of_parts.items():
    value = getattr(options, name)
    if value != default and not active[part]:
      raise ValueError(
        f'config option {name}={value}: expected {part}=on, since it has no '
        f'effect without {meanings[part]}'
      )
