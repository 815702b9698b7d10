"""Gathering rows of several hosts, which are threads here."""

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
  """Returns a function that runs another one on each of several hosts."""
  host = threading.local()
  barrier = threading.Barrier(HOSTS, timeout=20)
  shared = [None] * HOSTS

  def allgather(value):
    shared[host.index] = value
    barrier.wait()
    stacked = np.stack(shared)  # Unequal shapes would hang a real all-gather.
    barrier.wait()
    return stacked

  monkeypatch.setattr(jax, 'process_count', lambda: HOSTS)
  monkeypatch.setattr(jax, 'process_index', lambda: host.index)
  monkeypatch.setattr(multihost_utils, 'process_allgather', allgather)
  monkeypatch.setattr(
    multihost_utils, 'broadcast_one_to_all', lambda x: allgather(x)[0]
  )

  def run(function):
    def call(index):
      host.index = index
      return function(index)

    with concurrent.futures.ThreadPoolExecutor(HOSTS) as pool:
      return list(pool.map(call, range(HOSTS)))

  return run


@pytest.mark.parametrize('shape', [(4,), (2, 3)])
def test_every_host_gathers_uneven_rows_in_order(on_hosts, shape):
  rows = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
  # The last host has none.
  indices = [[5, 0, 3, 6], [1, 2, 4], []]

  def gather(host):
    local = indices[host]
    return gather_lib.gather_predictions_in_order(
      [rows[i] for i in local], local
    )

  for gathered in on_hosts(gather):
    np.testing.assert_array_equal(gathered, rows)


def test_one_host_orders_its_rows_without_collectives():
  gathered = gather_lib.gather_predictions_in_order(
    [np.ones(2), np.zeros(2)], [1, 0]
  )
  np.testing.assert_array_equal(gathered, [[0, 0], [1, 1]])
  assert gathered.dtype == np.float32
