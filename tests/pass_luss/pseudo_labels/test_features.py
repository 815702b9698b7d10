"""Features of images and cells, and their extraction from whole splits."""

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pseudo_labels import features
from segcore.distributed import sharding
from segcore.eval import short_side
from segcore.train import train_state
from segcore.train import workspace as workspace_lib
from tests.pass_luss import support
from tests.support import fake_data
from tests.transcriptions import pass_labels, pass_pretraining


def test_features_of_each_kind():
  net, state = support.build_attention_network()
  images = support.random_images()

  def compute(kind):
    function = features.clustering_feature_function(net, kind)
    return function(state, support.to_symmetric(images))

  deep = support.deepest_features(net, state, images)
  expected = pass_labels.cluster_features(
    deep, support.attention_weights(state)
  )
  np.testing.assert_allclose(compute('attended'), expected, atol=2e-5)
  np.testing.assert_allclose(
    compute('image'),
    pass_pretraining.normalize(pass_pretraining.gap(deep)),
    atol=2e-5,
  )
  np.testing.assert_allclose(
    compute('pixel'), pass_pretraining.normalize(deep), atol=2e-5
  )


def test_extraction_resumes_block_by_block(folder, monkeypatch):
  monkeypatch.setattr(features, 'BLOCK', 2)
  split = fake_data.coordinate_split(5)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  calls = []

  def mean_colors(state, images):
    jax.debug.callback(lambda x: calls.append(1), images[0, 0, 0, 0])
    return jnp.mean(images, axis=(1, 2))

  state = train_state.inference_train_state({'params': {}}, mesh)
  workspace = workspace_lib.Workspace(folder, {}, 'digest')

  def extract():
    predictor = short_side.FeatureMaps(mean_colors, 40)
    rows = features.extract_clustering_features(
      split, predictor, state, 2, mesh, support.READING, workspace
    )
    jax.effects_barrier()
    return rows

  first = extract()
  assert first.shape == (5, 3) and len(calls) == 3
  # Blue grows with the index of the image: rows are in the order of the split.
  assert np.all(np.diff(first[:, 2]) > 0)
  (folder / 'features' / '000000002.npy').unlink()
  np.testing.assert_array_equal(extract(), first)
  assert len(calls) == 4
  features.delete_feature_files(workspace)
  assert not (folder / 'features').exists()
