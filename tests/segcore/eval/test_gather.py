"""Rows of several hosts, which are threads here."""

import concurrent.futures
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from segcore.eval import gather as gather_lib

HOSTS = 3


@pytest.fixture
def on_hosts(monkeypatch):
  """Runs a function on each of several hosts, by its number."""
  here = threading.local()
  told = threading.Barrier(HOSTS, timeout=20)
  shared = [None] * HOSTS

  def allgather(value):
    shared[here.index] = value
    told.wait()
    found = np.stack(shared)  # Unequal shapes would hang a real one.
    told.wait()
    return found

  monkeypatch.setattr(jax, 'process_count', lambda: HOSTS)
  monkeypatch.setattr(jax, 'process_index', lambda: here.index)
  monkeypatch.setattr(multihost_utils, 'process_allgather', allgather)
  monkeypatch.setattr(
    multihost_utils, 'broadcast_one_to_all', lambda x: allgather(x)[0]
  )

  def run(what):
    def on(index):
      here.index = index
      return what(index)

    with concurrent.futures.ThreadPoolExecutor(HOSTS) as pool:
      return list(pool.map(on, range(HOSTS)))

  return run


@pytest.mark.parametrize('shape', [(4,), (2, 3)])
def test_uneven_rows_come_in_order_to_every_host(on_hosts, shape):
  rows = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
  # The last host has none.
  indices = [[5, 0, 3, 6], [1, 2, 4], []]

  def gather(host):
    own = indices[host]
    return gather_lib.gather_in_order([rows[i] for i in own], own)

  for found in on_hosts(gather):
    np.testing.assert_array_equal(found, rows)


def test_a_host_alone_asks_nobody():
  found = gather_lib.gather_in_order([np.ones(2), np.zeros(2)], [1, 0])
  np.testing.assert_array_equal(found, [[0, 0], [1, 1]])
  assert found.dtype == np.float32
