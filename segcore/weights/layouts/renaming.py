"""Renaming of torch's arrays, and their axes and leaves in flax."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

# Collection and name in flax of the leaves of a torch batch norm.
NORM_LEAVES = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def replace_patterns(name: str, rules: Iterable[tuple[str, str]]) -> str:
  """Applies rules (pattern, replacement) to a name, one after the other."""
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def join_projections(
  arrays: Mapping[str, Any], parts: Sequence[str], joined: str
) -> dict[str, Any]:
  """Joins the arrays of several modules to those of one, along the first axis.

  >>> join_projections({'a.k.bias': [1], 'a.v.bias': [2]}, ('k', 'v'), 'kv')
  {'a.kv.bias': array([1, 2])}

  Args:
    arrays: array by name; parts whose siblings are missing are kept.
    parts: names of the modules, in the order of the result.
    joined: name of the module that replaces them.
  """
  result = dict(arrays)
  for name in arrays:
    module, _, leaf = name.rpartition('.')
    block, _, part = module.rpartition('.')
    names = [f'{block}.{each}.{leaf}' for each in parts]
    if part == parts[0] and all(each in arrays for each in names):
      values = [result.pop(each) for each in names]
      result[f'{block}.{joined}.{leaf}'] = np.concatenate(values)
  return result


def convert_leaf(
  leaf: str, value: Shaped[np.ndarray, '...']
) -> tuple[str, Shaped[np.ndarray, '...']]:
  """Converts an array of torch to flax's leaf and axes.

  A 'weight' [O, I, h, w] or [O, I] becomes a 'kernel' [h, w, I, O] or [I, O],
  that of a norm its 'scale'; other leaves are returned unchanged.
  """
  if leaf != 'weight':
    return leaf, value
  if value.ndim == 4:
    return 'kernel', value.transpose(2, 3, 1, 0)
  return ('kernel', value.T) if value.ndim == 2 else ('scale', value)
