"""SEAM, SC-CAM and AdvCAM on clusters of a small folder, as users run them."""

import json

import jax
import jax.numpy as jnp
import pytest

from configs import networks
from pass_luss.benchmark import png_format
from pass_luss.weak import subcategories
from segcore.models import network, network_options
from segcore.weights import load
from tests.pass_luss import all_stages
from tests.support import runs

pytestmark = pytest.mark.slow

CONFIG = """
from configs import pass_wsss, shared

def get_config(argument=None):
  config = pass_wsss.get_config(
    'labels=clusters,encoder={encoder},tiny,' + (argument or 'method=seam')
  )
  config.data_dir = {records!r}
  config.network.encoder.width = 4
  config.images.data = shared.block(
    name='image_mask_folder', source={source!r}, images='images', masks='masks',
    classes='classes.txt', ignore='255', val_fraction=0.4,
  )
  config.cluster_images.update(
    restarts=2, short_side=40, crop=32, batch_size=3
  )
  for name in config.stages:
    if name.startswith('classify'):
      config[name].recipe.update(num_steps=6, batch_size=4)
      config[name].recipe.optimizer.warmup_steps = 0
      config[name].crop.update(size=(32, 32), long_side=(32, 48))
    elif name.startswith('subdivide'):
      config[name].update(restarts=2, short_side=40, batch_size=3)
  config.segment_cam.update(
    short_side=40, batch_size=2, splits=('val',), scales=(0.5, 1.0)
  )
  if 'retrain' in config.stages:
    config.retrain.recipe.update(num_steps=6, batch_size=4)
    config.retrain.recipe.optimizer.warmup_steps = 0
    config.retrain.crop.size = (32, 32)
    config.segment_retrained.update(
      short_side=40, batch_size=2, splits=('val',)
    )
  config.operation.update(log_every=1, save_every=3, record_ids=True)
  return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Returns the path of a config with 15 images and a random encoder."""
  folder = tmp_path_factory.mktemp('shapes')
  all_stages.write_config(folder)
  block = networks.small_pass().encoder.to_dict()
  net = network.build_network(
    network_options.NetworkOptions({**block, 'width': 4}), {}, 'config.network'
  )
  init = jax.jit(net.init)
  variables = init(jax.random.PRNGKey(0), jnp.zeros((1, 32, 32, 3)))
  load.write_weights_npz(folder / 'encoder.npz', variables)
  path = folder / 'wsss_folder.py'
  path.write_text(
    CONFIG.format(
      encoder=folder / 'encoder.npz',
      records=str(folder / 'records'),
      source=str(folder),
    )
  )
  return path


def run(config, workdir):
  process = all_stages.start(config, workdir)
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)


def test_a_killed_run_equals_an_uninterrupted_one(config, tmp_path):
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  run(config, whole)
  killed = all_stages.start(config, workdir)
  assert runs.signal_when(killed, runs.step_logged(workdir / 'classify', 4))
  run(config, workdir)
  runs.assert_same_runs(workdir, whole, 'classify')
  results = json.loads((whole / 'segment_cam' / 'results.json').read_text())
  assert results['protocol'] == (
    'cam, short side 40; categories matched with classes on val; scales 0.5, 1 '
    'and flips; class of the image predicted'
  )
  values = results['splits']['val']['metrics']
  assert 0 <= values['miou'] <= 1
  # A category for each image, or the background.
  labels = png_format.list_imagenet_s_pngs(whole / 'segment_cam' / 'val')
  assert len(labels) == 3
  for name in labels:
    label = png_format.read_imagenet_s_png(
      whole / 'segment_cam' / 'val' / name, 2
    )
    assert len({*label.ravel().tolist()} - {0}) <= 1


def resume_after_kills(config, workdir, *conditions):
  """Kills a run at each of the conditions, then completes it."""
  for is_due in conditions:
    killed = all_stages.start(config, workdir)
    assert runs.signal_when(killed, is_due), runs.read_log(workdir)
  run(config, workdir)


def with_options(config, options):
  """Returns the config file with options after the colon."""
  return f'{config}:{options}'


def assert_same_label_maps(folder, other):
  """Asserts that two folders have the same label maps; returns their names."""
  names = png_format.list_imagenet_s_pngs(folder)
  assert names and names == png_format.list_imagenet_s_pngs(other)
  for name in names:
    assert (folder / name).read_bytes() == (other / name).read_bytes()
  return names


def test_rounds_of_sc_cam_resume(config, tmp_path):
  """Kills a training of a later round, and the clustering after it."""
  options = with_options(config, 'method=sc_cam,maps=subcategories')
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  run(options, whole)
  resume_after_kills(
    options,
    workdir,
    runs.step_logged(workdir / 'classify1', 4),
    (workdir / 'subdivide2').exists,
  )
  runs.assert_same_runs(workdir, whole, 'classify3')
  for i in (1, 2, 3):
    rounds = [
      subcategories.read_subcategories(folder / f'subdivide{i}')
      for folder in (workdir, whole)
    ]
    assert rounds[0] and rounds[0] == rounds[1]
  assert_same_label_maps(
    workdir / 'segment_cam' / 'val', whole / 'segment_cam' / 'val'
  )


def test_climbing_and_retraining_resume(config, tmp_path):
  """Kills AdvCAM while it segments, and while it labels training images."""
  options = with_options(config, 'method=advcam,classifier=plain,retrain')
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  run(options, whole)
  resume_after_kills(
    options,
    workdir,
    (workdir / 'segment_cam').exists,
    (workdir / 'label_cam').exists,
    runs.step_logged(workdir / 'retrain', 4),
  )
  runs.assert_same_runs(workdir, whole, 'retrain')
  labeled = assert_same_label_maps(
    workdir / 'label_cam' / 'train', whole / 'label_cam' / 'train'
  )
  assert len(labeled) == 12
  for stage in ('segment_cam', 'segment_retrained'):
    assert_same_label_maps(workdir / stage / 'val', whole / stage / 'val')
    results = [
      json.loads((folder / stage / 'results.json').read_text())
      for folder in (workdir, whole)
    ]
    metrics = [each['splits']['val']['metrics'] for each in results]
    assert metrics[0] == metrics[1]
  assert (
    'flips, 2 steps'
    in (
      json.loads((whole / 'segment_cam' / 'results.json').read_text())[
        'protocol'
      ]
    )
  )
