"""PCL v2 against slow numpy transcriptions (spec §2.7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options, contrast
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import pcl
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')

REQUIRED = {'num_images': 9, 'from_step': 4, 'every': 2}
OPTIONS = comparator_options.PclOptions(
  queue=6, clusters=(5, 7), negatives=4, size=4, **REQUIRED
)


def clustering(k, seed):
  """Draws centroids, densities and assignments of 9 images."""
  rng = np.random.default_rng(seed)
  return pcl.Prototypes(
    arrays.normalized(k, 4, seed=seed),
    rng.uniform(0.1, 0.3, k),
    rng.integers(0, k, 9).astype(np.int32),
  )


def test_densities():
  x = arrays.normalized(30, 4)
  centroids = arrays.normal(8, 4, seed=1)
  # Of clusters 6 and 7 one has a single member and one none.
  assignments = np.random.default_rng(2).integers(0, 6, 30)
  assignments[0] = 6
  actual = pcl.prototype_densities(x, centroids, assignments, 0.2)
  expected = luss_comparators.pcl_densities(x, centroids, assignments)
  np.testing.assert_allclose(actual, expected)
  assert actual.mean() == pytest.approx(0.2)
  prototypes = pcl.make_prototypes(x, centroids, assignments, 0.2)
  arrays.assert_close(
    prototypes.centroids, pass_pretraining.normalize(centroids)
  )
  np.testing.assert_allclose(prototypes.densities, expected, rtol=1e-6)


def test_proto_nce():
  q, own, drawn = arrays.normalized(3, 4), np.array([4, 1, 4]), np.array([0, 3])
  each = clustering(7, 1)

  def loss(q):
    return pcl.proto_nce_loss(
      q,
      jax.tree.map(jnp.asarray, each),
      jnp.asarray(own),
      jnp.asarray(drawn),
    )

  def reference(q):
    return luss_comparators.proto_nce(
      q, each.centroids, each.densities, own, drawn
    )

  arrays.assert_close(jax.jit(loss)(q), reference(q))
  arrays.assert_gradient(loss, reference, q)


def test_one_cluster_an_image_is_info_nce_among_the_batch():
  q, keys = arrays.normalized(3, 4), arrays.normalized(3, 4, seed=1)
  # And one prototype that is no image's.
  each = pcl.Prototypes(
    np.concatenate([keys, arrays.normalized(1, 4, seed=2)]),
    np.full(4, 0.2),
    np.arange(3),
  )
  own, drawn = np.arange(3), np.array([3])
  losses = jax.jit(
    lambda q, keys, each, own, drawn: [
      pcl.proto_nce_loss(q, each, own, drawn),
      *(
        contrast.info_nce_loss(
          q[i : i + 1],
          keys[i : i + 1],
          jnp.delete(each.centroids, i, axis=0),
          0.2,
        )
        for i in range(3)
      ),
    ]
  )(q, keys, each, own, drawn)
  arrays.assert_close(losses[0], np.mean(losses[1:]))


def test_drawn_prototypes_are_nobodys_own_and_differ():
  own = jnp.array([1, 1, 4, 0])
  draw = jax.jit(
    jax.vmap(lambda key: pcl.sample_negative_prototypes(key, own, 9, 3))
  )
  draws = np.asarray(draw(jax.random.split(jax.random.PRNGKey(0), 2000)))
  assert all(len({*row}) == 3 for row in draws.tolist())
  values, counts = np.unique(draws, return_counts=True)
  assert values.tolist() == [2, 3, 5, 6, 7, 8]
  # Each in half of the draws, within 5 standard deviations.
  np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(2000 / 4))


@pytest.mark.parametrize('is_clustered', [False, True])
def test_objective(is_clustered):
  objective = pcl.Pcl(OPTIONS)
  q, k = arrays.normalized(2, 1, 4), arrays.normalized(2, 1, 4, seed=1)
  index = np.array([7, 2])
  memory = pcl.Memory(
    queue_lib.Ring(arrays.normalized(6, 4, seed=2), np.int32(0)),
    (clustering(5, 3), clustering(7, 4)),
    np.array(is_clustered),
  )

  @jax.jit
  def evaluate(q, k, memory):
    fields = {
      'momentum_outputs': {'pcl': {'keys': k}},
      'memory': {'pcl': memory},
      'batch': {'index': index},
      'rng': jax.random.PRNGKey(0),
    }
    targets = objective.targets(support.step({}, **fields))
    step = support.step(
      {'pcl': {'queries': q}}, targets={'pcl': targets}, **fields
    )
    new = objective.after_update(step, step.state)
    return objective.loss(step).terms, targets, new.memory['pcl']

  terms, targets, new = evaluate(q, k, memory)
  clusterings = []
  for i, each in enumerate(memory.clusterings):
    own = each.assignments[index]
    np.testing.assert_array_equal(targets[f'own{i}'], own)
    drawn = np.asarray(targets[f'drawn{i}'])
    # Four, or as many as five clusters leave to two images.
    assert len({*drawn}) == (3, 4)[i] and not {*drawn} & {*own}
    clusterings.append((each.centroids, each.densities, own, drawn))
  rows = memory.ring.rows.T
  expected = luss_comparators.info_nce(q[:, 0], k[:, 0], rows, 0.2)
  arrays.assert_close(terms['loss_pcl_images'], expected)
  if is_clustered:
    expected = luss_comparators.pcl_loss(q[:, 0], k[:, 0], rows, clusterings)
  arrays.assert_close(sum(terms.values()), expected)
  rows, _ = luss_comparators.ring_push(rows, 0, k[:, 0])
  arrays.assert_close(new.ring.rows, rows.T)
  # The clusterings stay as they are until the next epoch.
  jax.tree.map(
    np.testing.assert_array_equal, new.clusterings, memory.clusterings
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'clusters': (5, 10)}, r'clusters: expected numbers up to .* 9'),
    ({'clusters': (5,), 'crop': 300}, 'crop: expected at most the short side'),
    ({'clusters': (5,), 'every': 0}, 'every: expected'),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    comparator_options.PclOptions(**{**REQUIRED, **fields})


def test_a_batch_that_leaves_too_few_prototypes_is_refused():
  OPTIONS.check_batch_size(3, 'pcl')
  with pytest.raises(ValueError, match='more than the batch of 6 images each'):
    OPTIONS.check_batch_size(6, 'pcl')
