"""PASS from the command line, as a user runs it, on a small folder."""

import importlib.util
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

from pass_luss import experiment as experiment_lib
from pass_luss import main
from pass_luss.benchmark import png_format
from pass_luss.pseudo_labels import features
from pass_luss.pseudo_labels import labeler as labeler_lib
from runtime import errors, options
from segcore.distributed import sharding
from segcore.train import workspace as workspace_lib
from tests.support import runs

STAGES = (
  *('represent', 'distance', 'attend', 'cluster', 'label'),
  *('finetune', 'segment', 'semi', 'segment_semi', 'segment_on'),
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
  config.segment_on = common.block(
    **config.segment_semi, trained_by='semi',
    data=dict(data.to_dict(), masks='bars', classes='bars.txt'),
  )
  config.operation.update(log_every=1, save_every=3, record_ids=True)
  return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """A config of 15 images of discs and bars, of odd sizes."""
  folder = tmp_path_factory.mktemp('shapes')
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
    # The same images in a data set of fewer classes, with ids of its own.
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
  assert runs.wait(start(config, workdir), workdir) == 0, runs.read_log(workdir)
  return workdir


def results_of(workdir, name):
  return json.loads((workdir / name / 'results.json').read_text())['splits']


def test_a_run_leaves_what_it_promises(whole):
  for name in STAGES:
    assert (whole / name / 'DONE.json').exists(), name
  lines = [
    x for x in runs.read_metrics(whole / 'represent') if 'train/loss' in x
  ]
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert {'train/loss_swav', 'train/loss_p2p', 'train/loss_shallow3'} <= set(
    lines[-1]
  )
  assert [line['train/queue_fill'] for line in lines] == [0, 0, 0.5, 1, 1, 1]

  # A label map for each training image, as large as it, of two categories.
  labels = png_format.list_files(whole / 'label' / 'train')
  assert len(labels) == 12
  for name in labels:
    found = png_format.read(whole / 'label' / 'train' / name, 2)
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
  assert len(png_format.list_files(whole / 'segment' / 'val')) == 3


def test_classes_of_another_data_set_are_found_by_their_names(whole):
  """The same label maps; what 'bar' is worth has nothing to do with its id."""
  match = json.loads((whole / 'segment_on' / 'match.json').read_text())
  assert match == {'0': 0, '1': 0, '2': 1}
  here, there = whole / 'segment_semi' / 'val', whole / 'segment_on' / 'val'
  for name in png_format.list_files(here):
    np.testing.assert_array_equal(
      png_format.read(here / name, 2), png_format.read(there / name, 2)
    )
  of_run, of_bars = (
    results_of(whole, name)['val']['per_class']['iou']
    for name in ('segment_semi', 'segment_on')
  )
  assert set(of_bars) == {'other', 'bar'}
  assert of_bars['bar'] == of_run['bar']


def test_results_say_how_they_were_found(whole):
  """DESIGN §3: protocol and step, and how a threshold was chosen."""
  found = {
    name: json.loads((whole / name / 'results.json').read_text())
    for name in ('distance', 'label', 'segment', 'segment_semi')
  }
  assert {name: (x['protocol'], x['step']) for name, x in found.items()} == {
    'distance': (
      '10 nearest regions of train, temperature 0.07, short side 40; without '
      'matching, and as SPLIT_rematched matched on the split itself',
      6,
    ),
    'label': (
      'foreground by attention, short side 40; categories matched with classes '
      'on val',
      6,
    ),
    'segment': (
      'logits, short side 40; categories matched with classes on val',
      6,
    ),
    'segment_semi': (
      'logits, short side 40; categories matched with classes by their names',
      6,
    ),
  }
  chosen = json.loads((whole / 'label' / 'threshold.json').read_text())
  assert found['label']['threshold'] == chosen['threshold'] >= 0
  assert found['label']['chosen_on'] == 'image_mask_folder val'
  assert 'threshold' not in found['segment']


# Stages in this process, on what the run has trained.


def runner_of(config, **changes):
  """What runs the stages of a config, on one device."""
  spec = importlib.util.spec_from_file_location('pass_folder', config)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = module.get_config()
  found.update_from_flattened_dict(changes)
  experiment = options.build(experiment_lib.Experiment, found, 'config')
  return main.Runner(experiment, sharding.make_mesh(devices=jax.devices()[:1]))


def place_of(folder, *needed):
  return workspace_lib.Workspace(
    folder, {path.name: path for path in needed}, 'digest'
  )


def test_clusters_are_not_looked_for_again(
  config, whole, tmp_path, monkeypatch
):
  """What was killed while it read the classes goes on there."""
  runner = runner_of(config)
  place = place_of(tmp_path / 'cluster', whole / 'attend')

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(features, 'single_tags', killed)
    with pytest.raises(KeyboardInterrupt):
      runner.run_cluster(place)
  monkeypatch.setattr(features, 'extract', killed)
  assigned = np.load(place.directory / 'assignments.npy')
  # Classes that are the clusters, by other numbers.
  monkeypatch.setattr(features, 'single_tags', lambda split: 7 - assigned)
  outputs = runner.run_cluster(place)
  assert sorted(path.name for path in outputs) == [
    *('assignments.npy', 'centroids.npy', 'clusters.json')
  ]
  said = json.loads((place.directory / 'clusters.json').read_text())
  assert said['nmi'] == said['accuracy'] == pytest.approx(1.0)
  assert said['num_rows'] == len(assigned) == 12
  assert not (place.directory / 'features').exists()


def test_whole_images_learn_the_cluster_that_k_means_gave_them(
  config, whole, tmp_path
):
  runner = runner_of(config, **{'cluster.kind': 'image', 'label.report': ()})
  clusters, represent = tmp_path / 'cluster', whole / 'represent'
  runner.run_cluster(place_of(clusters, represent))
  # Whatever they are: here no centroids would give the same.
  given = np.arange(12, dtype=np.int32) // 3 % 2
  np.save(clusters / 'assignments.npy', given)
  runner.run_label(place_of(tmp_path / 'label', represent, clusters))
  names = runner._open('').ids()
  for name, category in zip(names, given, strict=True):
    found = png_format.read(tmp_path / 'label' / 'train' / f'{name}.png', 2)
    assert np.unique(found).tolist() == [1 + category]


def test_a_threshold_is_chosen_once_and_the_picture_shows_what_decided(
  config, whole, tmp_path, monkeypatch
):
  runner = runner_of(config)
  place = place_of(tmp_path / 'label', whole / 'attend', whole / 'cluster')
  _, labeler = runner._labeler(place)
  swept = []

  def sweep(labeler, split, *_):
    swept.append(split.name)
    return labeler_lib.ThresholdSweep.empty(2, 2)

  monkeypatch.setattr(labeler_lib.Labeler, 'sweep_thresholds', sweep)
  found = [runner._threshold(place, 'label', labeler, 2) for _ in range(2)]
  assert found[0] == found[1] and len(swept) == 1
  assert found[0].chosen_on == swept[0]

  drawn = []
  monkeypatch.setattr(
    labeler_lib.panels,
    'grid',
    lambda rows, names: drawn.append((rows, names)) or rows[0][0],
  )

  def left_half(example):
    height, width = example['size'].tolist()
    return np.broadcast_to(np.arange(width) < width // 2, (height, width)) / 2

  some = runner._open('').select(np.array([3]))
  labeler.draw_panel(some, whole / 'label' / 'train', left_half)
  ((((_, decided, _),), names),) = drawn
  assert names[1] == 'saliency'
  half = decided.shape[1] // 2
  assert (decided[:, :half] == 255).all() and (decided[:, half:] == 0).all()


def test_too_few_images_are_told_in_one_line(config, whole, tmp_path):
  runner = runner_of(config, **{'distance.neighbors': 1000})
  with pytest.raises(errors.UserError) as error:
    runner.run_distance(place_of(tmp_path / 'distance', whole / 'represent'))
  assert str(error.value) == (
    'config.distance.neighbors: expected at most 24, the number of regions in '
    'image_mask_folder train, got 1000'
  )
  one = runner._open('').select(np.array([0]))
  with pytest.raises(errors.UserError) as error:
    runner._check_clusters(one)
  assert str(error.value) == (
    'config.images: found 1 rows to cluster in image_mask_folder train (1 of '
    '12 images), expected at least 2, one for each class: choose data with '
    'more images'
  )


def test_the_evaluate_command_finds_what_the_stage_found(
  whole, config, tmp_path
):
  masks = tmp_path / 'gt'
  for name in png_format.list_files(whole / 'segment' / 'val'):
    mask = cv2.imread(
      str(config.parent / 'masks' / pathlib.Path(name).name), -1
    )
    png_format.write(masks / name, mask.astype(int))
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
  """In a step with a queue in use, and among the generated labels.

  And as if another data set had been asked for from the beginning.
  """
  workdir = tmp_path / 'run'
  before = tuple(name for name in STAGES if name != 'segment_on')
  labels = workdir / 'label' / 'train'
  for due in (
    runs.step_logged(workdir / 'represent', 4),
    lambda: labels.exists() and len([*labels.iterdir()]) > 3,
  ):
    process = start(config, workdir, f'--config.stages={before}')
    assert runs.signal_when(process, due)
  process = start(config, workdir)
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)
  for name in ('represent', 'attend', 'finetune', 'semi'):
    jax.tree.map(
      np.testing.assert_array_equal,
      runs.read_state(workdir / name),
      runs.read_state(whole / name),
    )
    for file in ('metrics', 'ids'):
      assert runs.read_metrics(workdir / name, file) == runs.read_metrics(
        whole / name, file
      )
  for name in ('distance', 'label', 'segment', 'segment_semi', 'segment_on'):
    assert results_of(workdir, name) == results_of(whole, name)


@pytest.mark.slow
def test_two_hosts_make_what_one_makes(config, whole, tmp_path):
  """From the same networks: features, neighbors, labels and scores.

  Of three images of val in batches of two, host 1 gets one only.
  """
  workdir, port = tmp_path / 'two', runs.free_port()
  for name in ('represent', 'attend', 'finetune'):
    shutil.copytree(whole / name, workdir / name)
  semi = ('semi', 'segment_semi', 'segment_on')
  stages = tuple(name for name in STAGES if name not in semi)
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
    assert runs.wait(host, workdir) == 0, runs.read_log(workdir)
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
    names = png_format.list_files(expected)
    assert png_format.list_files(made) == names
    differs = [
      np.mean(png_format.read(made / x, 2) != png_format.read(expected / x, 2))
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
  assert runs.wait(process, whole) == 0, runs.read_log(whole)
  assert len([*(out / 'labels').iterdir()]) == 15
  assert {'other', 'disc', 'bar'} <= set(
    (out / 'classes.txt').read_text().replace(':', ' ').split()
  )


def test_what_was_segmented_can_be_exported(config, whole):
  """One program for images of all sizes finds the label maps of `segment`."""
  process = start(config, whole, '--stage=export')
  assert runs.wait(process, whole) == 0, runs.read_log(whole)
  known = json.loads((whole / 'export' / 'classes.json').read_text())
  assert sorted(known['classes']) == ['bar', 'disc', 'other']
  program = jax.export.deserialize(
    bytearray((whole / 'export' / 'model.stablehlo').read_bytes())
  )
  names = png_format.list_files(whole / 'segment' / 'val')
  for name in names:
    image = cv2.imread(str(config.parent / 'images' / pathlib.Path(name).name))
    found = np.asarray(program.call(image[None, ..., ::-1]))[0]
    expected = png_format.read(whole / 'segment' / 'val' / name, 2)
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
  assert runs.wait(process, workdir) == 2
  assert runs.read_log(workdir).count('error: ') == 1
