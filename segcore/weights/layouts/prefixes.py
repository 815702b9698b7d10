"""Prefixes of wrappers in torch's names of parameters, as 'module.'."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime import console

# From the outside in; names without are other networks. `encoder_q` and
# `base_encoder` are MoCo's, beside momentum encoders of other names.
PREFIXES = (
  'module.',
  'encoder_q.',
  'base_encoder.',
  'encoder.',
  'backbone.',
)


@dataclasses.dataclass(frozen=True)
class Unwrapped:
  """The arrays of one network of a file.

  Attributes:
    arrays: array by name, without the prefixes.
    removed: all prefixes that were removed, joined.
    left_out: names of arrays that have not these prefixes.
  """

  arrays: Mapping[str, Any]
  removed: str
  left_out: frozenset[str]


def remove_prefixes(
  arrays: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES
) -> Unwrapped:
  """Removes prefixes that any name has; names without them are left out.

  >>> remove_prefixes({'module.bn1.bias': 1, 'queue': 2})
  Unwrapped(arrays={'bn1.bias': 1}, removed='module.',
            left_out=frozenset({'queue'}))

  Args:
    arrays: array by name.
    prefixes: prefixes from the outside in.
  """
  left_out, removed = set(), ''
  for prefix in prefixes:
    inside = [name for name in arrays if name.startswith(prefix)]
    if inside:
      left_out.update(arrays.keys() - inside)
      arrays = {name.removeprefix(prefix): arrays[name] for name in inside}
      removed += prefix
  return Unwrapped(arrays, removed, frozenset(left_out))


def log_unwrapping(removed: str, left_out: Iterable[str]) -> None:
  """Prints removed prefixes, and the modules of names that are left out."""
  notes = [f'removed the prefix {removed}'] if removed else []
  modules = sorted({name.split('.')[0] for name in left_out})
  if modules:
    notes.append(f'left out {", ".join(modules)}')
  if notes:
    console.print_line(f"torch's weights: {'; '.join(notes)}")
