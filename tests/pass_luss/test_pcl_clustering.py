"""The clusterings between the epochs of PCL, from images to prototypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import loader
from pass_luss.pretrain.objectives import pcl
from pass_luss.stages import pcl_clustering
from runtime import errors
from segcore.distributed import sharding
from segcore.train import workspace as workspace_lib
from tests.pass_luss import support
from tests.pass_luss.pretrain import training
from tests.support import fake_data
from tests.transcriptions import luss_comparators, pass_pretraining

COUNT = 40  # images of training.COMPARED['pcl']


def test_prototypes_of_the_momentum_encoder(tmp_path):
  images = support.random_images(COUNT, (32, 32))
  split = fake_data.make_split(
    [fake_data.make_record(i, image) for i, image in enumerate(images)]
  )
  method = training.make_tiny_method('pcl', jnp.float32)
  (objective,) = method.objectives
  options = dataclasses.replace(objective.options, short_side=32)
  objective = pcl.Pcl(options)
  state = training.init_state(
    method, training.make_batch(small=False, large=16)
  )
  online = jax.tree.map(jnp.zeros_like, state.params)
  state = state.replace(params=online, step=jnp.asarray(6))
  clustering = pcl_clustering.EpochClustering(
    objective,
    method.segmenter,
    split,
    8,
    sharding.make_mesh(devices=jax.devices()[:1]),
    loader.ReadOptions(1, 1),
    workspace_lib.Workspace(tmp_path, {}, 'digest'),
  )
  new = clustering(state)
  # By hand: projected features of the momentum encoder, in evaluation mode.
  outputs = jax.jit(
    lambda params, stats, x: method.segmenter.apply(
      {'params': params, 'batch_stats': stats}, x, heads=('pcl',)
    )['pcl']
  )(
    state.momentum_params,
    state.momentum_batch_stats,
    support.to_symmetric(images),
  )
  x = pass_pretraining.normalize(outputs)
  assert bool(new.memory['pcl'].is_clustered)
  for k, each in zip((12, 16), new.memory['pcl'].clusterings, strict=True):
    assert each.centroids.shape == (k, 6)
    assignments = np.asarray(each.assignments)
    # Lloyd's algorithm has converged: centroids are means.
    means = np.stack([x[assignments == c].mean(axis=0) for c in range(k)])
    distances = np.linalg.norm(x[:, None] - means, axis=-1)
    np.testing.assert_array_equal(assignments, distances.argmin(axis=1))
    np.testing.assert_allclose(
      each.centroids, pass_pretraining.normalize(means), atol=1e-4
    )
    expected = luss_comparators.pcl_densities(x, means, assignments)
    np.testing.assert_allclose(each.densities, expected, rtol=1e-3)
  # The ring is kept, and no file is left.
  np.testing.assert_array_equal(
    new.memory['pcl'].ring.rows, state.memory['pcl'].ring.rows
  )
  assert not list(tmp_path.iterdir())


def test_another_number_of_images_is_refused():
  objectives = [pcl.Pcl(training.COMPARED['pcl'])]
  path = 'config.represent'
  pcl_clustering.check_num_images(path, objectives, COUNT)
  with pytest.raises(errors.UserError, match='num_images: expected 7, .* 40'):
    pcl_clustering.check_num_images(path, objectives, 7)
