"""Runs the real command line in processes of its own, on a small folder.

The folder holds images of odd sizes with palette masks; the run is the tiny
form of `configs/ddep_folder.py`, cut further.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import PIL.Image

from segcore.weights import checkpoint_reader

ROOT = pathlib.Path(__file__).parents[2]

# Save, evaluation and log intervals all differ, and all happen.
SHORT = (
  '--config.finetune.recipe.num_steps=14',
  '--config.finetune.recipe.evaluate_every=6',
  '--config.finetune.recipe.batch_size=4',
  '--config.finetune.crop.size=(32, 32)',
  '--config.evaluate.batch_size=4',
  '--config.network.encoder.blocks=(1, 1)',
  '--config.network.encoder.width=8',
  '--config.network.encoder.num_groups=4',
  '--config.network.decoder.widths=(16, 8, 8)',
  '--config.network.decoder.num_groups=4',
  '--config.operation.save_every=4',
  '--config.operation.log_every=1',
  '--config.operation.record_ids=True',
)


def make_folder(folder: pathlib.Path, count: int = 16) -> pathlib.Path:
  """Writes `count` images of a bright disc on noise, with its mask."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (folder / name).mkdir(parents=True)
  for i in range(count):
    height, width = 41 + i % 3, 47 - i % 2
    image = rng.integers(0, 120, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    center = int(rng.integers(10, 30)), int(rng.integers(10, 30))
    cv2.circle(mask, center, 9, 1, -1)
    cv2.circle(mask, center, 10, 255, 1)
    image[mask == 1] += 120
    cv2.imwrite(str(folder / 'images' / f'{i:02}.jpg'), image)
    palette = PIL.Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / 'masks' / f'{i:02}.png')
  (folder / 'classes.txt').write_text('ground\ndisc\n')
  return folder


# The same of U2PL: a warm-up of one epoch, a copied teacher, then its own.
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
  source: pathlib.Path,
  workdir: pathlib.Path,
  *arguments: str,
  devices: int = 1,
  process: tuple[int, int, int] | None = None,
  method: str = 'ddep',
  log: pathlib.Path | None = None,
) -> subprocess.Popen:
  """Starts a run; `process` is (index, count, port) of a group.

  What it prints is added to `log`: `workdir`.log by default.
  """
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0',
  }
  if process:
    index, count, port = process
    environment |= {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
    }
  own, short = {
    'ddep': ('init=none', SHORT),
    'u2pl': ('labels=4', SHORT_U2PL),
  }[method]
  options = f'source={source},ignore=255,val_fraction=0.4,{own},tiny'
  command = [
    *(sys.executable, '-m', f'{method}.main'),
    f'--config={ROOT}/configs/{method}_folder.py:{options}',
    f'--config.data_dir={source.parent}/records',
    f'--workdir={workdir}',
    *short,
    *arguments,
  ]
  with open(log or workdir.with_suffix('.log'), 'a') as file:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def wait(process: subprocess.Popen, workdir: pathlib.Path) -> int:
  """Waits for a run; returns its exit status."""
  try:
    return process.wait(timeout=240)
  except subprocess.TimeoutExpired:
    process.kill()
    raise AssertionError(read_log(workdir)) from None


def read_log(workdir: pathlib.Path) -> str:
  """What a run has printed so far."""
  return workdir.with_suffix('.log').read_text()


def signal_when(process: subprocess.Popen, due, sign=signal.SIGKILL) -> bool:
  """Sends the signal as soon as `due()`; False if the run ended before."""
  while process.poll() is None:
    if due():
      os.kill(process.pid, sign)
      process.wait(timeout=240)
      return True
    time.sleep(0.002)
  return False


def checkpoint_half_written(stage: pathlib.Path, step: int):
  """True while the checkpoint of a step is half written."""
  return lambda: any(stage.glob(f'checkpoints/{step}.orbax-checkpoint-tmp*'))


def step_logged(stage: pathlib.Path, step: int):
  """True once a step is in the journal."""

  def found() -> bool:
    path = stage / 'metrics.jsonl'
    return path.exists() and f'"step": {step},' in path.read_text()

  return found


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def read_state(stage: pathlib.Path) -> dict:
  """Everything in the last checkpoint of a stage."""
  names = (
    *('step', 'params', 'batch_stats', 'opt_state', 'rng'),
    *('teacher_params', 'teacher_batch_stats', 'bank', 'prototypes'),
  )
  return checkpoint_reader.read(stage / 'checkpoints', names)


def read_metrics(stage: pathlib.Path, name: str = 'metrics') -> list[dict]:
  """The lines of a journal."""
  lines = (stage / f'{name}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def read_results(workdir: pathlib.Path) -> dict:
  """The splits of results.json."""
  return json.loads((workdir / 'evaluate' / 'results.json').read_text())[
    'splits'
  ]
