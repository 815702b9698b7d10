"""All stages of PASS from the command line, on a small folder."""

import json
import pathlib
import shutil

import cv2
import jax
import numpy as np
import pytest

from pass_luss import evaluate, main
from pass_luss.benchmark import png_format
from pass_luss.pseudo_labels import features, threshold_sweep
from pass_luss.pseudo_labels import labeler as labeler_lib
from runtime import errors
from segcore.eval import export
from segcore.experiment import config_file
from segcore.train import workspace as workspace_lib
from tests.pass_luss.all_stages import STAGES, start, write_config
from tests.support import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Returns the path of a config with 15 images of discs and bars."""
  return write_config(tmp_path_factory.mktemp('shapes'))


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """Returns the folder of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  assert runs.wait(start(config, workdir), workdir) == 0, runs.read_log(workdir)
  return workdir


def results_of(workdir, name):
  return json.loads((workdir / name / 'results.json').read_text())['splits']


def test_outputs_of_all_stages(whole):
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

  # A label map of two categories for each training image, of its size.
  labels = png_format.list_imagenet_s_pngs(whole / 'label' / 'train')
  assert len(labels) == 12
  for name in labels:
    label = png_format.read_imagenet_s_png(whole / 'label' / 'train' / name, 2)
    assert label.shape[0] in (41, 42, 43) and label.shape[1] in (46, 47)
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
  assert len(png_format.list_imagenet_s_pngs(whole / 'segment' / 'val')) == 3


def test_classes_of_another_data_set_are_matched_by_name(whole):
  """The label maps are the same; the IoU of 'bar' does not depend on its id."""
  match = json.loads((whole / 'segment_on' / 'match.json').read_text())
  assert match == {'0': 0, '1': 0, '2': 1}
  first, second = whole / 'segment_semi' / 'val', whole / 'segment_on' / 'val'
  for name in png_format.list_imagenet_s_pngs(first):
    np.testing.assert_array_equal(
      png_format.read_imagenet_s_png(first / name, 2),
      png_format.read_imagenet_s_png(second / name, 2),
    )
  iou, iou_of_second = (
    results_of(whole, name)['val']['per_class']['iou']
    for name in ('segment_semi', 'segment_on')
  )
  assert set(iou_of_second) == {'other', 'bar'}
  assert iou_of_second['bar'] == iou['bar']


def test_results_have_protocol_step_and_threshold(whole):
  results = {
    name: json.loads((whole / name / 'results.json').read_text())
    for name in ('distance', 'label', 'segment', 'segment_semi')
  }
  assert {name: (x['protocol'], x['step']) for name, x in results.items()} == {
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
  assert results['label']['threshold'] == chosen['threshold'] >= 0
  assert results['label']['chosen_on'] == 'image_mask_folder val'
  assert 'threshold' not in results['segment']


# Stages in this process, from the finished stages of the run.


def build_stages(config, **changes):
  """Builds the stages of a config by name, on one device."""
  values = config_file.load_config(str(config))
  values.update_from_flattened_dict(changes)
  return main.PROGRAM.build(values, jax.devices()[:1])


def make_workspace(folder, *needed):
  return workspace_lib.Workspace(
    folder, {path.name: path for path in needed}, 'digest'
  )


def test_clustering_is_not_repeated_after_an_interruption(
  config, whole, tmp_path, monkeypatch
):
  """The stage was killed after it wrote the centroids."""
  stages = build_stages(config)
  workspace = make_workspace(tmp_path / 'cluster', whole / 'attend')

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(features, 'read_feature_row_classes', interrupt)
    with pytest.raises(KeyboardInterrupt):
      stages['cluster'].run(workspace)
  monkeypatch.setattr(features, 'extract_clustering_features', interrupt)
  assigned = np.load(workspace.directory / 'assignments.npy')
  # Classes that equal the clusters, with other ids.
  monkeypatch.setattr(
    features, 'read_feature_row_classes', lambda split: 7 - assigned
  )
  outputs = stages['cluster'].run(workspace)
  assert sorted(path.name for path in outputs) == [
    *('assignments.npy', 'centroids.npy', 'clusters.json')
  ]
  scores = json.loads((workspace.directory / 'clusters.json').read_text())
  assert scores['nmi'] == scores['accuracy'] == pytest.approx(1.0)
  assert scores['num_rows'] == len(assigned) == 12
  assert not (workspace.directory / 'features').exists()


def test_pseudo_labels_of_whole_images_are_their_clusters(
  config, whole, tmp_path
):
  stages = build_stages(config, **{'cluster.kind': 'image', 'label.report': ()})
  clusters, represent = tmp_path / 'cluster', whole / 'represent'
  stages['cluster'].run(make_workspace(clusters, represent))
  # Arbitrary assignments, which no centroids would give.
  assignments = np.arange(12, dtype=np.int32) // 3 % 2
  np.save(clusters / 'assignments.npy', assignments)
  stages['label'].run(make_workspace(tmp_path / 'label', represent, clusters))
  names = stages['label'].open_images().ids()
  for name, category in zip(names, assignments, strict=True):
    label = png_format.read_imagenet_s_png(
      tmp_path / 'label' / 'train' / f'{name}.png', 2
    )
    assert np.unique(label).tolist() == [1 + category]


def test_interrupted_labeling_equals_an_uninterrupted_one(
  config, whole, tmp_path, monkeypatch
):
  """Interrupted after some of the pseudo-labels."""
  stage = build_stages(config)['label']
  first, second = (
    make_workspace(tmp_path / name, whole / 'attend', whole / 'cluster')
    for name in ('first', 'second')
  )
  stage.run(first)
  written = []

  def write_four(path, label):
    if len(written) == 4:
      raise KeyboardInterrupt
    written.append(path)
    write(path, label)

  write = png_format.write_imagenet_s_png
  with monkeypatch.context() as patch:
    patch.setattr(png_format, 'write_imagenet_s_png', write_four)
    with pytest.raises(KeyboardInterrupt):
      stage.run(second)
  stage.run(second)
  for split, count in (('train', 12), ('val', 3)):
    names = png_format.list_imagenet_s_pngs(first.directory / split)
    assert png_format.list_imagenet_s_pngs(second.directory / split) == names
    assert len(names) == count
    for name in names:
      np.testing.assert_array_equal(
        png_format.read_imagenet_s_png(first.directory / split / name, 2),
        png_format.read_imagenet_s_png(second.directory / split / name, 2),
      )
  assert results_of(tmp_path, 'first') == results_of(tmp_path, 'second')


def build_label_stage(config, whole, folder):
  """Returns the stage `label`, a new workspace of it, and its labeler."""
  stage = build_stages(config)['label']
  workspace = make_workspace(
    folder / 'label', whole / 'attend', whole / 'cluster'
  )
  return stage, workspace, stage.build_labeler(workspace)[1]


def test_threshold_is_chosen_once(config, whole, tmp_path, monkeypatch):
  stage, workspace, labeler = build_label_stage(config, whole, tmp_path)
  swept = []

  def sweep(labeler, split, *_):
    swept.append(split.name)
    return threshold_sweep.ThresholdSweep.empty(2, 2)

  monkeypatch.setattr(labeler_lib.Labeler, 'sweep_thresholds', sweep)
  first, second = (
    stage.choose_threshold(workspace, labeler, 2) for _ in range(2)
  )
  assert first == second and len(swept) == 1
  assert first.chosen_on == swept[0]


@pytest.mark.parametrize(
  ('attention', 'auc', 'is_warned'), [(0.7, '100%', False), (0.1, '0%', True)]
)
def test_attention_of_the_background_is_warned_of(
  config, whole, tmp_path, monkeypatch, capsys, attention, auc, is_warned
):
  stage, workspace, labeler = build_label_stage(config, whole, tmp_path)
  sweep = threshold_sweep.ThresholdSweep.empty(2, 2)
  # An object of class 1 fills a quarter of the image.
  label = np.arange(16).reshape(4, 4) // 12
  sweep.update(label * 0 + 1, np.where(label > 0, attention, 0.5), label)
  monkeypatch.setattr(labeler_lib.Labeler, 'sweep_thresholds', lambda *_: sweep)
  chosen = stage.choose_threshold(workspace, labeler, 2)
  output = capsys.readouterr().out
  assert f'one of the background in {auc} of all pairs' in output
  assert ('warning: no labeled pixel of' in output) == is_warned
  assert ('saliency=rc' in output) == is_warned
  assert chosen.summary()['foreground_auc'] == float(not is_warned)


def test_panel_shows_the_given_foreground(config, whole, tmp_path, monkeypatch):
  stage, _, labeler = build_label_stage(config, whole, tmp_path)
  drawn = []
  monkeypatch.setattr(
    labeler_lib.panels,
    'draw_picture_grid',
    lambda rows, names: drawn.append((rows, names)) or rows[0][0],
  )

  def left_half(example):
    height, width = example['size'].tolist()
    return np.broadcast_to(np.arange(width) < width // 2, (height, width)) / 2

  images = stage.open_images().select(np.array([3]))
  labeler.draw_panel(images, whole / 'label' / 'train', left_half)
  ((((_, foreground, _),), names),) = drawn
  assert names[1] == 'saliency'
  half = foreground.shape[1] // 2
  assert (foreground[:, :half] == 255).all()
  assert (foreground[:, half:] == 0).all()


def test_too_few_images_are_refused(config, whole, tmp_path):
  stages = build_stages(config, **{'distance.neighbors': 1000})
  with pytest.raises(errors.UserError) as error:
    stages['distance'].run(
      make_workspace(tmp_path / 'distance', whole / 'represent')
    )
  assert str(error.value) == (
    'config.distance.neighbors: expected at most 24, the number of regions in '
    'image_mask_folder train, got 1000'
  )
  one = stages['cluster'].open_images().select(np.array([0]))
  with pytest.raises(errors.UserError) as error:
    stages['cluster'].check_rows(one)
  assert str(error.value) == (
    'config.images: expected at least 2 rows to cluster, one for each class, '
    'got 1 in image_mask_folder train (1 of 12 images): choose data with more '
    'images'
  )


def test_the_evaluate_command_scores_as_the_stage_does(
  whole, config, tmp_path, capsys
):
  masks = tmp_path / 'gt'
  for name in png_format.list_imagenet_s_pngs(whole / 'segment' / 'val'):
    mask = cv2.imread(
      str(config.parent / 'masks' / pathlib.Path(name).name), -1
    )
    png_format.write_imagenet_s_png(masks / name, mask.astype(int))
  flags = (
    f'--gt={masks}',
    f'--pred={whole}/segment/val',
    f'--match={whole}/segment/match.json',
    '--num_classes=2',
  )
  assert evaluate.main(flags) == 0
  values = json.loads(capsys.readouterr().out.splitlines()[-1])
  expected = results_of(whole, 'segment')['val']['metrics']
  for name in ('miou', 'boundary_miou', 'image_accuracy', 'f_beta'):
    assert values[name] == pytest.approx(100 * expected[name])


def test_killed_pretraining_equals_an_uninterrupted_one(
  config, whole, tmp_path
):
  """Killed in a step with a full queue."""
  workdir = tmp_path / 'run'
  stages = "--config.stages=('represent',)"
  killed = start(config, workdir, stages)
  assert runs.signal_when(killed, runs.step_logged(workdir / 'represent', 4))
  process = start(config, workdir, stages)
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)
  runs.assert_same_runs(workdir, whole, 'represent')


def test_data_set_added_to_a_finished_run(config, whole, tmp_path):
  """Gives the same results as if it had been there from the beginning."""
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns('segment_on'))
  process = start(config, workdir)
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)
  assert results_of(workdir, 'segment_on') == results_of(whole, 'segment_on')
  log = runs.read_log(workdir)
  for name in STAGES[:-1]:
    assert f'{name} is finished already' in log


def test_two_hosts_equal_one(config, whole, tmp_path):
  """Features, neighbors, labels and scores of the same networks.

  Of the three images of val in batches of two, host 1 gets only one.
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
    ('label', 'train'),
    ('label', 'val'),
    ('segment', 'val'),
    ('distance', 'val'),
  ):
    labels, expected = workdir / name / folder, whole / name / folder
    names = png_format.list_imagenet_s_pngs(expected)
    assert png_format.list_imagenet_s_pngs(labels) == names
    differs = [
      np.mean(
        png_format.read_imagenet_s_png(labels / x, 2)
        != png_format.read_imagenet_s_png(expected / x, 2)
      )
      for x in names
    ]
    assert np.mean(differs) < 0.02, name
  for name in ('distance', 'segment', 'label'):
    metrics, expected = (
      results_of(run, name)['val']['metrics'] for run in (workdir, whole)
    )
    assert metrics == pytest.approx(expected, abs=0.03)


def test_prediction_by_the_fine_tuned_network(config, whole, tmp_path):
  """Categories have the names of their matched classes."""
  out = tmp_path / 'out'
  process = start(
    config,
    whole,
    '--stage=predict',
    f'--images={config.parent}/images',
    f'--out={out}',
  )
  assert runs.wait(process, whole) == 0, runs.read_log(whole)
  assert len([*(out / 'labels').iterdir()]) == 15
  assert {'other', 'disc', 'bar'} <= set(
    (out / 'classes.txt').read_text().replace(':', ' ').split()
  )


def test_export_of_the_fine_tuned_network(config, whole, tmp_path):
  """One program for images of all sizes predicts the maps of `segment`."""
  model = build_stages(config)['segment'].load_model(whole)
  export.export_network(model, tmp_path, export.Request())
  classes = json.loads((tmp_path / 'classes.json').read_text())['classes']
  assert sorted(classes) == ['bar', 'disc', 'other']
  program = jax.export.deserialize(
    bytearray((tmp_path / 'model.stablehlo').read_bytes())
  )
  names = png_format.list_imagenet_s_pngs(whole / 'segment' / 'val')
  for name in names:
    image = cv2.imread(str(config.parent / 'images' / pathlib.Path(name).name))
    label = np.asarray(program.call(image[None, ..., ::-1]))[0]
    expected = png_format.read_imagenet_s_png(
      whole / 'segment' / 'val' / name, 2
    )
    # After six steps logits are close, and Pillow rounds its weights.
    assert np.mean(label == expected) > 0.97
    assert len(np.unique(expected)) > 1
