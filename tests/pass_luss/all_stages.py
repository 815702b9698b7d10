"""A config of all stages of PASS on a small folder, and its runs."""

import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np

from tests.support import compilation, runs

STAGES = (
  *('represent', 'distance', 'attend', 'cluster', 'label'),
  *('finetune', 'segment', 'semi', 'segment_semi', 'segment_on'),
)

# `pass_shapes.py` on a folder of images, with fewer steps.
CONFIG = """
from configs import pass_shapes, shared

def get_config(argument=None):
  config = pass_shapes.get_config('tiny')
  data = shared.block(
    name='image_mask_folder', source={source!r}, images='images', masks='masks',
    classes='classes.txt', ignore='255', val_fraction=0.4,
  )
  config.data_dir = {records!r}
  config.stages = {stages!r}
  config.network.encoder.width = 4
  config.images.data = config.represent.data = data
  config.represent.widths = shared.block(hidden=8, embedding=4, prototypes=6)
  config.represent.learn.clusters.update(
    queue=8, queue_from_step=1, frozen_steps=1
  )
  config.attend.clusters.queue = 8
  for name in ('represent', 'attend', 'finetune', 'semi'):
    config[name].recipe.update(num_steps=6, batch_size=4)
    config[name].recipe.optimizer.warmup_steps = 0
  config.represent.recipe.evaluate_every = 4
  for name in ('represent', 'attend'):
    config[name].large.size = (32, 32)
  for name in ('finetune', 'semi'):
    config[name].crop.size = (32, 32)
  config.cluster.update(restarts=2, short_side=40, crop=32)
  for name in ('cluster', 'label', 'segment', 'segment_semi', 'distance'):
    config[name].update(short_side=40, batch_size=2)
  config.distance.update(bank='train', splits=('val',), rematch=True)
  config.distance.accuracy_from = ''
  config.label.report = ('val',)
  config.segment.splits = config.segment_semi.splits = ('val',)
  config.semi.split = 'train'
  config.segment_on = shared.block(
    **config.segment_semi, trained_by='semi',
    data=dict(data.to_dict(), masks='bars', classes='bars.txt'),
  )
  config.operation.update(log_every=1, save_every=3, record_ids=True)
  return config
"""


def write_config(folder: pathlib.Path) -> pathlib.Path:
  """Writes 15 images of discs and bars; returns the path of a config."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks', 'bars'):
    (folder / name).mkdir()
  for i in range(15):
    height, width = 41 + i % 3, 47 - i % 2
    image = rng.integers(0, 120, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    center = int(rng.integers(12, 30)), int(rng.integers(12, 30))
    if i % 2:
      cv2.circle(mask, center, 9, 1, -1)
    else:
      cv2.rectangle(mask, center, (center[0] + 14, center[1] + 5), 2, -1)
    image[mask > 0] += 120
    cv2.imwrite(str(folder / 'images' / f'{i:02}.png'), image)
    cv2.imwrite(str(folder / 'masks' / f'{i:02}.png'), mask)
    # A second data set: the same images with fewer classes and other ids.
    cv2.imwrite(str(folder / 'bars' / f'{i:02}.png'), mask // 2)
  (folder / 'classes.txt').write_text('other\ndisc\nbar\n')
  (folder / 'bars.txt').write_text('other\nbar\n')
  path = folder / 'pass_folder.py'
  path.write_text(
    CONFIG.format(
      source=str(folder), records=str(folder / 'records'), stages=STAGES
    )
  )
  return path


def start(
  config: pathlib.Path,
  workdir: pathlib.Path,
  *flags: str,
  process: tuple[int, int, int] | None = None,
):
  """Starts a run; `process` is (index, number of processes, port)."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': compilation.xla_flags(devices=1),
    'PYTHONPATH': str(runs.ROOT),
  }
  if process:
    names = ('PROCESS_ID', 'NUM_PROCESSES')
    values = map(str, process)
    environment |= {
      f'JAX_{n}': v for n, v in zip(names, values, strict=False)
    } | {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{process[2]}'}
  command = [sys.executable, '-m', 'pass_luss.main', f'--config={config}']
  with open(workdir.with_suffix('.log'), 'a') as file:
    return subprocess.Popen(
      [*command, f'--workdir={workdir}', *flags],
      cwd=runs.ROOT,
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
