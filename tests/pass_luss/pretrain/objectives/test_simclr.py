"""SimCLR against slow numpy transcriptions (spec §2.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain.objectives import simclr
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_loss():
  z = arrays.normal(3, 2, 4)

  def loss(z):
    normalized = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return simclr.nt_xent_loss(normalized, 0.5)

  def reference(z):
    return luss_comparators.simclr_loss(np.moveaxis(z, 1, 0), 0.5)

  arrays.assert_close(jax.jit(loss)(z), reference(z))
  # Of both factors of the similarities.
  arrays.assert_gradient(loss, reference, z)


@pytest.mark.parametrize(
  ('head', 'combine_views'),
  [('batch_256', 'mean'), ('released', 'sum'), ('paper', 'mean')],
)
def test_objective_with_each_head(head, combine_views):
  maps = arrays.normal(4, 2, 2, 3, 5)
  # The views differ in mean and scale: batch statistics are of both.
  maps[:, 1] = 2 * maps[:, 1] + 1
  objective = simclr.Simclr(
    comparator_options.SimclrOptions(
      head=head, size=3, combine_views=combine_views
    )
  )
  net, params = support.bind_head(objective, maps)
  weights = params['projector']
  names = {
    'batch_256': {'w1', 'gamma1', 'beta1', 'w2', 'gamma2', 'beta2'},
    'released': {
      *('w1', 'gamma1', 'beta1', 'w2', 'gamma2', 'beta2', 'w3', 'gamma3')
    },
    'paper': {'w1', 'b1', 'w2'},
  }
  assert set(weights) == names[head]
  rows = luss_comparators.simclr_head(
    pass_pretraining.gap(maps.reshape(8, 2, 3, 5)), weights, head
  )
  expected = luss_comparators.simclr_loss(
    np.moveaxis(rows.reshape(4, 2, 3), 1, 0), 0.1, combine_views == 'sum'
  )
  terms = support.evaluate(objective, net, maps).terms
  arrays.assert_close(terms['loss_simclr'], expected, rtol=1e-5)
