"""D2S against slow numpy transcriptions (spec §2.7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import heads, objective_options
from pass_luss.pretrain.objectives import d2s
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import BATCH, PROTOTYPES, SIZE
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')

SIZES = objective_options.HeadSizes(8, SIZE, PROTOTYPES)


def random_targets():
  """Draws targets of both views, [2, B, K]."""
  targets = pass_pretraining.sinkhorn(
    arrays.normal(2 * BATCH, PROTOTYPES, seed=4, scale=0.2)
  )
  return targets.reshape(2, BATCH, PROTOTYPES)


@pytest.mark.parametrize('view', ['other', 'same'])
def test_loss_and_its_gradient(view):
  scores = arrays.normal(BATCH, 2, PROTOTYPES, scale=0.3)
  targets = random_targets()

  @jax.jit
  def loss(x):
    return d2s.d2s_loss(x, jnp.asarray(np.moveaxis(targets, 0, 1)), 0.1, view)

  def reference_loss(x):
    return pass_pretraining.d2s_loss(
      np.moveaxis(x, 1, 0), targets, 0.1, same_view=view == 'same'
    )

  arrays.assert_close(loss(scores), reference_loss(scores))
  arrays.assert_gradient(loss, reference_loss, scores)


@pytest.mark.parametrize('kind', ['deep', 'own'])
def test_objective_on_two_stages(kind):
  scores = {
    stage: arrays.normal(BATCH, 2, PROTOTYPES, seed=int(stage), scale=0.3)
    for stage in ('3', '2')
  }
  deep = random_targets()
  objective = d2s.D2S(
    objective_options.D2SOptions((3, 2), targets=kind),
    SIZES,
    objective_options.SwavOptions(),
  )

  @jax.jit
  def loss(scores, assignments):
    def step(**targets):
      return support.step(
        {'d2s': scores},
        prototypes=jnp.zeros((SIZE, PROTOTYPES)),
        targets=targets | {'swav': {'assignments': assignments}},
      )

    return objective.loss(step(d2s=objective.targets(step())))

  terms, scalars = loss(scores, np.moveaxis(deep, 0, 1))
  assert scalars == {}
  assert set(terms) == {'loss_shallow3', 'loss_shallow2'}
  for stage, of_stage in scores.items():
    logits = np.moveaxis(of_stage, 1, 0)
    targets = deep if kind == 'deep' else pass_pretraining.swav_targets(logits)
    arrays.assert_close(
      terms[f'loss_shallow{stage}'],
      pass_pretraining.d2s_loss(logits, targets, 0.1),
    )


def test_shallow_scores_give_the_prototypes_no_gradient():
  head = heads.Clusters(8, SIZE, PROTOTYPES)
  embeddings = arrays.normalized(BATCH, SIZE).astype(np.float32)
  variables = jax.jit(head.init)(jax.random.PRNGKey(0), np.zeros((2, 1, 1, 3)))

  def total(params, embeddings, method):
    return jnp.sum(
      head.apply({**variables, 'params': params}, embeddings, method=method)
    )

  gradient = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
  fixed = gradient(variables['params'], embeddings, 'fixed_scores')
  assert not np.asarray(fixed[0]['prototypes']).any()
  learned = gradient(variables['params'], embeddings, 'score')
  assert np.asarray(learned[0]['prototypes']).all()
  np.testing.assert_array_equal(fixed[1], learned[1])


def test_unknown_stages_are_refused():
  for stages in ((4,), (3, 3)):
    with pytest.raises(ValueError, match=r'stages: expected some of \(3, 2, 1'):
      objective_options.D2SOptions(stages)
