"""The momentum encoder's decay and its share of the parameters."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import momentum
from tests.pass_luss.pretrain import arrays
from tests.transcriptions import pass_updates

pytestmark = pytest.mark.usefixtures('float64')

SPEC = momentum.MomentumSpec(
  functools.partial(momentum.momentum_encoder_decay, initial=0.99),
  {'pixpro': ('projector',)},
)


@pytest.mark.parametrize('step', [0, 1, 37, 100])
def test_cosine_decay(step):
  actual = momentum.momentum_encoder_decay(jnp.asarray(step), 100, 0.99)
  arrays.assert_close(actual, pass_updates.momentum(step, 100, 0.99))


def test_only_the_encoder_and_shared_modules_are_averaged():
  params = {
    'encoder': {'conv': 1},
    'heads': {'clusters': 2, 'pixpro': {'projector': 3, 'transform': 4}},
  }
  assert SPEC.select(params) == {
    'encoder': {'conv': 1},
    'heads': {'pixpro': {'projector': 3}},
  }
  # Modules without batch statistics have an empty tree.
  assert SPEC.select({}) == {
    'encoder': {},
    'heads': {'pixpro': {'projector': {}}},
  }


def test_update_is_an_exponential_moving_average():
  def tree(value):
    return {
      'encoder': {'conv': jnp.asarray(value)},
      'heads': {'pixpro': {'projector': jnp.asarray(-value)}},
    }

  updated = SPEC.update(tree(1.0), tree(3.0), jnp.asarray(50), 100)
  # Half way the decay is 0.995.
  expected = pass_updates.ema(1.0, 3.0, 0.995)
  np.testing.assert_allclose(updated['encoder']['conv'], expected)
  np.testing.assert_allclose(updated['heads']['pixpro']['projector'], -expected)
