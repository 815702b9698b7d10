"""Whole steps of MDC and PiCIE against numpy transcriptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import loader, transforms
from pass_luss.dense import (
  base_image,
  dense_options,
  epoch_clusters,
  image_batches,
  pixel_clustering,
)
from segcore.distributed import sharding
from segcore.experiment import data
from segcore.train import workspace as workspace_lib
from tests.pass_luss import support
from tests.pass_luss.dense import tiny
from tests.support import fake_data, meshes
from tests.transcriptions import luss_dense as reference


def parts_of_step(trained, state, batch):
  """Computes features in training, features and labels of the epoch's network,
  and the step itself.
  """
  computed = trained.views(batch, state.view_key)
  learned, stats = [], state.batch_stats
  for view in computed:
    variables = {'params': state.params, 'batch_stats': stats}
    each, stats = trained.features(variables, view, train=True)
    learned.append(each)
  kept = [trained.features(state.labeler, v, train=False)[0] for v in computed]
  labels = trained.label_views(
    state.labeler,
    {name: x.centroids for name, x in state.clusterings.items()},
    computed,
  )
  after, scalars = trained.train_step(state, batch)
  return learned, kept, labels, stats, after, scalars


@pytest.fixture(scope='module', params=['mdc', 'picie_h'])
def stepped(request):
  with jax.enable_x64():
    trained = tiny.make_pixel_method(request.param, jnp.float64)
    batch = tiny.draw_pixel_batch()
    state = tiny.init_pixel_state(trained, batch, jnp.float64)
    compute = jax.jit(functools.partial(parts_of_step, trained))
    parts = jax.device_get(compute(state, batch))
  return request.param, state, parts


def rows(x):
  return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


def test_labels_are_those_of_the_network_of_the_epoch(stepped):
  _, state, (_, kept, labels, *_) = stepped
  for name, each in labels.items():
    view = int('view2' in name)
    expected = reference.nearest(
      rows(kept[view])[::7], state.clusterings[name].centroids
    )
    np.testing.assert_array_equal(each.ravel()[::7], expected)


def test_the_loss(stepped):
  name, state, (learned, _, labels, *_, scalars) = stepped
  features = [rows(x) for x in learned]
  of = {
    key: (x.centroids, labels[key].ravel(), x.weights)
    for key, x in state.clusterings.items()
  }
  if name == 'mdc':
    head = state.params['heads']['clusters']
    _, y, w = of['view1']
    expected = reference.mdc_loss(
      features[0], head['kernel'], head['bias'], y, w
    )
  else:

    def picie(suffix):
      pairs = zip(of[f'view1{suffix}'], of[f'view2{suffix}'], strict=True)
      (c1, c2), (y1, y2), (w1, w2) = pairs
      return reference.picie_loss(*features, c1, c2, y1, y2, w1, w2, mse=True)

    few, many = reference.over_weights(tiny.CLUSTERS, 6)
    expected = few * picie('') + many * picie('_over')
  np.testing.assert_allclose(scalars['loss'], expected, rtol=1e-9)


def test_what_a_step_changes(stepped):
  name, state, (learned, _, labels, stats, after, _) = stepped
  for field in ('labeler', 'clusterings', 'view_key'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(after, field),
      getattr(state, field),
    )
  # Statistics of view 1, then of view 2.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
    after.batch_stats,
    stats,
  )
  for part in ('encoder', 'decoder'):
    before, new = (jax.tree.leaves(s.params[part]) for s in (state, after))
    assert any((a != b).any() for a, b in zip(before, new, strict=True))
  old, new = (s.params['heads']['clusters'] for s in (state, after))
  if name != 'mdc':
    jax.tree.map(np.testing.assert_array_equal, new, old)
    return
  # The first step of its own Adam, whatever the other optimizer is.
  gradient = reference.differences(
    lambda kernel: reference.mdc_loss(
      rows(learned[0]),
      kernel,
      old['bias'],
      labels['view1'].ravel(),
      state.clusterings['view1'].weights,
    ),
    old['kernel'],
  )
  np.testing.assert_allclose(
    new['kernel'] - old['kernel'],
    -1e-4 * gradient / (np.abs(gradient) + 1e-8),
    rtol=1e-3,
  )
  assert int(after.classifier_opt_state[0].count) == 1


class Epoch:
  """The start of epoch 2 of ten images.

  Attributes:
    trained: method.
    images: the images.
    crop: their crop.
    state: state before.
    begin: the clustering.
  """

  def __init__(self, name, folder, num_devices=1, batch_size=4):
    self.images = support.random_images(10, (tiny.BASE, tiny.BASE + 6))
    split = fake_data.make_split(
      [fake_data.make_record(i, image) for i, image in enumerate(self.images)]
    )
    self.crop = base_image.BaseImage(tiny.BASE)
    flips = transforms.RandomFlip(kinds=())
    stream = data.ImageStream(split, self.crop, flips, ('index',))
    self.trained = tiny.make_pixel_method(name)
    mesh = meshes.mesh_of(num_devices)
    state = jax.device_put(
      tiny.init_pixel_state(self.trained, tiny.draw_pixel_batch()),
      sharding.replicated_sharding(mesh),
    )
    self.state = state.replace(step=state.step + 3)
    images = image_batches.ImageBatches(
      stream.open(),
      batch_size,
      mesh,
      loader.ReadOptions(1, 1),
      workspace_lib.Workspace(folder, {}, ''),
    )
    options = dense_options.KmeansOptions(batch_size, initial_batches=1)
    self.begin = epoch_clusters.EpochClusters(
      self.trained, images, options, 3, 0
    )

  def labels(self, state):
    """Returns the labels of all images by the network of the epoch."""
    batch = {
      'image': np.stack(
        [self.crop({'image': x})['image'] for x in self.images]
      ),
      'index': np.arange(10, dtype=np.int32),
    }

    @jax.jit
    def label(state, batch):
      return self.trained.label_views(
        state.labeler,
        {n: x.centroids for n, x in state.clusterings.items()},
        self.trained.views(batch, state.view_key),
      )

    return jax.device_get(label(state, batch))


@pytest.mark.parametrize('name', ['mdc', 'picie_h'])
def test_an_epoch_begins_from_the_state_alone(tmp_path, name):
  """Weights are shares of the labels of all images, the last batch included."""
  epoch = Epoch(name, tmp_path)
  new, again = epoch.begin(epoch.state), epoch.begin(epoch.state)
  jax.tree.map(np.testing.assert_array_equal, new, again)
  np.testing.assert_array_equal(
    new.view_key, pixel_clustering.epoch_key(epoch.state.rng, 1)
  )
  stats = [jax.tree.leaves(s.batch_stats) for s in (epoch.state, new)]
  assert any((a != b).any() for a, b in zip(*stats, strict=True))
  jax.tree.map(
    np.testing.assert_array_equal, new.labeler['batch_stats'], new.batch_stats
  )
  for key, labels in epoch.labels(new).items():
    weights = np.asarray(new.clusterings[key].weights)
    counts = np.bincount(labels.ravel(), minlength=len(weights))
    np.testing.assert_allclose(weights, counts / labels.size, atol=2e-3)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
  head = jax.device_get(new.params['heads']['clusters'])
  if name == 'mdc':
    assert 0.005 < head['kernel'].std() < 0.02
    assert not head['bias'].any()
    assert int(new.classifier_opt_state[0].count) == 0
  else:
    np.testing.assert_array_equal(
      head['kernel'].T, new.clusterings['view1'].centroids
    )
  # No leaf occurs twice: a step may donate the state.
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(new) if x.size]
  assert len({*pointers}) == len(pointers)


@pytest.mark.slow
def test_an_epoch_begins_alike_on_eight_devices(tmp_path):
  one, eight = (
    jax.device_get(epoch.begin(epoch.state))
    for epoch in (Epoch('picie_h', tmp_path, n, 8) for n in (1, 8))
  )
  for name, clustering in one.clusterings.items():
    other = eight.clusterings[name]
    np.testing.assert_allclose(
      clustering.centroids, other.centroids, atol=1e-3, err_msg=name
    )
    np.testing.assert_allclose(clustering.weights, other.weights, atol=3e-3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    one.batch_stats,
    eight.batch_stats,
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mdc', 'picie_h'])
def test_eight_devices_are_one_in_float64(name, monkeypatch):
  with jax.enable_x64():
    trained = tiny.make_pixel_method(name, jnp.float64)
    batches = [tiny.draw_pixel_batch(i) for i in range(2)]
    state = tiny.init_pixel_state(trained, batches[0], jnp.float64)
    one, eight = meshes.one_and_eight(trained, state, batches, 1, monkeypatch)
    kinds = meshes.collectives_of_step(trained, state, batches[0])
  meshes.assert_close(one, eight, atol=1e-8)
  assert {*kinds} == {'all-reduce'}
