"""The comparators of the LUSS paper by hand."""

import math

import numpy as np
import pytest

from tests.transcriptions import luss_comparators as comparators

E1, E2 = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def test_info_nce():
  # q.k = 0.6, q.n = 0.8 and 0, at temperature 0.2: 3, 4 and 0.
  loss = comparators.info_nce(
    np.array([[0.6, 0.8]]), E1[None], np.stack([E2, 0 * E1], axis=1), 0.2
  )
  expected = math.log(math.exp(3) + math.exp(4) + 1) - 3
  assert loss == pytest.approx(expected)


def test_ring():
  ring, pointer = np.zeros((2, 4)), 2
  for keys in ([E1, 2 * E1], [E2, 3 * E2]):
    ring, pointer = comparators.ring_push(ring, pointer, np.array(keys))
  assert pointer == 2
  assert ring.tolist() == [[0, 0, 1, 2], [1, 3, 0, 0]]


def test_simclr():
  # Both views of both images: equal views of orthogonal images.
  z = np.array([[E1, E2], [3 * E1, 0.5 * E2]])
  expected = math.log(math.exp(2) + 2) - 2
  assert comparators.simclr_loss(z, 0.5) == pytest.approx(expected)
  doubled = comparators.simclr_loss(z, 0.5, released=True)
  assert doubled == pytest.approx(2 * expected)


def test_lars_with_the_rate_inside_of_the_momentum():
  w = comparators.simclr_lars_steps(
    [[3.0, 4.0]], [[[0.0, 2.0]], [[0.0, 2.0]]], [1.0, 0.1], 0.0, 0.01
  )
  # Ratios 0.01 x 5 / 2, then of w = (3, 3.95).
  second = 0.9 * 0.05 + 0.1 * 0.01 * math.hypot(3, 3.95)
  np.testing.assert_allclose(w, [[3.0, 3.95 - second]])
  bias = comparators.simclr_lars_steps([2.0], [[1.0]], [0.5], 0.1)
  assert bias.tolist() == [1.5]


def test_rate_of_an_epoch():
  rates = [comparators.epoch_cosine(step, 3, 4, 2.0, 1.0) for step in (2, 3, 6)]
  assert rates == pytest.approx([2.0, 1.5 + math.sqrt(0.125), 1.5])


def test_adco():
  q, keys, table = E1[None], np.array([[0.6, 0.8]]), np.array([[0.0], [2.0]])
  # Cosines 0.6 and 0; at 0.2: 3 and 0.
  loss = comparators.adco_loss(q, keys, table, 0.2)
  assert loss == pytest.approx(math.log(1 + math.exp(-3)))
  share = 1 / (1 + math.exp(3))
  g = comparators.adco_gradient(q, keys, table, 0.2)
  np.testing.assert_allclose(g[:, 0], [-share / (0.2 * 2), 0])
  new, v = comparators.adco_update(table, np.ones((2, 1)), g, 3, 0.5, 0.1)
  expected = np.array([[0.5 + g[0, 0]], [0.5 + 0.2]])
  np.testing.assert_allclose(v, expected)
  np.testing.assert_allclose(new, table - 3 * expected)


def test_byol_and_simsiam():
  p1, p2 = np.array([[2.0, 0]]), np.array([[0, 5.0]])
  z1, z2 = np.array([[0, 1.0]]), np.array([[3.0, 4]])
  # Cosines 0.6 and 1.
  assert comparators.byol_loss(p1, p2, z1, z2) == pytest.approx(0.8)
  assert comparators.simsiam_loss(p1, p2, z1, z2) == pytest.approx(-0.8)


def test_densities():
  x = np.array([[0.0, 0], [2, 0], [0, 0], [0, 4], [9, 9]])
  centroids = np.array([[1.0, 0], [0, 2], [9, 9], [7, 7]])
  assignments = np.array([0, 0, 1, 1, 2])
  # 1 / log 12 and 2 / log 12; single members and none take the largest. The
  # 10th percentile of (1, 2, 2, 2) is 1.3.
  phi = comparators.pcl_densities(x, centroids, assignments, 0.5)
  expected = np.array([1.3, 2, 2, 2])
  np.testing.assert_allclose(phi, 0.5 * expected / expected.mean())


def test_proto_nce():
  q = np.array([E1, E1])
  centroids, densities = np.array([E1, E2]), np.array([0.5, 0.25])
  # Both images share prototype 0, which stands in two columns.
  loss = comparators.proto_nce(q, centroids, densities, [0, 0], [1])
  assert loss == pytest.approx(math.log(2 * math.exp(2) + 1) - 2)


def test_matching():
  features = np.array([[[1.0, 0.1], [0, 3.0]]])
  keys = np.array([[[0, 1.0], [5.0, 0], [0, 2.0]]])
  assert comparators.densecl_match(features, keys).tolist() == [[1, 0]]
