"""SimSiam against slow numpy transcriptions (spec §2.6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain.objectives import simsiam
from segcore.train import optimizers, tree_paths
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_loss():
  p, z = arrays.normal(3, 2, 4), arrays.normal(3, 2, 4, seed=1)

  def loss(p):
    # Projections that depend on p, too, have no gradient.
    return simsiam.simsiam_loss(p, z + p - jax.lax.stop_gradient(p))

  def reference(p):
    return luss_comparators.simsiam_loss(p[:, 0], p[:, 1], z[:, 0], z[:, 1])

  arrays.assert_close(jax.jit(loss)(p), reference(p))
  arrays.assert_gradient(loss, reference, p)


def test_objective_has_statistics_of_each_view():
  maps = arrays.normal(4, 2, 2, 3, 5)
  maps[:, 1] = 2 * maps[:, 1] + 1
  objective = simsiam.Simsiam(
    comparator_options.SimsiamOptions(size=6, hidden=3)
  )
  head = objective.heads(jnp.float64)['simsiam']
  net, params = support.bind('simsiam', head, maps[:, 0])
  projector, predictor = (
    support.layer_weights(params[name]) for name in ('projector', 'predictor')
  )
  assert [projector[f'w{i}'].shape for i in (1, 2, 3)] == [
    *((5, 5), (5, 5), (5, 6))
  ]
  # The last norm has no parameters, and no layer before a norm a bias.
  assert not {'gamma3', 'beta3', 'b1', 'b2', 'b3'} & set(projector)
  assert set(predictor) == {'w1', 'gamma1', 'beta1', 'w2', 'b2'}
  # The pattern of the constant learning rate finds the predictor alone.
  factors = optimizers.OptimizerOptions(
    learning_rate=1.0, groups=((simsiam.PREDICTOR, 3.0, 1.0),)
  ).factors
  paths = tree_paths.list_paths({'heads': {'simsiam': params}})
  assert {p for p in paths if factors(p)[0] == 3.0} == {
    f'heads/simsiam/predictor/{name}'
    for name in (
      *('dense1/kernel', 'bn1/scale', 'bn1/bias'),
      *('dense2/kernel', 'dense2/bias'),
    )
  }

  z = [
    luss_comparators.simsiam_projector(
      pass_pretraining.gap(maps[:, v]), projector
    )
    for v in (0, 1)
  ]
  p = [luss_comparators.simsiam_predictor(each, predictor) for each in z]
  result = support.evaluate(objective, net, maps, by_view=True)
  expected = luss_comparators.simsiam_loss(*p, *z)
  arrays.assert_close(result.terms['loss_simsiam'], expected, rtol=1e-5)
  mean = pass_pretraining.normalize(np.concatenate(z)).mean(axis=0)
  spread = 1 - np.linalg.norm(mean)
  arrays.assert_close(result.scalars['embedding_spread'], spread, rtol=1e-5)
