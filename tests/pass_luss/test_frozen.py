"""The stages of frozen encoders, on a small folder and a tiny ViT."""

import json
from unittest import mock

import cv2
import jax
import numpy as np
import pytest

from configs import pass_frozen
from pass_luss import main
from pass_luss.protocols import frozen_encoder, patch_rows, patch_scores
from runtime import errors
from segcore.experiment import config_file, stage
from tests.support import vit_states

STAGES = ('frozen_knn', 'frozen_distance', 'frozen_kmeans')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Writes nine images of two flat colors, and a ViT with patches of 4."""
  folder = tmp_path_factory.mktemp('flat')
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (folder / name).mkdir()
  for i in range(9):
    mask = np.zeros((36, 36 + 12 * (i % 2)), np.uint8)
    mask[:, 12 * (1 + i % 3) :] = 1
    image = np.where(mask[..., None], (200, 80, 30), (40, 90, 180))
    image = image + rng.integers(-8, 8, image.shape)
    mask[:2, :2] = 255
    cv2.imwrite(str(folder / 'images' / f'{i}.png'), image.astype(np.uint8))
    cv2.imwrite(str(folder / 'masks' / f'{i}.png'), mask)
  (folder / 'classes.txt').write_text('left\nright\n')
  np.savez(folder / 'dino.npz', **vit_states.dino())
  return folder


def load(folder, options='', **changes):
  config = config_file.complete_config(
    pass_frozen.get_config(
      f'source={folder},ignore=255,val_fraction=0.34,short_side=24,'
      f'encoder={folder / "dino.npz"}' + (options and f',{options}')
    )
  )
  config.data_dir = str(folder / 'records')
  for name in STAGES:
    config[name].batch_size = 2
  config.frozen_kmeans.restarts = 1
  config.update_from_flattened_dict(changes)
  return config


def run(folder, workdir, options='', only=(), **changes):
  config = load(folder, options, **changes)
  stages = main.PROGRAM.build_stages(config, jax.devices()[:2])
  stage.run_stages(stages, workdir, only)


def results_of(workdir, name):
  return json.loads((workdir / name / 'results.json').read_text())


@pytest.fixture(scope='module')
def finished(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  run(folder, workdir)
  return workdir


@pytest.mark.parametrize('name', STAGES)
def test_flat_colors_are_told_apart(finished, name):
  results = results_of(finished, name)
  values = results['splits']['val']
  assert (values['num_images'], results['num_labeled']) == (2, 7)
  assert values['metrics']['miou'] > 0.9
  assert values['metrics']['pixel_accuracy'] > 0.95
  assert set(values['per_class']['iou']) == {'left', 'right'}
  assert 'cells of 4 pixels' in results['protocol']
  assert 'short side 24' in results['protocol']
  assert (finished / name / 'pictures' / 'val.png').exists()
  assert not (finished / name / 'features').exists()


def test_rows_and_matching_are_reported(finished):
  # Images of 36x36 and 36x48 pixels have 6x6 and 6x8 patches.
  count = results_of(finished, 'frozen_knn')['num_rows']
  assert 7 * 36 < count < 7 * 48 and not (count - 7 * 36) % 12
  # Two of the seven images have one class only.
  assert results_of(finished, 'frozen_distance')['num_rows'] == 12
  kmeans = results_of(finished, 'frozen_kmeans')
  assert kmeans['matching'] == 'one-to-one' and kmeans['num_clusters'] == 2
  assert sorted(kmeans['classes_of_clusters']) == [0, 1]


def test_more_clusters_are_reported_as_many_to_one_beside_the_first(
  folder, finished, capsys
):
  run(folder, finished, 'clusters=4', ['frozen_kmeans'])
  results = results_of(finished, 'frozen_kmeans-frozen_kmeans.clusters=4')
  assert results['matching'] == 'many-to-one'
  assert len(results['classes_of_clusters']) == 4
  table = capsys.readouterr().out.splitlines()[-5:]
  assert table[0].split()[:4] == ['stage', 'split', 'mIoU', 'pixels']
  assert sorted(line.split('  ')[0] for line in table[1:]) == [
    'frozen_distance',
    'frozen_kmeans (many-to-one)',
    'frozen_kmeans (one-to-one)',
    'frozen_knn',
  ]


def test_an_interrupted_memory_is_gone_on_with(
  folder, finished, tmp_path, monkeypatch
):
  """Blocks of two images, the second of which is interrupted once."""
  monkeypatch.setattr(patch_rows, 'BLOCK', 2)
  options = 'passes=1,rows=20,pixels=left_out'
  write, written = patch_rows.features.write_feature_array, []

  def fail_once(path, rows):
    if len(written) == 1:
      written.append('failed')
      raise KeyboardInterrupt
    write(path, rows)
    written.append(path.name)

  monkeypatch.setattr(patch_rows.features, 'write_feature_array', fail_once)
  with pytest.raises(KeyboardInterrupt):
    run(folder, tmp_path, options, ['frozen_knn'])
  run(folder, tmp_path, options, ['frozen_knn'])
  assert written == [
    'pass0-000000000.npy',
    'failed',
    'pass0-000000002.npy',
    'pass0-000000004.npy',
    'pass0-000000006.npy',
  ]
  results = results_of(tmp_path, 'frozen_knn')
  assert results['num_rows'] == 7 * 20
  assert results['splits']['val']['metrics']['miou'] > 0.85


@pytest.mark.parametrize(
  'options, changes, message',
  [
    (
      'clusters=1',
      {},
      r'config.frozen_kmeans.clusters: expected 0, or at least 2, .* got 1',
    ),
    (
      'stride=3',
      {},
      r'config.frozen_knn.stride: no map at stride 3; there are',
    ),
    (
      'protocol=knn',
      {'frozen_knn.neighbors': 500},
      r'config.frozen_knn.neighbors: expected at most \d+, .* got 500',
    ),
    (
      'protocol=distance',
      {'frozen_distance.neighbors': 13},
      r'config.frozen_distance.neighbors: expected at most 12, .* got 13',
    ),
    (
      'val=train',
      {},
      "val_split, follow: expected other splits than .* got 'train'",
    ),
    (
      'protocol=knn',
      {'frozen_knn.start.path': 'missing.pth'},
      r'config.frozen_knn.start.path: missing.pth does not exist',
    ),
  ],
)
def test_refusals(folder, tmp_path, options, changes, message):
  with pytest.raises(errors.UserError, match=message):
    run(folder, tmp_path, options, **changes)


@pytest.mark.parametrize(
  'options, message',
  [
    ('images=photos', 'images=photos: expected source=FOLDER .* no source'),
    (
      'data=camvid,source=x,ignore=255',
      'ignore=255: expected source=FOLDER without data, .* got data=camvid',
    ),
    (
      'protocol=knn,enlarge=4',
      'enlarge=4: expected protocol=distance, got knn',
    ),
    (
      'protocol=distance,rows=9',
      'rows=9: expected protocol=knn or kmeans, got distance',
    ),
    ('class_weights=median', "'class_weights' is unknown"),
  ],
)
def test_options_without_an_effect_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    pass_frozen.get_config(options)


def test_data_sets_with_a_name_have_a_source():
  for options, expected in (
    ('', {'name': 'shapes/scenes'}),
    ('data=camvid', {'name': 'camvid'}),
    ('data=camvid,source=x', {'name': 'camvid', 'source': 'x'}),
  ):
    config = pass_frozen.get_config(options)
    assert config.frozen_kmeans.data.to_dict() == expected


def test_scores_are_interpolated_at_every_pixel_of_a_large_image():
  encoder = mock.Mock(
    spec=frozen_encoder.FrozenEncoder, short_side=8, size_multiple=4
  )
  predictor = patch_scores.label_map_predictor(encoder, mock.Mock())
  # PASS would predict 1,000 rows.
  size = (1100, 1000)
  inputs = predictor.prepare(
    [np.zeros((*size, 3), np.uint8)], predictor.group(size)
  )
  for name, count in zip(('rows', 'columns'), size, strict=True):
    np.testing.assert_allclose(
      inputs[name][0, :count], (np.arange(count) + 0.5) / count, rtol=1e-6
    )


def test_a_network_needs_weights_or_a_config(folder):
  with pytest.raises(errors.UserError, match='start.path: expected weights of'):
    load_and_build(folder, **{'frozen_knn.start': {'path': '', 'take': ()}})


def load_and_build(folder, **changes):
  config = load(folder)
  for name, value in changes.items():
    block, field = name.split('.')
    config[block][field] = value
  return main.PROGRAM.build(config, jax.devices()[:1])


def test_other_stages_need_their_blocks(folder):
  config = load(folder)
  config.stages = ('represent',)
  with pytest.raises(errors.UserError, match='images: expected a block, as'):
    main.PROGRAM.build(config, jax.devices()[:1])
