"""Eight simulated devices, a compilation cache, and flags that Grain reads."""

import gc
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
# Else each operation of a program carries the call stack that traced it.
os.environ.setdefault('JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS', '0')

import pytest
from absl import flags, logging

flags.FLAGS.mark_as_parsed()

# By default the garbage collector starts after every 700 new objects, and time
# and again visits all modules and traced programs.
gc.set_threshold(100_000, 10, 10)


# Files that take longest are begun first (`--no-loadscope-reorder`), or one
# worker would be left with them when the other has nothing to do. The first
# three have most of the slow tests.
LONGEST = (
  'ddep/test_main.py',
  'pass_luss/test_main.py',
  'u2pl/test_main.py',
  'u2pl/semi/test_mean_teacher.py',
  'segcore/study/test_runner.py',
  'segcore/eval/test_inference.py',
  'launch/test_runs.py',
  'segcore/experiment/test_contracts.py',
  'pass_luss/pretrain/test_method.py',
  'pass_luss/pseudo_labels/test_kmeans.py',
  'ddep/test_stages.py',
  'segcore/eval/test_export.py',
  'segcore/models/encoders/test_resnet.py',
  'pass_luss/test_frozen.py',
  'launch/test_existing_jobs.py',
  'segcore/models/test_segmenter.py',
  'u2pl/semi/test_cps.py',
  'segcore/models/test_transcription.py',
  'segcore/ops/test_color_augment.py',
  'segcore/models/encoders/test_efficientnet.py',
  'pass_luss/protocols/test_knn.py',
  'ddep/test_tables.py',
  'test_packaging.py',
  'configs/test_pass.py',
  'configs/test_ddep.py',
  'launch/test_interruptions.py',
  'u2pl/semi/test_student_view.py',
  'u2pl/semi/test_unimatch.py',
  'segcore/eval/test_prediction_files.py',
  'segcore/experiment/test_dry_run.py',
  'input_pipeline/test_loader.py',
  'segcore/cost/test_flops.py',
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
