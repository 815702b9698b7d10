"""Gathering rows of several hosts, which are threads here."""

import numpy as np
import pytest

from segcore.eval import gather as gather_lib


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
