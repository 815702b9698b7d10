"""InfoNCE and the ring of keys against numpy transcriptions (spec §2.0)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import contrast, objective_options
from pass_luss.pretrain import queue as queue_lib
from tests.pass_luss.pretrain import arrays
from tests.transcriptions import luss_comparators

pytestmark = pytest.mark.usefixtures('float64')


def test_info_nce():
  q, k = arrays.normalized(3, 4), arrays.normalized(3, 4, seed=1)
  negatives = arrays.normalized(6, 4, seed=2)

  def loss(q):
    return contrast.info_nce_loss(
      q, jnp.asarray(k), jnp.asarray(negatives), 0.2
    )

  def reference(q):
    return luss_comparators.info_nce(q, k, negatives.T, 0.2)

  arrays.assert_close(jax.jit(loss)(q), reference(q))
  arrays.assert_gradient(loss, reference, q)


def test_ring_over_more_steps_than_it_has_batches():
  ring = queue_lib.random_ring(jax.random.PRNGKey(0), 6, 3)
  np.testing.assert_allclose(np.linalg.norm(ring.rows, axis=1), 1, rtol=1e-6)
  assert ring.position == 0
  expected, pointer = np.asarray(ring.rows).T, 0
  write = jax.jit(queue_lib.write_ring)
  for step in range(5):
    keys = arrays.normal(2, 3, seed=step)
    ring = write(ring, keys)
    expected, pointer = luss_comparators.ring_push(expected, pointer, keys)
    arrays.assert_close(ring.rows, expected.T)
    assert ring.position == pointer


def test_no_gradient_flows_into_the_ring():
  ring = queue_lib.random_ring(jax.random.PRNGKey(0), 4, 2)
  gradient = jax.grad(lambda x: queue_lib.write_ring(ring, x).rows.sum())(
    jnp.ones((2, 2))
  )
  assert not np.asarray(gradient).any()


def test_a_length_that_batches_do_not_divide_is_refused():
  objective_options.check_ring_length('moco.queue', 12, 4)
  with pytest.raises(
    ValueError, match='moco.queue: expected a multiple of .*5'
  ):
    objective_options.check_ring_length('moco.queue', 12, 5)
