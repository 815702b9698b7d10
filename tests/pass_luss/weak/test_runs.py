"""SEAM on clusters of a small folder, from the command line."""

import json

import jax
import jax.numpy as jnp
import pytest

from configs import networks
from pass_luss.benchmark import png_format
from segcore.models import network
from segcore.weights import load
from tests.pass_luss import all_stages
from tests.support import runs

pytestmark = pytest.mark.slow

CONFIG = """
from configs import pass_wsss, shared

def get_config(argument=None):
  config = pass_wsss.get_config(
    'method=seam,labels=clusters,encoder={encoder},tiny'
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
  config.classify.recipe.update(num_steps=6, batch_size=4)
  config.classify.recipe.optimizer.warmup_steps = 0
  config.classify.crop.update(size=(32, 32), long_side=(32, 48))
  config.segment_cam.update(
    short_side=40, batch_size=2, splits=('val',), scales=(0.5, 1.0)
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
    network.NetworkOptions({**block, 'width': 4}), {}, 'config.network'
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
