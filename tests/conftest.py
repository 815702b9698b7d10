"""Eight simulated devices, a compilation cache, and flags that Grain reads."""

import os
import pathlib
import tempfile

# Before jax is imported anywhere. Tests compile much and compute little, so
# programs are not optimised: compiling takes a third of the time.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
  + ' --xla_backend_optimization_level=0'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(tempfile.gettempdir()) / 'segmentation_jax_cache'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import pytest
from absl import flags, logging

flags.FLAGS.mark_as_parsed()


# Files that take longest are begun first (`--no-loadscope-reorder`), or one
# worker would be left with them when the other has nothing to do.
LONGEST = (
  *('test_u2pl_semi', 'test_pass_luss_main', 'test_ddep_main'),
  *('test_pass_luss_represent', 'test_u2pl_main', 'test_segcore_study'),
  *('test_ddep_methods', 'test_segcore_export', 'test_segcore_app'),
  *('test_segcore_hosts', 'test_segcore_train_loop', 'test_segcore_inference'),
)


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _absl_says_warnings():
  """What a test before has told absl to say, it shall not tell the next one."""
  logging.set_verbosity(logging.WARNING)


@pytest.fixture
def objects(monkeypatch):
  """What is in buckets that are in memory, by name."""
  from segcore import files
  from tests import fake_bucket

  monkeypatch.setattr(files, '_is_installed', lambda package: True)
  with fake_bucket.bucket() as found:
    yield found


@pytest.fixture(params=['here', 'bucket'])
def folder(request, tmp_path):
  """A work folder on this machine, and one in a bucket."""
  if request.param == 'here':
    return tmp_path / 'run'
  from segcore import files

  request.getfixturevalue('objects')
  return files.path('gs://bucket/run', '--workdir')
