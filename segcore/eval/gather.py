"""Rows that hosts have found, put together in the order of a split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from segcore.eval import evaluator
from segcore.train import train_state

# Of a row, at most.
_MOST_AXES = 4


def predict_in_order(
  predictions: evaluator.Predictions, state: train_state.TrainState
) -> Float32[np.ndarray, 'N ...']:
  """What is predicted of each image, in order; the same on every host."""
  at = {name: i for i, name in enumerate(predictions.split.ids())}
  rows, indices = [], []
  for row, example in predictions(state):
    rows.append(row)
    indices.append(at[example['id'].item().decode()])
  return gather_in_order(rows, indices)


def gather_in_order(
  rows: Sequence[np.ndarray], indices: Sequence[int]
) -> Float32[np.ndarray, 'N ...']:
  """The rows of all hosts, each at its index; the same on every host."""
  found = all_gather(rows, np.float32)
  result = np.empty_like(found)
  result[all_gather(indices, np.int32)] = found
  return result


def all_gather(rows: Sequence[Any], dtype: type[np.number]) -> np.ndarray:
  """The rows of all hosts, one host's after the other's; the same on each.

  Args:
    rows: of this host; only host 0, whose rows say their shape, must have some.
    dtype: of the result.
  """
  if jax.process_count() == 1:
    return np.asarray(rows, dtype)
  told = np.full(_MOST_AXES, -1, np.int32)
  if jax.process_index() == 0:
    shape = np.shape(rows[0])
    told[: len(shape)] = shape
  told = np.asarray(multihost_utils.broadcast_one_to_all(told))
  own = np.asarray(rows, dtype).reshape(len(rows), *told[told >= 0].tolist())
  counts = multihost_utils.process_allgather(np.int32(len(own)))
  missing = int(np.max(counts)) - len(own)
  padded = np.pad(own, [(0, missing), *[(0, 0)] * (own.ndim - 1)])
  found = multihost_utils.process_allgather(padded)
  return np.concatenate(
    [part[:count] for part, count in zip(found, counts, strict=True)]
  )
