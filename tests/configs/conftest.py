"""Fixtures of the tests of configs."""

import pytest

from configs import pretrained
from segcore.models import network

# Networks whose shapes were followed already, whatever their heads: the rows of
# the tables start with those that have the most.
CHECKED = set()


@pytest.fixture(autouse=True)
def _equal_networks_checked_once(equal_networks_checked_once):
  """Most tests build all stages of an experiment."""


@pytest.fixture(autouse=True)
def no_package(monkeypatch):
  """Makes configs the same whether weights are installed here or not."""
  monkeypatch.setattr(pretrained, 'is_installed', lambda name: False)


@pytest.fixture
def networks_checked_once(monkeypatch):
  """Follows shapes once where many experiments have the same network."""
  check = network.check_network_image_size

  def check_once(net, size, path):
    if (key := (repr(net.encoder), repr(net.decoder), size)) not in CHECKED:
      CHECKED.add(key)
      check(net, size, path)

  monkeypatch.setattr(network, 'check_network_image_size', check_once)
