"""Memory bank against a queue for each class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transcriptions import u2pl_contrast as contrast_reference
from u2pl import memory_bank


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def test_bank_is_a_queue_of_each_class():
  capacity = (11, 7, 7)
  bank = memory_bank.empty_memory_bank(capacity, 2, jnp.float64)
  expected = contrast_reference.Bank(list(capacity))
  push = jax.jit(memory_bank.push_negatives)
  rng = np.random.default_rng(0)
  for step in range(1000):
    rows = rng.normal(size=(3, 7, 2))
    counts = rng.integers(0, 8, 3)
    bank = push(bank, rows, counts.astype(np.int32))
    for c in range(3):
      expected.push(c, rows[c, : counts[c]])
    if step % 50 and step > 20:
      continue
    for c in range(3):
      assert bank.count[c] == expected.size(c)
      newest = int(bank.pointer[c])
      ring = np.asarray(bank.rows)[bank.starts[c] :][: capacity[c]]
      if bank.count[c] == capacity[c]:
        ring = np.roll(ring, -newest, axis=0)
      np.testing.assert_array_equal(
        ring[: bank.count[c]], expected.rows(c).reshape(-1, 2)
      )


def test_rings_lie_in_one_array_without_padding():
  bank = memory_bank.empty_memory_bank((11, 7, 7), 2)
  assert bank.rows.shape == (25, 2) and bank.starts == (0, 11, 18)
  rows = memory_bank.bank_rows_of_slots(bank, jnp.array([[10], [0], [6]]))
  np.testing.assert_array_equal(rows, [[10], [11], [24]])


def test_bank_refuses_more_than_it_holds():
  bank = memory_bank.empty_memory_bank((9, 4), 2)
  with pytest.raises(
    ValueError, match='smallest capacity of 4 per class, got 5'
  ):
    memory_bank.push_negatives(
      bank, jnp.zeros((2, 5, 2)), jnp.zeros(2, jnp.int32)
    )
