"""Runs the real command line in processes, on a small folder of images.

The folder has images of odd sizes with palette masks; the run is a shortened
`configs/ddep_folder.py:tiny`.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import image_folders
from segcore.weights import checkpoint_reader
from tests.support import compilation

ROOT = pathlib.Path(__file__).parents[2]

SMALL_NETWORK = (
  '--config.network.encoder.blocks=(1, 1)',
  '--config.network.encoder.width=8',
  '--config.network.encoder.num_groups=4',
  '--config.network.decoder.widths=(16, 8, 8)',
  '--config.network.decoder.num_groups=4',
)

# Checkpoints between evaluations; every step is logged, with its images.
RECORDED = (
  '--config.operation.save_every=4',
  '--config.operation.log_every=1',
  '--config.operation.record_ids=True',
)

# Save, evaluation and log intervals all differ, and all of them occur.
SHORT = (
  '--config.finetune.recipe.num_steps=14',
  '--config.finetune.recipe.evaluate_every=6',
  '--config.finetune.recipe.batch_size=4',
  '--config.finetune.crop.size=(32, 32)',
  '--config.evaluate.batch_size=4',
  *SMALL_NETWORK,
  *RECORDED,
)


def make_folder(folder: pathlib.Path, count: int = 16) -> pathlib.Path:
  """Writes `count` images of a bright disc on noise, with its mask."""
  discs = image_folders.Discs(
    size=(41, 47), rows=(10, 30), columns=(10, 30), radius=9, ring=(10, 1)
  )
  image_folders.write_discs(folder, count, discs)
  return folder


# A short run of U2PL: a warm-up of one epoch, then training with the teacher.
SHORT_U2PL = (
  '--config.train.recipe.num_steps=14',
  '--config.train.recipe.evaluate_every=6',
  '--config.train.recipe.batch_size=4',
  '--config.train.steps_per_epoch=3',
  '--config.train.crop.size=(32, 32)',
  '--config.train.heads.width=8',
  '--config.train.heads.representation=8',
  *(x for x in SHORT if '.finetune.' not in x),
)


def start(
  source: pathlib.Path | None,
  workdir: pathlib.Path,
  *arguments: str,
  devices: int = 1,
  process: tuple[int, int, int] | None = None,
  method: str = 'ddep',
  options: str = '',
  log: pathlib.Path | None = None,
) -> subprocess.Popen:
  """Starts a run.

  Args:
    source: folder of the images; None for the config in the work folder.
    workdir: folder of the run.
    *arguments: further flags.
    devices: number of simulated devices.
    process: (index, count, port) of a process among several hosts.
    method: 'ddep' or 'u2pl'.
    options: further options of the config, and others for those of `method`.
    log: file that the output is appended to; `workdir`.log by default.
  """
  method_options, short = {
    'ddep': ('init=none', SHORT),
    # A teacher of so few steps is confident of nothing.
    'u2pl': (
      'labels=4,system=u2pl_plus,confidence=0,statistics=own',
      SHORT_U2PL,
    ),
  }[method]
  options = _join_options(
    f'source={source},ignore=255,val_fraction=0.4,tiny', method_options, options
  )
  command = [sys.executable, '-m', f'{method}.main', f'--workdir={workdir}']
  if source:
    command += [
      f'--config={ROOT}/configs/{method}_folder.py:{options}',
      f'--config.data_dir={source.parent}/records',
      *short,
    ]
  command += arguments
  with open(log or workdir.with_suffix('.log'), 'a') as file:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=_environment(devices, process),
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def _join_options(*texts: str) -> str:
  """Joins options of a config; of two with one name, the later one counts."""
  each = (x for text in texts for x in text.split(',') if x)
  return ','.join({x.partition('=')[0]: x for x in each}.values())


def _environment(
  devices: int, process: tuple[int, int, int] | None
) -> dict[str, str]:
  """Builds the environment of a process that `start` starts."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': compilation.xla_flags(devices),
  }
  if process:
    index, count, port = process
    environment |= {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
  return environment


def wait(process: subprocess.Popen, workdir: pathlib.Path) -> int:
  """Waits for a run; returns its exit status."""
  try:
    return process.wait(timeout=240)
  except subprocess.TimeoutExpired:
    process.kill()
    raise AssertionError(read_log(workdir)) from None


def complete(
  source: pathlib.Path, workdir: pathlib.Path, *arguments, **options
):
  """Runs to the end; takes what `start` takes, and returns `workdir`."""
  process = start(source, workdir, *arguments, **options)
  assert wait(process, workdir) == 0, read_log(workdir)
  return workdir


def read_log(workdir: pathlib.Path) -> str:
  """Returns the output of a run so far."""
  return workdir.with_suffix('.log').read_text()


def signal_when(process: subprocess.Popen, due, sign=signal.SIGKILL) -> bool:
  """Sends a signal once `due()` is true; returns whether it was sent."""
  while process.poll() is None:
    if due():
      os.kill(process.pid, sign)
      process.wait(timeout=240)
      return True
    time.sleep(0.002)
  return False


def checkpoint_half_written(stage: pathlib.Path, step: int):
  """Returns a condition: the checkpoint of a step is being written."""
  return lambda: any(stage.glob(f'checkpoints/{step}.orbax-checkpoint-tmp*'))


def step_logged(stage: pathlib.Path, step: int):
  """Returns a condition: a step is in metrics.jsonl."""

  def is_logged() -> bool:
    path = stage / 'metrics.jsonl'
    return path.exists() and f'"step": {step},' in path.read_text()

  return is_logged


def free_port() -> int:
  """Returns a port that no process listens on."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def read_state(stage: pathlib.Path) -> dict:
  """Reads all fields of the last checkpoint of a stage."""
  names = (
    'step',
    'params',
    'batch_stats',
    'opt_state',
    'rng',
    'teacher_params',
    'teacher_batch_stats',
    'frozen',
    'bank',
    'prototypes',
    'momentum_params',
    'memory',
    'labeler',
    'clusterings',
  )
  return checkpoint_reader.read_checkpoint_fields(stage / 'checkpoints', names)


def read_metrics(stage: pathlib.Path, name: str = 'metrics') -> list[dict]:
  """Reads the lines of metrics.jsonl, or of another file of that format."""
  lines = (stage / f'{name}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def read_results(workdir: pathlib.Path) -> dict:
  """Reads the splits of results.json."""
  return json.loads((workdir / 'evaluate' / 'results.json').read_text())[
    'splits'
  ]


def check_killed_run(
  tmp_path: pathlib.Path, arguments, stage: str, steps, **options
) -> pathlib.Path:
  """Compares a run that is killed and resumed with a whole one, bit for bit.

  Args:
    tmp_path: folder of both runs.
    arguments: arguments of the command line.
    stage: name of the stage that is killed.
    steps: steps after each of which the run is killed once more.
    **options: what `start` takes by name.

  Returns:
    The folder of the whole run.
  """
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  complete(None, whole, *arguments, **options)
  for step in steps:
    process = start(None, killed, *arguments, **options)
    assert signal_when(process, step_logged(killed / stage, step))
  complete(None, killed, *arguments, **options)
  assert_same_runs(whole, killed, stage)
  assert read_results(whole) == read_results(killed)
  return whole


def assert_same_runs(
  one: pathlib.Path, other: pathlib.Path, stage: str
) -> None:
  """Asserts that two runs trained a stage with the same results, to the bit."""
  jax.tree.map(
    np.testing.assert_array_equal,
    read_state(one / stage),
    read_state(other / stage),
  )
  for name in ('metrics', 'ids'):
    assert read_metrics(one / stage, name) == read_metrics(other / stage, name)
