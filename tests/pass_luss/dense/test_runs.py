"""MDC, PiCIE + H and MaskContrast on a small folder, from the command line."""

import json

import cv2
import numpy as np
import pytest

from pass_luss.benchmark import png_format
from pass_luss.pseudo_labels import features
from tests.pass_luss import all_stages
from tests.support import runs

pytestmark = pytest.mark.slow

CONFIG = """
from configs import pass_dense, shared

def get_config(argument=None):
  saliency = {saliency!r} if 'maskcontrast' in argument else ''
  config = pass_dense.get_config(
    f'{{argument}},saliency={{saliency}},start=random,tiny'
  )
  config.data_dir = {records!r}
  config.network.encoder.width = 4
  config.images.data = shared.block(
    name='image_mask_folder', source={source!r}, images='images', masks='masks',
    classes='classes.txt', ignore='255', val_fraction=0.4,
  )
  if saliency:
    config.represent_masks.large.size = (32, 32)
    config.represent_masks.learn.update(width=8, queue=8)
    trained, segmented = config.represent_masks, config.segment_masks
    config.cluster_masks.update(
      short_side=40, size_multiple=8, rows_per_batch=5, batch_size=3
    )
  else:
    trained, segmented = config.represent_pixels, config.segment_pixels
    trained.update(base_side=36, side=32)
    trained.kmeans.update(batch_size=4, initial_batches=2)
    if 'over_clusters' in trained.learn:
      trained.learn.over_clusters = 5
  trained.recipe.update(num_steps=7, batch_size=4)
  segmented.update(short_side=40, batch_size=2, splits=('val',))
  config.operation.update(log_every=1, save_every=2, record_ids=True)
  return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Returns the path of a config with 15 images and their saliency maps."""
  all_stages.write_config(folder := tmp_path_factory.mktemp('shapes'))
  (folder / 'saliency').mkdir()
  for path in (folder / 'masks').iterdir():
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    saliency = np.where(mask > 0, 255, 10).astype(np.uint8)
    cv2.imwrite(str(folder / 'saliency' / path.name), saliency)
  path = folder / 'dense_folder.py'
  path.write_text(
    CONFIG.format(
      records=str(folder / 'records'),
      source=str(folder),
      saliency=str(folder / 'saliency'),
    )
  )
  return path


def run(config, method, workdir, *flags):
  process = all_stages.start(f'{config}:method={method}', workdir, *flags)
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)


@pytest.mark.parametrize(
  ('method', 'trained', 'segmented'),
  [
    ('mdc', 'represent_pixels', 'segment_pixels'),
    ('picie_h', 'represent_pixels', 'segment_pixels'),
    ('maskcontrast', 'represent_masks', 'segment_masks'),
  ],
)
def test_a_killed_run_equals_an_uninterrupted_one(
  config, tmp_path, method, trained, segmented
):
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  run(config, method, whole)
  killed = all_stages.start(f'{config}:method={method}', workdir)
  # Steps 2, 4 and 6 are saved; 12 images are an epoch of three steps.
  assert runs.signal_when(killed, runs.step_logged(workdir / trained, 5))
  run(config, method, workdir)
  runs.assert_same_runs(workdir, whole, trained)
  labels = png_format.list_imagenet_s_pngs(whole / segmented / 'val')
  assert len(labels) == 3
  for name in labels:
    first, second = (
      png_format.read_imagenet_s_png(folder / segmented / 'val' / name, 2)
      for folder in (whole, workdir)
    )
    np.testing.assert_array_equal(first, second)
    if method == 'maskcontrast':  # One category in each image.
      assert len({*first.ravel().tolist()} - {0}) <= 1
  results = json.loads((whole / segmented / 'results.json').read_text())
  assert 0 <= results['splits']['val']['metrics']['miou'] <= 1
  lines = [x for x in runs.read_metrics(whole / trained) if 'train/loss' in x]
  assert [line['step'] for line in lines] == [*range(1, 8)]
  if method == 'maskcontrast':
    assert {'train/loss_contrast', 'train/loss_saliency'} <= {*lines[-1]}
    shares = features.read_feature_array(whole / 'salient_masks' / 'shares.npy')
    assert len(shares) == 12 and (shares > 0.01).all()
  else:
    assert 0 <= results['other_cluster'] < 3
    assert 0 < results['other_share_of_border'] <= 1
    log = runs.read_log(whole)
    assert [f'epoch {i}: clustered the pixels of 12' in log for i in (1, 2, 3)]
    _check_other_classifier(config, method, whole)


def _check_other_classifier(config, method, workdir):
  """Segments a finished run by other centroids, with 'other' by matching."""
  classifier = {'mdc': 'fresh', 'picie_h': 'view2'}[method]
  run(
    config,
    method,
    workdir,
    '--config.segment_pixels.other=match',
    f'--config.segment_pixels.classifier={classifier}',
    '--config.segment_pixels.kmeans.batch_size=4',
    '--config.segment_pixels.kmeans.initial_batches=2',
  )
  (folder,) = workdir.glob('segment_pixels-*')
  results = json.loads((folder / 'results.json').read_text())
  assert 0 <= results['other_cluster'] < 3
  assert 0 < results['other_share_of_images'] <= 1
  assert 'centroids of' in results['protocol']
  assert 0 <= results['splits']['val']['metrics']['miou'] <= 1
