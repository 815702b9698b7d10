"""Scores of a clustering against the classes of its rows.

scores = clustering_scores.score_clustering(assignments, classes)
"""

import numpy as np
from etils import epy
from jaxtyping import Float, Int

with epy.lazy_imports():
  import scipy.optimize


def score_clustering(
  assignments: Int[np.ndarray, 'N'], labels: Int[np.ndarray, 'N']
) -> dict[str, float]:
  """Scores a clustering against classes.

  Args:
    assignments: cluster of each row, from 0.
    labels: class of each row, from 0; the number of classes may differ.

  Returns:
    nmi: mutual information divided by the mean of the two entropies, in [0, 1];
      1 if there is one cluster and one class.
    accuracy: share of rows whose cluster is matched with their class, under the
      one-to-one matching that maximizes it (Hungarian method).

  Raises:
    ValueError: there are no rows, or an id is negative.
  """
  lowest = min(assignments.min(initial=0), labels.min(initial=0))
  if not labels.size or lowest < 0:
    raise ValueError(
      'score_clustering: expected at least one row and ids from 0, got '
      f'{labels.size} rows with ids from {lowest}'
    )
  shape = (assignments.max() + 1, labels.max() + 1)
  cells = assignments.astype(np.int64) * shape[1] + labels
  table = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
  rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
  joint = table / labels.size
  entropies = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
  information = entropies - _entropy(joint.ravel())
  return {
    'nmi': float(max(2 * information / entropies, 0)) if entropies > 0 else 1.0,
    'accuracy': float(table[rows, columns].sum() / labels.size),
  }


def _entropy(probs: Float[np.ndarray, 'N']) -> float:
  """Computes the entropy in nats."""
  probs = probs[probs > 0]
  return float(-np.sum(probs * np.log(probs)))
