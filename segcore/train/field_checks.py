"""Checks of the fields of an optimizer, whose messages name the field."""

import math
import re
from typing import Any, NoReturn


def check_group(field: str, group: Any) -> None:
  """Raises ValueError unless a value is a group of parameters."""
  if not isinstance(group, tuple) or len(group) != 3:
    refuse(field, group, '(pattern, learning-rate and weight-decay factor)')
  pattern, learning_rate, weight_decay = group
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    refuse(f'{field} pattern', pattern, f'a regular expression ({error})')
  check_number(f'{field} learning-rate factor', learning_rate)
  check_number(f'{field} weight-decay factor', weight_decay)


def check_word(field: str, value: Any, words: tuple[str, ...]) -> None:
  """Raises ValueError unless a value is one of some words."""
  if value not in words:
    refuse(field, value, f'one of {", ".join(words)}')


def check_number(
  field: str,
  value: Any,
  above: float | None = None,
  below: float | None = None,
  most: float | None = None,
) -> None:
  """Raises ValueError unless a value is a finite number within bounds.

  Args:
    field: name of the field, for the message.
    value: the value.
    above: exclusive lower bound; None for the inclusive bound 0.
    below: exclusive upper bound.
    most: inclusive upper bound.
  """
  expected = 'a number >= 0' if above is None else f'a number > {above:g}'
  if below is not None:
    expected += f' and < {below:g}'
  if most is not None:
    expected += f' and <= {most:g}'
  if (
    isinstance(value, bool)
    or not isinstance(value, int | float)
    or not math.isfinite(value)
    or (value < 0 if above is None else value <= above)
    or (below is not None and value >= below)
    or (most is not None and value > most)
  ):
    refuse(field, value, expected)


def refuse(field: str, value: Any, expected: str) -> NoReturn:
  """Raises ValueError for a field with a wrong value."""
  raise ValueError(f'{field}: expected {expected}, got {value!r}')
