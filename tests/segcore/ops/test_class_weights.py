import doctest

import numpy as np
import pytest

from segcore.ops import class_weights

PIXELS = np.array([1000, 10, 0, 40, 160])
IMAGES = np.array([8, 2, 0, 1, 4])


def weights(pixels=PIXELS, images=IMAGES, kind='median', **fields):
  options = class_weights.LossClassWeightOptions(kind, **fields)
  return class_weights.compute_class_weights(pixels, images, options)


def test_median_weights_by_hand():
  # The median of 10, 40, 160, 1000 is 100; the absent class does not count.
  np.testing.assert_allclose(
    weights(), [np.sqrt(0.1), np.sqrt(10), 1, np.sqrt(2.5), np.sqrt(0.625)]
  )
  np.testing.assert_allclose(
    weights(exponent=1.0), [0.2, 5, 1, 2.5, 0.625], rtol=1e-12
  )
  np.testing.assert_allclose(
    weights(exponent=1.0, least=0.01, most=20.0), [0.1, 10, 1, 2.5, 0.625]
  )


def test_median_weights_depend_on_shares_alone():
  np.testing.assert_allclose(weights(pixels=7 * PIXELS), weights())


def test_exponent_1_gives_every_class_the_same_share_of_the_loss():
  share = PIXELS * weights(exponent=1.0, least=1e-9, most=1e9)
  np.testing.assert_allclose(share[PIXELS > 0], 100)


def test_effective_number_is_a_geometric_sum_over_images():
  beta = 0.9
  sums = np.array([sum(beta**k for k in range(n)) for n in (8, 2, 1, 4)])
  expected = (1 / sums) / (1 / sums).mean()
  result = weights(kind='effective', beta=beta)
  np.testing.assert_allclose(result[[0, 1, 3, 4]], expected)
  assert result[2] == 1
  # Ends of the range: equal weights, and the inverse of the number of images.
  np.testing.assert_allclose(weights(kind='effective', beta=0.0), 1)
  inverse = weights(kind='effective', beta=1 - 1e-9)[[0, 1, 3, 4]]
  np.testing.assert_allclose(inverse / inverse[2], [1 / 8, 1 / 2, 1, 1 / 4])


@pytest.mark.parametrize('kind', ['none', 'median', 'effective'])
def test_without_a_pixel_all_weights_are_1(kind):
  zeros = np.zeros(3, np.int64)
  np.testing.assert_array_equal(weights(zeros, zeros, kind), 1)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'exponent': -1.0}, 'exponent: expected 0 or more, got -1.0'),
    ({'least': 0.0}, 'least and most: expected 0 < least <= most, got 0.0 and'),
    ({'least': 6.0}, 'least and most: expected 0 < least <= most, got 6.0 and'),
    ({'beta': 1.0}, r'beta: expected \[0, 1\), got 1.0'),
  ],
)
def test_wrong_options_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    class_weights.LossClassWeightOptions(**fields)


def test_examples():
  assert doctest.testmod(class_weights).failed == 0
