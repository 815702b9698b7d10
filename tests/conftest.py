"""Eight simulated devices, a compilation cache, and flags that Grain reads."""

import os
import pathlib
import tempfile

from tests.support import compilation

# Before jax is imported anywhere.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {compilation.xla_flags(devices=8)}'
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
  'ddep/test_main.py',
  'pass_luss/pretrain/test_method.py',
  'ddep/test_stages.py',
  'u2pl/semi/test_reference_step.py',
  'u2pl/test_contrastive_branch.py',
  'segcore/study/test_runner.py',
  'u2pl/test_contrast.py',
  'u2pl/test_panels.py',
  'segcore/eval/test_export.py',
  'u2pl/semi/test_mean_teacher.py',
  'pass_luss/test_main.py',
  'u2pl/test_main.py',
  'segcore/ops/test_color_augment.py',
  'segcore/experiment/test_cli.py',
  'segcore/experiment/test_contracts.py',
  'segcore/distributed/test_hosts.py',
  'segcore/eval/test_inference.py',
  'u2pl/test_pseudo_labels.py',
  'segcore/train/test_loop.py',
  'configs/test_pass.py',
  'test_packaging.py',
)


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(LONGEST)}
  tests = pathlib.Path(__file__).parent

  def place(item):
    return order.get(item.path.relative_to(tests).as_posix(), len(order))

  items.sort(key=place)


@pytest.fixture(autouse=True)
def _absl_says_warnings():
  """What a test before has told absl to say, it shall not tell the next one."""
  logging.set_verbosity(logging.WARNING)


@pytest.fixture
def objects(monkeypatch):
  """What is in buckets that are in memory, by name."""
  from runtime import files
  from tests.support import fake_bucket

  monkeypatch.setattr(files, '_is_installed', lambda package: True)
  with fake_bucket.bucket() as found:
    yield found


@pytest.fixture(params=['here', 'bucket'])
def folder(request, tmp_path):
  """A work folder on this machine, and one in a bucket."""
  if request.param == 'here':
    return tmp_path / 'run'
  from runtime import files

  request.getfixturevalue('objects')
  return files.parse_file_path('gs://bucket/run', '--workdir')


@pytest.fixture(scope='session')
def _accepted_networks():
  return set()


@pytest.fixture
def equal_networks_checked_once(monkeypatch, _accepted_networks):
  """Follows the shapes of a network once, however many stages have it."""
  from segcore.models import network

  check = network.check_network_image_size

  def check_once(net, size, path):
    if (key := (repr(net), tuple(size))) not in _accepted_networks:
      check(net, size, path)
      _accepted_networks.add(key)

  monkeypatch.setattr(network, 'check_network_image_size', check_once)


@pytest.fixture(scope='session')
def discs(tmp_path_factory):
  """Returns a folder of drawn images with masks, for whole command lines."""
  from tests.support import runs

  return runs.make_folder(tmp_path_factory.mktemp('data') / 'discs')


@pytest.fixture
def on_hosts(monkeypatch):
  """Returns a function that runs another one on each of several hosts."""
  from tests.support import host_threads

  return lambda function: host_threads.run_on_hosts(monkeypatch, function)
