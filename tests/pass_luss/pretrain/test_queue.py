"""The queue of embeddings (spec §2.5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import queue as queue_lib
from tests.pass_luss.pretrain import arrays
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_newest_rows_come_first_and_oldest_are_dropped():
  queue = queue_lib.empty_embedding_queue(queue_lib.QueueSpec(5, 2))
  expected = np.zeros((2, 5, 2))
  for step in range(4):
    new = arrays.normal(2, 2, 2, seed=step)
    queue = queue_lib.enqueue_embeddings(queue, jnp.asarray(new))
    expected = pass_pretraining.queue_push(expected, np.moveaxis(new, 1, 0))
    arrays.assert_close(queue.rows, expected)
    assert queue.count == min(5, 2 * (step + 1))


def test_a_batch_longer_than_the_queue_fills_it():
  queue = queue_lib.empty_embedding_queue(queue_lib.QueueSpec(3, 2))
  new = arrays.normal(5, 2, 2)
  queue = queue_lib.enqueue_embeddings(queue, jnp.asarray(new))
  arrays.assert_close(queue.rows, np.moveaxis(new, 1, 0)[:, :3])
  assert queue.count == 3


def test_no_gradient_flows_into_the_queue():
  queue = queue_lib.empty_embedding_queue(queue_lib.QueueSpec(4, 2))
  gradient = jax.grad(
    lambda x: queue_lib.enqueue_embeddings(queue, x).rows.sum()
  )(jnp.ones((2, 2, 2)))
  assert not np.asarray(gradient).any()
