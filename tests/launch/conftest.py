"""A fake cloud for each test of the launcher."""

import pytest

from tests.support import launching


@pytest.fixture
def cloud(tmp_path):
  """Yields a cloud of the test alone, and ends its processes."""
  cloud = launching.Cloud(tmp_path)
  yield cloud
  cloud.kill_processes()
