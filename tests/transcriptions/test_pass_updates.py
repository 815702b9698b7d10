"""Learning rates and parameter updates of PASS by hand."""

import math

import numpy as np
import pytest

from tests.transcriptions import pass_updates


def test_swav_learning_rate():
  assert pass_updates.swav_learning_rate(0, 100) == pytest.approx(0.6)
  assert pass_updates.swav_learning_rate(50, 100) == pytest.approx(0.3003)
  assert pass_updates.swav_learning_rate(100, 100) == pytest.approx(0.0006)
  # A third of the way: cos(60 degrees) = 1/2.
  assert pass_updates.swav_learning_rate(1, 3, 1.0, 0.2) == pytest.approx(0.8)


def test_larc():
  w, g = np.array([3.0, 4.0]), np.array([0.0, 2.0])
  # |w| = 5, |g| = 2: 0.1 * 5 / (2 + 0.5 * 5) = 1/9.
  actual = pass_updates.larc(w, g, weight_decay=0.5, trust=0.1)
  np.testing.assert_allclose(actual, [1.5 / 9, 4 / 9])
  zero = np.zeros(2)
  np.testing.assert_array_equal(pass_updates.larc(zero, g, 0.5), g)
  np.testing.assert_array_equal(pass_updates.larc(w, zero, 0.5), zero)
  # Without weight decay the step's length is trust |w|.
  actual = pass_updates.larc(w, 1e3 * g, weight_decay=0)
  assert np.linalg.norm(actual) == pytest.approx(0.005)


def test_the_factors_of_short_gradients():
  w, g = np.array([[3.0, 4.0]]), np.array([[1e-8, 0.0]])
  for rule in (pass_updates.larc, pass_updates.lars):  # 5 / (1e-8 + 1e-8)
    actual = rule(w, g, weight_decay=0, trust=1)
    np.testing.assert_allclose(actual, [[2.5, 0]], err_msg=rule.__name__)


def test_sgd_momentum():
  w, m = pass_updates.sgd_momentum(np.array([1.0]), None, np.array([2.0]), 0.1)
  assert (w.tolist(), m.tolist()) == ([0.8], [2.0])
  w, m = pass_updates.sgd_momentum(w, m, np.array([1.0]), 0.5)
  np.testing.assert_allclose([w, m], [[0.8 - 0.5 * 2.8], [2.8]])


def test_larc_sgd_steps():
  weights = {'beta': np.zeros(1), 'kernel': np.array([3.0, 4.0])}
  g = np.array([1.0, 0.0])
  actual, momenta = pass_updates.larc_sgd_steps(
    weights,
    [{'beta': np.ones(1)}, {'beta': np.ones(1), 'kernel': g}],
    [0.5, 1.0],
    weight_decay=0,
    trust=0.1,
  )
  # beta: raw at first, w = -0.5; then 0.1 * 0.5 / 1 = 0.05 and m = 0.95. The
  # kernel is frozen at first; then its momentum is 0.1 * 5 g.
  np.testing.assert_allclose(actual['beta'], [-0.5 - 0.95], atol=1e-8)
  np.testing.assert_allclose(actual['kernel'], [2.5, 4], atol=1e-8)
  np.testing.assert_allclose(momenta['kernel'], [0.5, 0], atol=1e-8)
  assert weights['beta'] == 0


def test_lars():
  w, g = np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])
  # g + w / 2 = (1.5, 4): the norm of the sum, not the sum of the norms.
  actual = pass_updates.lars(w, g, weight_decay=0.5, trust=0.1)
  expected = np.array([[1.5, 4]]) * 0.5 / math.sqrt(1.5**2 + 16)
  np.testing.assert_allclose(actual, expected)
  np.testing.assert_array_equal(pass_updates.lars(w[0], g[0], 0.5), g[0])
  np.testing.assert_array_equal(pass_updates.lars(0 * w, g, 0.5), g)


def test_pixpro_learning_rate_and_momentum():
  rates = [
    pass_updates.pixpro_learning_rate(k, 30, 10, 2.0, 0.5) for k in range(31)
  ]
  assert rates[0] == pytest.approx(0.02)
  assert rates[5] == pytest.approx(1.01)
  assert rates[10] == pytest.approx(2.0)
  assert rates[20] == pytest.approx(1.25)
  assert rates[30] == pytest.approx(0.5)
  assert pass_updates.momentum(0, 8) == pytest.approx(0.99)
  assert pass_updates.momentum(4, 8) == pytest.approx(0.995)
  assert pass_updates.momentum(8, 8) == 1
  assert pass_updates.ema(2.0, 10.0, 0.75) == 4
