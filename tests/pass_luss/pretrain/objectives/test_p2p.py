"""P2P and its variants against slow numpy transcriptions (spec §2.6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import objective_options, view_geometry
from pass_luss.pretrain.objectives import p2p, p2p_variants
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import PROTOTYPES, SIZE
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')

SIZES = objective_options.HeadSizes(8, SIZE, PROTOTYPES)


def test_regression_from_maps_and_its_gradient():
  boxes, flips = arrays.random_boxes(4, seed=2)
  maps = arrays.normal(4, 2, 5, 5, SIZE)
  matrix = arrays.normal(SIZE, SIZE, seed=5)
  first, second = (
    np.array([arrays.reference_box(box) for box in boxes[:, view]])
    for view in (0, 1)
  )
  expected = pass_pretraining.p2p_loss(
    maps[:, 0],
    maps[:, 1],
    first,
    second,
    flips[:, 0],
    flips[:, 1],
    lambda z: z @ matrix,
    7,
  )

  @jax.jit
  def points(x):
    rows, columns, _ = view_geometry.view_overlap_grids(
      jnp.asarray(boxes), jnp.asarray(flips), 7
    )
    return jnp.stack(
      [
        view_geometry.sample_view_maps(x[:, v], rows[:, v], columns[:, v])
        for v in (0, 1)
      ],
      axis=1,
    )

  def loss(x, targets):
    return p2p.p2p_regression_loss(points(x) @ matrix, targets)

  z = points(maps)

  # Targets have no gradient: they are constants in the difference.
  def reference_loss(x):
    predicted = np.asarray(points(x)) @ matrix
    constant = np.asarray(z)
    return pass_pretraining.p2p_cosine_loss(
      predicted[:, 0], predicted[:, 1], constant[:, 0], constant[:, 1]
    )

  actual = jax.jit(
    jax.grad(lambda x: p2p.p2p_regression_loss(points(x) @ matrix, points(x)))
  )(maps)
  value, constant_targets = jax.jit(jax.value_and_grad(loss))(maps, z)
  arrays.assert_close(value, expected)
  arrays.assert_close(actual, constant_targets)
  some = [(1, 0, 2, 2, 1), (2, 1, 1, 3, 0), (3, 0, 4, 4, 4)]
  for index in some:
    moved = [maps.copy(), maps.copy()]
    moved[0][index] += 1e-6
    moved[1][index] -= 1e-6
    slope = (reference_loss(moved[0]) - reference_loss(moved[1])) / 2e-6
    np.testing.assert_allclose(actual[index], slope, rtol=1e-5, atol=1e-9)


def head_weights(params):
  """Returns weights of p and q as the transcription names them."""
  projection, predictor = params['projection'], params['predictor']
  return {
    'w1': projection['conv1']['kernel'][0, 0],
    'gamma1': projection['bn1']['scale'],
    'beta1': projection['bn1']['bias'],
    'w2': projection['conv2']['kernel'][0, 0],
    'gamma2': projection['bn2']['scale'],
    'beta2': projection['bn2']['bias'],
    'w3': projection['conv3']['kernel'][0, 0],
  }, {
    'w1': predictor['conv1']['kernel'][0, 0],
    'gamma': predictor['bn1']['scale'],
    'beta': predictor['bn1']['bias'],
    'w2': predictor['conv2']['kernel'][0, 0],
    'b2': predictor['conv2']['bias'],
  }


def test_statistics_of_the_predictor():
  """From maps to the loss, with the heads' batch norms in training mode."""
  count = 3
  boxes, flips = arrays.random_boxes(count, seed=2)
  # The views differ in mean and scale, so that their statistics do.
  maps = arrays.normal(count, 2, 5, 5, SIZE)
  maps[:, 1] = 2 * maps[:, 1] + 1
  batch = {'box_large': boxes, 'flip_large': flips}
  first, second = (
    [arrays.reference_box(box) for box in boxes[:, view]] for view in (0, 1)
  )
  losses = {}
  for statistics in ('joint', 'per_view'):
    objective = p2p.P2P(
      objective_options.P2POptions(grid=4, predictor_statistics=statistics),
      SIZES,
      None,
    )
    head = objective.heads(jnp.float64)['pixels']
    net, params = support.bind('pixels', head, maps[:, 0])

    @jax.jit
    def loss(maps, batch, objective=objective, net=net):
      outputs = objective.outputs(net, support.encoded(maps, batch=batch))
      return objective.loss(support.step({'p2p': outputs}))

    terms, _ = loss(maps, batch)
    projection, predictor = head_weights(params)
    projected = pass_pretraining.pixel_mlp(
      maps.reshape(-1, *maps.shape[2:]), projection
    ).reshape(maps.shape)
    losses[statistics] = pass_pretraining.p2p_loss(
      *(projected[:, 0], projected[:, 1], first, second),
      *(flips[:, 0], flips[:, 1]),
      lambda z, weights=predictor: pass_pretraining.predictor(z, weights),
      4,
      statistics,
    )
    np.testing.assert_allclose(terms['loss_p2p'], losses[statistics], rtol=1e-6)
  assert abs(losses['joint'] - losses['per_view']) > 1e-3


def test_points_without_an_overlap_have_no_gradient():
  gradient = jax.jit(
    jax.grad(lambda z: p2p.p2p_regression_loss(z, jnp.zeros_like(z)))
  )(np.zeros((1, 2, 3, 3, 4)))
  assert not np.asarray(gradient).any()


def test_contrastive_loss_and_its_gradient():
  points = arrays.normal(3, 2, 3, 3, SIZE)
  overlap = np.array([True, False, True])

  @jax.jit
  def loss(x):
    return p2p_variants.p2p_contrastive_loss(x, jnp.asarray(overlap), 0.2)

  def reference_loss(x):
    a, b = x[:, 0], x[:, 1]
    # Both sides of each pair get a gradient, so neither is a constant.
    return pass_pretraining.contrastive_p2p_loss(a, b, a, b, overlap, 0.2)

  arrays.assert_close(loss(points), reference_loss(points))
  arrays.assert_gradient(loss, reference_loss, points)


def test_clustering_loss():
  points = arrays.normal(4, 2, 3, 3, SIZE)
  prototypes = arrays.normalized(PROTOTYPES, SIZE, seed=1).T
  overlap = np.array([True, False, True, True])

  def loss(points, prototypes, overlap):
    return p2p_variants.p2p_clustering_loss(
      points, prototypes, overlap, objective_options.SwavOptions()
    )

  actual, gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))(
    points, prototypes, overlap
  )
  logits = pass_pretraining.normalize(points) @ prototypes
  expected = pass_pretraining.clustering_p2p_loss(
    logits[:, 0], logits[:, 1], overlap, 0.1, 0.05, 3
  )
  arrays.assert_close(actual, expected)
  assert np.asarray(gradient[0])[0].any()
  assert not np.asarray(gradient[0])[1].any()
  assert not np.asarray(gradient[1]).any()


@pytest.mark.parametrize('kind', ['regression', 'contrastive', 'clustering'])
def test_objective_of_each_kind(kind):
  points = arrays.normal(4, 2, 3, 3, SIZE)
  predicted = arrays.normal(4, 2, 3, 3, SIZE, seed=1)
  prototypes = arrays.normalized(PROTOTYPES, SIZE, seed=1).T
  overlap = np.array([True, False, True, True])
  logits = pass_pretraining.normalize(points) @ prototypes
  a, b = points[:, 0], points[:, 1]
  expected = {
    'regression': pass_pretraining.p2p_cosine_loss(
      predicted[:, 0], predicted[:, 1], a, b
    ),
    'contrastive': pass_pretraining.contrastive_p2p_loss(
      a, b, a, b, overlap, 0.2
    ),
    'clustering': pass_pretraining.clustering_p2p_loss(
      logits[:, 0], logits[:, 1], overlap, 0.1, 0.05, 3
    ),
  }[kind]
  objective = p2p.P2P(
    objective_options.P2POptions(kind), SIZES, objective_options.SwavOptions()
  )
  outputs = {'points': points, 'overlap': overlap, 'predicted': predicted}
  terms, scalars = jax.jit(
    lambda outputs, prototypes: objective.loss(
      support.step({'p2p': outputs}, prototypes=prototypes)
    )
  )(outputs, prototypes)
  arrays.assert_close(terms['loss_p2p'], expected)
  np.testing.assert_allclose(scalars['overlap_share'], 0.75)


@pytest.mark.parametrize(
  ('options', 'parts'),
  [
    (objective_options.P2POptions(), (True, True)),
    (objective_options.P2POptions(project=False), (False, True)),
    (objective_options.P2POptions('contrastive'), (True, False)),
    (objective_options.P2POptions('contrastive', project=False), None),
    (objective_options.P2POptions('clustering'), (True, False)),
  ],
)
def test_head_has_the_parts_that_are_used(options, parts):
  objective = p2p.P2P(options, SIZES, objective_options.SwavOptions())
  built = objective.heads(jnp.float32)
  if parts is None:
    assert built == {}
  else:
    head = built['pixels']
    assert (head.has_projection, head.has_predictor) == parts


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kind': 'clustering', 'project': False}, 'project: expected True'),
    (
      {'kind': 'contrastive', 'predictor_statistics': 'per_view'},
      "expected joint with kind='contrastive', which has no predictor",
    ),
    ({'grid': 1}, 'grid: expected 2 or more, got 1'),
    ({'temperature': 0.0}, 'temperature: expected more than 0, got 0.0'),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    objective_options.P2POptions(**fields)
