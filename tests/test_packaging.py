"""The installed files are complete, and importing them starts no backend."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = (
  *('ddep.main', 'u2pl.main', 'pass_luss.main', 'pass_luss.evaluate'),
  *('input_pipeline.prepare', 'segcore.study.__main__', 'launch.__main__'),
)

# Imports every module below the given folder; prints, by module, its file, the
# error of its import, and the jax backends that are started by then.
_IMPORT_ALL = """
import importlib, json, pathlib, sys, traceback

root = pathlib.Path(sys.argv[1])
report = {}
for path in sorted(root.rglob('*.py')):
  parts = path.relative_to(root).with_suffix('').parts
  name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
  entry = report[name] = {'file': '', 'error': '', 'backends': []}
  try:
    entry['file'] = importlib.import_module(name).__file__
  except BaseException:
    entry['error'] = traceback.format_exc()
  bridge = sys.modules.get('jax._src.xla_bridge')
  entry['backends'] = sorted(bridge._backends) if bridge else []
json.dump(report, sys.stdout)
"""


def listed_packages():
  """The packages that setup.py lists."""
  for node in ast.parse((ROOT / 'setup.py').read_text()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == 'PACKAGES':
      return ast.literal_eval(node.value)
  raise AssertionError('setup.py: expected PACKAGES = [...]')


def packages_on_disk():
  """The packages of the checkout but tests."""
  folders = [
    path.parent.relative_to(ROOT)
    for top in sorted(ROOT.glob('*/__init__.py'))
    for path in top.parent.rglob('__init__.py')
  ]
  return {'.'.join(path.parts) for path in folders if path.parts[0] != 'tests'}


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Builds a wheel and installs it, without dependencies, into a folder."""
  folder = tmp_path_factory.mktemp('packaging')
  copy = folder / 'checkout'
  copy.mkdir()
  for name in ('setup.py', 'pyproject.toml', 'README.md'):
    shutil.copy(ROOT / name, copy)
  for top in sorted(ROOT.glob('*/__init__.py')):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(top.parent, copy / top.parent.name, ignore=ignored)
  pip = (sys.executable, '-m', 'pip', '--quiet', '--no-python-version-warning')
  # Without isolation, which would download setuptools.
  subprocess.run(
    [
      *pip,
      'wheel',
      '--no-build-isolation',
      '--no-deps',
      '--wheel-dir',
      '.',
      '.',
    ],
    cwd=copy,
    check=True,
  )
  [wheel] = copy.glob('*.whl')
  library = folder / 'lib'
  subprocess.run(
    [*pip, 'install', '--no-deps', '--no-index', '--target', library, wheel],
    cwd=copy,
    check=True,
  )
  return library


@pytest.fixture(scope='module')
def report(installed, tmp_path_factory):
  """Imports every installed module; returns the result of each."""
  done = subprocess.run(
    [sys.executable, '-c', _IMPORT_ALL, str(installed)],
    cwd=tmp_path_factory.mktemp('elsewhere'),
    env={**os.environ, 'PYTHONPATH': str(installed)},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return json.loads(done.stdout)


def test_setup_lists_every_package():
  listed = listed_packages()
  assert listed == sorted({*listed})
  assert {*listed} == packages_on_disk()


def test_every_module_is_installed_and_imports(installed, report):
  expected = {
    path.relative_to(ROOT).as_posix()
    for package in packages_on_disk()
    for path in (ROOT / package.replace('.', '/')).glob('*.py')
  }
  actual = {
    path.relative_to(installed).as_posix() for path in installed.rglob('*.py')
  }
  assert actual == expected
  errors = [entry['error'] for entry in report.values() if entry['error']]
  assert '\n'.join(errors) == ''
  for entry in report.values():
    assert pathlib.Path(entry['file']).is_relative_to(installed)


def test_no_import_starts_a_jax_backend(report):
  """So that `jax.distributed.initialize` and flags still can take effect."""
  assert {*COMMANDS} <= {*report}
  started = {name for name, entry in report.items() if entry['backends']}
  assert started == set()


# Imports one command after another; prints, by command, which of the libraries
# are imported by then.
_IMPORT_COMMANDS = """
import importlib, json, sys

report = {}
for command in sys.argv[1].split():
  importlib.import_module(command)
  report[command] = [x for x in sys.argv[2].split() if x in sys.modules]
json.dump(report, sys.stdout)
"""
# Libraries that take long to import, and that most commands need late or never.
SLOW_LIBRARIES = (
  *('grain', 'orbax', 'tensorflow_datasets', 'matplotlib'),
  *('tensorboard', 'clu', 'scipy.stats', 'chex'),
)


def test_commands_start_without_slow_libraries():
  """So that a misspelt option is answered in the time that jax needs."""
  lists = (' '.join(COMMANDS), ' '.join(SLOW_LIBRARIES))
  done = subprocess.run(
    [sys.executable, '-c', _IMPORT_COMMANDS, *lists],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout) == {command: [] for command in COMMANDS}


# Libraries of arrays, networks and images, of which help needs none.
HEAVY_LIBRARIES = (
  *('jax', 'flax', 'optax', 'numpy', 'scipy', 'cv2', 'PIL', 'jaxtyping'),
  *SLOW_LIBRARIES,
)


def test_help_of_training_imports_no_heavy_library():
  """So that help, and a misspelt option, are printed at once."""
  code = _RUN_AND_LIST.format(HEAVY_LIBRARIES)
  arguments = ['--config=configs/ddep_pascal.py:fractoin=1']
  done = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout.splitlines()[-1]) == []
  assert 'Show this text' in done.stdout
  assert "did you mean 'fraction'?" in done.stderr


# Prints the help of all methods, then runs a command line that is refused, and
# prints which of the libraries are imported by then.
_RUN_AND_LIST = """
import json, sys
from ddep import main
from pass_luss import main
from u2pl import main
from segcore.experiment import cli

cli.run_command_line(main.PROGRAM, ['main', '--help'])
cli.run_command_line(main.PROGRAM, ['main', *sys.argv[1:]])
print(json.dumps([x for x in {} if x in sys.modules]))
"""


# Runs a module with the arguments of a command line that is refused, and prints
# which of the libraries are imported by then.
_REFUSE_AND_LIST = """
import json, runpy, sys

libraries = sys.argv[1].split()
sys.argv = sys.argv[2:]
try:
  runpy.run_module(sys.argv[0], run_name='__main__')
except SystemExit as error:
  assert error.code == 2, error.code
print(json.dumps([x for x in libraries if x in sys.modules]))
"""


def test_preparation_reports_missing_files_without_slow_libraries(tmp_path):
  # Its builders list the files by TFDS.
  absent = {'jax', 'flax', 'optax', 'scipy', *SLOW_LIBRARIES}
  absent -= {'tensorflow_datasets'}
  command = ('input_pipeline.prepare', 'camvid', '--source=/nowhere')
  done = refuse(tmp_path, _REFUSE_AND_LIST, ' '.join(absent), *command)
  assert json.loads(done.stdout.splitlines()[-1]) == []
  assert 'source: expected a folder or an archive' in done.stderr


def refuse(folder, code, *arguments):
  """Runs code that refuses a command line, where no data set is."""
  places = {'SEG_DATA_DIR': str(folder), 'TFDS_DATA_DIR': str(folder)}
  return subprocess.run(
    [sys.executable, '-c', code, *arguments],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT), **places},
    capture_output=True,
    text=True,
    check=True,
  )


# Trains by a config of each method, with a misspelt field and with missing
# files; prints which of the libraries are imported by then.
_REFUSE_TRAININGS = """
import json, sys
import ddep.main, pass_luss.main, u2pl.main
from segcore.experiment import cli

for program, config in (
  (ddep.main.PROGRAM, 'ddep_pascal'),
  (u2pl.main.PROGRAM, 'u2pl_voc'),
  (pass_luss.main.PROGRAM, 'pass_imagenet_s50'),
):
  command = ['main', f'--config=configs/{config}.py', '--workdir=/nowhere']
  for flags in (['--config.netwrok.dtype=bfloat16'], []):
    assert cli.run_command_line(program, [*command, *flags]) == 2
print(json.dumps([x for x in sys.argv[1].split() if x in sys.modules]))
"""


def test_trainings_are_refused_without_importing_networks(tmp_path):
  """So that fields and files are checked in little more time than jax needs."""
  absent = ('flax', 'optax', 'cv2', 'PIL', *SLOW_LIBRARIES)
  done = refuse(tmp_path, _REFUSE_TRAININGS, ' '.join(absent))
  assert json.loads(done.stdout.splitlines()[-1]) == []
  assert done.stderr.count('config.netwrok: unknown name') == 3
  for name in ('pascal_context', 'voc2012', 'imagenet_s'):
    assert f'expected a folder or an archive, got {tmp_path}/{name}' in (
      done.stderr
    )
