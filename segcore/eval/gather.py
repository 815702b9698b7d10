"""All-gather of rows that hosts have computed, in the order of a split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from segcore.eval import evaluator
from segcore.train import train_state

# Most axes that a row may have.
_MAX_AXES = 4


def predict_in_order(
  predictions: evaluator.Predictions, state: train_state.TrainState
) -> Float32[np.ndarray, 'N ...']:
  """Returns the prediction for each image of a split, on every host."""
  index_by_id = {name: i for i, name in enumerate(predictions.split.ids())}
  rows, indices = [], []
  for row, example in predictions(state):
    rows.append(row)
    indices.append(index_by_id[example['id'].item().decode()])
  return gather_predictions_in_order(rows, indices)


def gather_predictions_in_order(
  rows: Sequence[np.ndarray], indices: Sequence[int]
) -> Float32[np.ndarray, 'N ...']:
  """Gathers the rows of all hosts and places each at its index.

  Args:
    rows: arrays of equal shape, of this host.
    indices: index of each row; over all hosts a permutation of 0…N-1.
  """
  gathered = all_gather_predictions(rows, np.float32)
  result = np.empty_like(gathered)
  result[all_gather_predictions(indices, np.int32)] = gathered
  return result


def all_gather_predictions(
  rows: Sequence[Any] | np.ndarray, dtype: type[np.number]
) -> np.ndarray:
  """Concatenates the rows of all hosts, in the order of the hosts.

  Args:
    rows: rows of this host. Hosts may have different numbers of them, and none,
      except host 0, whose first row defines the shape.
    dtype: type of the result.
  """
  if jax.process_count() == 1:
    return np.asarray(rows, dtype)
  # A host without rows does not know their shape.
  row_shape = np.full(_MAX_AXES, -1, np.int32)
  if jax.process_index() == 0:
    shape = np.shape(rows[0])
    row_shape[: len(shape)] = shape
  row_shape = np.asarray(multihost_utils.broadcast_one_to_all(row_shape))
  local = np.asarray(rows, dtype).reshape(
    len(rows), *row_shape[row_shape >= 0].tolist()
  )
  # The collective takes arrays of equal shape: rows are padded, then cut off.
  counts = multihost_utils.process_allgather(np.int32(len(local)))
  missing = int(np.max(counts)) - len(local)
  padded = np.pad(local, [(0, missing), *[(0, 0)] * (local.ndim - 1)])
  gathered = multihost_utils.process_allgather(padded)
  return np.concatenate(
    [part[:count] for part, count in zip(gathered, counts, strict=True)]
  )
