import numpy as np
import pytest

from pass_luss.pseudo_labels import clustering_scores


def test_scores_by_hand():
  score = clustering_scores.score_clustering
  labels = np.array([0, 0, 1, 1])
  assert score(np.array([1, 1, 0, 0]), labels) == {'nmi': 1.0, 'accuracy': 1.0}
  assert score(np.zeros(4, int), labels) == {'nmi': 0.0, 'accuracy': 0.5}
  assert score(np.zeros(4, int), np.zeros(4, int)) == {
    'nmi': 1.0,
    'accuracy': 1.0,
  }
  # ln 2 is shared; the entropies are ln 2 and ln 4.
  apart = score(np.arange(4), labels)
  assert apart == {'nmi': pytest.approx(2 / 3), 'accuracy': 0.5}
  # Greedily 0 would take class 0 (3 of 5), and 1 be left with nothing.
  swapped = score(
    np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0, 0])
  )
  assert swapped['accuracy'] == pytest.approx(4 / 7)


def test_scores_equal_a_loop():
  rng = np.random.default_rng(0)
  labels = rng.integers(5, size=400)
  assignments = np.where(
    rng.random(400) < 0.6, labels, rng.integers(7, size=400)
  )
  mutual, entropies = 0.0, 0.0
  for a in range(7):
    for c in range(5):
      joint = np.mean((assignments == a) & (labels == c))
      apart = np.mean(assignments == a) * np.mean(labels == c)
      mutual += joint * np.log(joint / apart) if joint else 0.0
  for ids in (assignments, labels):
    for value in np.unique(ids):
      share = np.mean(ids == value)
      entropies -= share * np.log(share)
  actual = clustering_scores.score_clustering(assignments, labels)
  assert actual['nmi'] == pytest.approx(mutual / (entropies / 2), rel=1e-12)
  assert actual['accuracy'] == pytest.approx(np.mean(assignments == labels))


def test_scores_refuse_negative_ids_and_no_rows():
  with pytest.raises(ValueError, match='rows with ids from -1'):
    clustering_scores.score_clustering(np.array([0, -1]), np.array([0, 0]))
  with pytest.raises(ValueError, match='got 0 rows'):
    clustering_scores.score_clustering(np.zeros(0, int), np.zeros(0, int))
