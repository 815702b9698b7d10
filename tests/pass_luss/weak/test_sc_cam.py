"""SC-CAM against slow numpy transcriptions (spec comparators §4.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.weak import (
  classifier_options,
  image_classifier,
  image_tags,
  multi_scale,
  subcategories,
)
from segcore.train import update as update_lib
from tests.pass_luss.weak import tiny
from tests.support import fake_data, meshes
from tests.transcriptions import wsss

OPTIONS = classifier_options.ScCamOptions(num_subcategories=2)
NUM_TAGS = 1 + 3 * tiny.CLASSES


@pytest.fixture(scope='module')
def stepped():
  """Returns a method, its batch, and state, scalars and maps of a step."""
  trained, batch = tiny.make_method(OPTIONS), tiny.draw_batch(0, NUM_TAGS)
  state = tiny.init_state(trained, batch)

  @jax.jit
  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    rows, network = jax.random.split(rng)
    keys = update_lib.ForwardKeys(
      update_lib.row_prng_keys(rows, tiny.BATCH), network
    )
    images = trained.augmented_images(batch, keys)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    maps = trained.feature_maps(variables, images).deepest.array
    kept = image_classifier.sample_kept_channels(keys.rows, 32, 0.5)
    return trained.train_step(state, batch)[1], maps, kept

  return trained, batch, state, *jax.device_get(step(state, batch))


def test_the_loss_of_classes_and_sub_categories(stepped):
  _, batch, state, scalars, maps, kept = stepped
  w, w_sub = (
    np.asarray(state.params['heads'][name]['kernel'], np.float64).T
    for name in ('classes', 'subcategories')
  )
  expected = [
    wsss.sc_cam_loss(
      np.moveaxis(features, -1, 0) * channels[:, None, None] / 0.5,
      w,
      w_sub,
      tags[1:4] * 1.0,
      tags[4:] * 1.0,
    )
    for features, channels, tags in zip(
      maps.astype(np.float64), kept, batch['tags'], strict=True
    )
  ]
  np.testing.assert_allclose(scalars['loss'], np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(
    scalars['loss_classes'] + scalars['loss_subcategories'],
    scalars['loss'],
    rtol=1e-6,
  )


@pytest.mark.parametrize('evidence', ['classes', 'subcategories'])
def test_maps_of_two_scales(stepped, evidence):
  """Sub-categories of a class share a maximum."""
  trained, batch, state, *_ = stepped
  options = classifier_options.ScCamOptions(
    num_subcategories=2, evidence=evidence
  )
  trained = tiny.make_method(options)
  cams = multi_scale.MultiScaleCams(trained, (0.5, 1.0))

  @jax.jit
  def compute(state, images):
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    features = []
    for side in (16, 32):
      resized = jax.image.resize(
        images, (2, side, side, 3), 'linear', antialias=False
      )
      for each in (resized, resized[:, :, ::-1]):
        features.append(trained.feature_maps(variables, each).deepest.array)
    return (
      cams.predicted(state, images),
      features,
      trained.predict(state, images),
    )

  images = np.asarray(batch['image'][:2], np.float32) / 127.5 - 1
  result, features, scores = jax.device_get(compute(state, images))
  kernel = np.asarray(state.params['heads'][evidence]['kernel'], np.float64)
  for b in range(2):
    best = int(scores[b].argmax())
    np.testing.assert_array_equal(result[b, ..., 0], 1 + best)
    count = 2 if evidence == 'subcategories' else 1
    total = 0.0
    for i, each in enumerate(features):
      z = np.moveaxis(each[b].astype(np.float64) @ kernel, -1, 0)
      z = wsss.resize(wsss.relu(z[best * count : (best + 1) * count]), (32, 32))
      total = total + (z[..., ::-1] if i % 2 else z)
    np.testing.assert_allclose(
      result[b, ..., 1], wsss.shared_maximum(total), rtol=1e-4, atol=1e-6
    )


def test_sub_categories_are_the_best_of_several_k_means():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(14, 3)) + 4 * rng.integers(0, 3, (14, 1))
  tags = [(1,), (2,), (1, 2)] * 4 + [(1,), (3,)]
  assigned = subcategories.assign_subcategories(rows, tags, 3, 4, 300, seed=5)
  assert {i for i, _ in assigned} == set(range(14))
  assert {pair for pair in assigned if pair[0] == 2} == {(2, 1), (2, 2)}
  # A class of one image has one sub-category.
  assert assigned[13, 3] == 0
  for category in (1, 2):
    members = [i for i, classes in enumerate(tags) if category in classes]
    initial = subcategories.sample_centroid_sets(
      np.random.default_rng((5, category)), rows[members], 3, 4
    )
    fitted = [wsss.lloyd(rows[members], each, 300) for each in initial]
    results = [wsss.squared_error(rows[members], each) for each in fitted]
    best, _ = min(results, key=lambda result: result[1])
    np.testing.assert_array_equal(
      [assigned[i, category] for i in members], best
    )


def test_centroids_are_different_rows():
  rows = np.repeat([[0.0], [1.0], [5.0]], 4, axis=0)
  for centroids in subcategories.sample_centroid_sets(
    np.random.default_rng(0), rows, 5, 6
  ):
    assert sorted(centroids.ravel().tolist()) == [0.0, 1.0, 5.0]


def test_tags_of_clusters_and_sub_categories(tmp_path):
  examples = [
    fake_data.make_record(i, np.zeros((8, 8, 3)), np.zeros((8, 8), int))
    for i in range(3)
  ]
  split = fake_data.make_split(examples, num_classes=9)
  clusters = image_tags.with_cluster_tags(split, np.array([2, 0, 7]))
  assert clusters.classes[:2] == ('other', 'category 1')
  assert len(clusters.classes) == len(split.classes)
  assert [x['tags'] for x in clusters.records] == [(3,), (1,), (8,)]
  assert 'label' not in clusters.records[0]
  assert image_tags.read_single_tags(clusters) == dict(
    zip(split.ids(), (3, 1, 8), strict=True)
  )
  subcategories.write_subcategories(
    tmp_path, {(0, 3): 1, (1, 1): 0, (2, 8): 1, (2, 1): 0}
  )
  assigned = subcategories.read_subcategories(tmp_path)
  divided = image_tags.with_subcategory_tags(clusters, assigned, 2)
  # After 'other' and 8 classes come two sub-categories of each.
  assert len(divided.classes) == 9 + 16
  assert divided.classes[9 + 5] == 'category 3 2'
  assert [sorted(x['tags']) for x in divided.records] == [
    [3, 9 + 5],
    [1, 9 + 0],
    [1, 8, 9 + 0, 9 + 15],
  ]


@pytest.mark.slow
def test_eight_devices_are_one_in_float64(monkeypatch):
  with jax.enable_x64():
    trained = tiny.make_method(OPTIONS, dtype=jnp.float64)
    batches = [tiny.draw_batch(i, NUM_TAGS) for i in range(2)]
    state = tiny.init_state(trained, batches[0], jnp.float64)
    one, eight = meshes.one_and_eight(trained, state, batches, 1, monkeypatch)
  meshes.assert_close(one, eight)
