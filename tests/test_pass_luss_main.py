"""PASS from the command line, as a user runs it, on a small folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from pass_luss import label_files
from tests import runs

STAGES = (
  *('represent', 'distance', 'attend', 'cluster', 'label'),
  *('finetune', 'segment', 'semi', 'segment_semi'),
)

# `pass_shapes.py` on a folder of images, and shorter.
CONFIG = """
from configs import common, pass_shapes

def get_config(argument=None):
  config = pass_shapes.get_config('tiny')
  data = common.data(
    'image_mask_folder', source={source!r}, images='images', masks='masks',
    classes='classes.txt', ignore='255', val_fraction=0.4,
  )
  config.data_dir = {records!r}
  config.stages = {stages!r}
  config.network.encoder.width = 4
  config.images.data = config.represent.data = data
  config.represent.widths = common.block(hidden=8, embedding=4, prototypes=6)
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
  config.operation.update(log_every=1, save_every=3, record_ids=True)
  return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """A config of 15 images of discs and bars, of odd sizes."""
  folder = tmp_path_factory.mktemp('shapes')
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (folder / name).mkdir()
  for i in range(15):
    height, width = 41 + i % 3, 47 - i % 2
    image = rng.integers(0, 120, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    centre = int(rng.integers(12, 30)), int(rng.integers(12, 30))
    if i % 2:
      cv2.circle(mask, centre, 9, 1, -1)
    else:
      cv2.rectangle(mask, centre, (centre[0] + 14, centre[1] + 5), 2, -1)
    image[mask > 0] += 120
    cv2.imwrite(str(folder / 'images' / f'{i:02}.png'), image)
    cv2.imwrite(str(folder / 'masks' / f'{i:02}.png'), mask)
  (folder / 'classes.txt').write_text('other\ndisc\nbar\n')
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
  """Starts a run; `process` is (index, count, port) of a group."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1 '
    '--xla_backend_optimization_level=0',
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


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  assert runs.finish(start(config, workdir), workdir) == 0, runs.text_of(
    workdir
  )
  return workdir


def results_of(workdir, name):
  return json.loads((workdir / name / 'results.json').read_text())['splits']


def test_a_run_leaves_what_it_promises(whole):
  for name in STAGES:
    assert (whole / name / 'DONE.json').exists(), name
  lines = [x for x in runs.journal_of(whole / 'represent') if 'train/loss' in x]
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert {'train/loss_swav', 'train/loss_p2p', 'train/loss_shallow3'} <= set(
    lines[-1]
  )
  assert [line['train/queue_fill'] for line in lines] == [0, 0, 0.5, 1, 1, 1]

  # A label map for each training image, as large as it, of two categories.
  labels = label_files.names(whole / 'label' / 'train')
  assert len(labels) == 12
  for name in labels:
    found = label_files.read(whole / 'label' / 'train' / name, 2)
    assert found.shape[0] in (41, 42, 43) and found.shape[1] in (46, 47)
  assert np.load(whole / 'cluster' / 'centroids.npy').shape == (2, 32)

  for name in ('segment', 'segment_semi', 'label'):
    values = results_of(whole, name)['val']
    assert values['num_images'] == 3
    assert 0 <= values['metrics']['miou'] <= 1
    assert set(values['per_class']['iou']) == {'other', 'disc', 'bar'}
    assert (whole / name / 'pictures' / 'val.png').exists()
  assert set(results_of(whole, 'distance')) == {'val', 'val_rematched'}
  match = json.loads((whole / 'segment' / 'match.json').read_text())
  assert match['0'] == 0 and sorted(match.values()) == [0, 1, 2]
  assert len(label_files.names(whole / 'segment' / 'val')) == 3


def test_the_evaluate_command_finds_what_the_stage_found(
  whole, config, tmp_path
):
  masks = tmp_path / 'gt'
  for name in label_files.names(whole / 'segment' / 'val'):
    mask = cv2.imread(
      str(config.parent / 'masks' / pathlib.Path(name).name), -1
    )
    label_files.write(masks / name, mask.astype(int))
  found = subprocess.run(
    [
      *(sys.executable, '-m', 'pass_luss.evaluate', f'--gt={masks}'),
      f'--pred={whole}/segment/val',
      f'--match={whole}/segment/match.json',
      '--num_classes=2',
    ],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  said = json.loads(found.stdout.splitlines()[-1])
  expected = results_of(whole, 'segment')['val']['metrics']
  for name in ('miou', 'boundary_miou', 'image_accuracy', 'f_beta'):
    assert said[name] == pytest.approx(100 * expected[name])


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
  config, whole, tmp_path
):
  """In a step with a queue in use, and among the generated labels."""
  workdir = tmp_path / 'run'
  labels = workdir / 'label' / 'train'
  for due in (
    runs.logged(workdir / 'represent', 4),
    lambda: labels.exists() and len([*labels.iterdir()]) > 3,
  ):
    assert runs.stop_when(start(config, workdir), due)
  process = start(config, workdir)
  assert runs.finish(process, workdir) == 0, runs.text_of(workdir)
  for name in ('represent', 'attend', 'finetune', 'semi'):
    jax.tree.map(
      np.testing.assert_array_equal,
      runs.state_of(workdir / name),
      runs.state_of(whole / name),
    )
    for journal in ('metrics', 'ids'):
      assert runs.journal_of(workdir / name, journal) == runs.journal_of(
        whole / name, journal
      )
  for name in ('distance', 'label', 'segment', 'segment_semi'):
    assert results_of(workdir, name) == results_of(whole, name)


@pytest.mark.slow
def test_two_hosts_make_what_one_makes(config, whole, tmp_path):
  """From the same networks: features, neighbours, labels and scores.

  Of three images of val in batches of two, host 1 gets one only.
  """
  workdir, port = tmp_path / 'two', runs.free_port()
  for name in ('represent', 'attend', 'finetune'):
    shutil.copytree(whole / name, workdir / name)
  stages = tuple(name for name in STAGES if 'semi' not in name)
  hosts = [
    start(
      config,
      workdir,
      f'--config.stages={stages}',
      process=(i, 2, port),
    )
    for i in range(2)
  ]
  for host in hosts:
    assert runs.finish(host, workdir) == 0, runs.text_of(workdir)
  np.testing.assert_allclose(
    np.load(workdir / 'cluster' / 'centroids.npy'),
    np.load(whole / 'cluster' / 'centroids.npy'),
    atol=1e-4,
  )
  for name, folder in (
    *(('label', 'train'), ('label', 'val')),
    *(('segment', 'val'), ('distance', 'val')),
  ):
    made, expected = workdir / name / folder, whole / name / folder
    names = label_files.names(expected)
    assert label_files.names(made) == names
    differs = [
      np.mean(
        label_files.read(made / x, 2) != label_files.read(expected / x, 2)
      )
      for x in names
    ]
    assert np.mean(differs) < 0.02, name
  for name in ('distance', 'segment', 'label'):
    found, expected = (
      results_of(where, name)['val']['metrics'] for where in (workdir, whole)
    )
    assert found == pytest.approx(expected, abs=0.03)


def test_what_was_segmented_can_be_predicted(config, whole, tmp_path):
  """Categories have the names of the classes they were matched with."""
  out = tmp_path / 'out'
  process = start(
    config,
    whole,
    *('--stage=predict', f'--images={config.parent}/images', f'--out={out}'),
  )
  assert runs.finish(process, whole) == 0, runs.text_of(whole)
  assert len([*(out / 'labels').iterdir()]) == 15
  assert {'other', 'disc', 'bar'} <= set(
    (out / 'classes.txt').read_text().replace(':', ' ').split()
  )


def test_what_was_segmented_can_be_exported(config, whole):
  """One program for images of all sizes finds the label maps of `segment`."""
  process = start(config, whole, '--stage=export')
  assert runs.finish(process, whole) == 0, runs.text_of(whole)
  known = json.loads((whole / 'export' / 'classes.json').read_text())
  assert sorted(known['classes']) == ['bar', 'disc', 'other']
  program = jax.export.deserialize(
    bytearray((whole / 'export' / 'model.stablehlo').read_bytes())
  )
  names = label_files.names(whole / 'segment' / 'val')
  for name in names:
    image = cv2.imread(str(config.parent / 'images' / pathlib.Path(name).name))
    found = np.asarray(program.call(image[None, ..., ::-1]))[0]
    expected = label_files.read(whole / 'segment' / 'val' / name, 2)
    # After six steps classes are near, and Pillow rounds its weights.
    assert np.mean(found == expected) > 0.97
    assert len(np.unique(expected)) > 1


def test_a_missing_saliency_map_is_told_in_one_line(config, whole, tmp_path):
  process = start(
    config,
    whole.with_name('other'),
    f'--config.label.saliency={tmp_path}/nowhere',
    *('--config.stages=("represent","attend","cluster","label")',),
    *('--stage=label',),
  )
  workdir = whole.with_name('other')
  assert runs.finish(process, workdir) == 2
  assert runs.text_of(workdir).count('error: ') == 1
