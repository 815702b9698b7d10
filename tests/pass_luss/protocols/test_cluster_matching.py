import itertools

import numpy as np
import pytest

from pass_luss.protocols import cluster_matching


def test_as_many_clusters_as_classes_are_matched_one_to_one():
  counts = np.random.default_rng(0).integers(0, 100, (5, 5))
  best = max(
    itertools.permutations(range(5)),
    key=lambda classes: sum(counts[c, k] for k, c in enumerate(classes)),
  )
  match = cluster_matching.match_clusters(counts)
  assert match == (best, 'one-to-one')


def test_more_clusters_take_the_class_of_the_largest_overlap():
  counts = np.array([[5, 0, 4, 0], [3, 7, 4, 0]])
  match = cluster_matching.match_clusters(counts)
  # The third has a tie, the last no labeled pixel.
  assert match == ((0, 1, 0, 0), 'many-to-one')


def test_fewer_clusters_than_classes_are_refused():
  with pytest.raises(ValueError, match='at least 3 clusters, .* got 2'):
    cluster_matching.match_clusters(np.zeros((3, 2), int))
