"""Classes of the clusters of cells, by the pixels that they share."""

from typing import Literal, NamedTuple

import numpy as np
from etils import epy
from jaxtyping import Int

with epy.lazy_imports():
  import scipy.optimize

Kind = Literal['one-to-one', 'many-to-one']


class ClusterMatch(NamedTuple):
  """The class of each cluster.

  Attributes:
    classes: class of each cluster.
    kind: 'one-to-one' for as many clusters as classes; 'many-to-one' for more,
      of which several may have one class.
  """

  classes: tuple[int, ...]
  kind: Kind


def match_clusters(counts: Int[np.ndarray, 'C K']) -> ClusterMatch:
  """Matches clusters with classes so that most pixels are right.

  As many clusters as classes are matched one to one (Hungarian method). Of
  more, each takes the class with which it shares most pixels, the first one on
  a tie.

  >>> match_clusters(np.array([[5, 0], [9, 3]]))
  ClusterMatch(classes=(1, 0), kind='one-to-one')

  Args:
    counts: number of labeled pixels by class and cluster.

  Raises:
    ValueError: there are fewer clusters than classes.
  """
  num_classes, num_clusters = counts.shape
  if num_clusters < num_classes:
    raise ValueError(
      f'counts: expected at least {num_classes} clusters, one for each class, '
      f'got {num_clusters}'
    )
  if num_clusters > num_classes:
    return ClusterMatch(
      tuple(np.argmax(counts, axis=0).tolist()), 'many-to-one'
    )
  rows, columns = scipy.optimize.linear_sum_assignment(counts, maximize=True)
  return ClusterMatch(tuple(rows[np.argsort(columns)].tolist()), 'one-to-one')
