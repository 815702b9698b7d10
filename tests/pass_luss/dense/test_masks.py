"""MaskContrast: views, whole steps, and clusters of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import views
from pass_luss.dense import mask_clusters, salient_views
from pass_luss.pseudo_labels import kmeans
from runtime import errors
from tests.pass_luss.dense import tiny
from tests.pass_luss.pretrain import training
from tests.support import fake_data, meshes
from tests.transcriptions import luss_dense as reference
from tests.transcriptions import wsss

SHARES = (0.01, 0.99)


def parts_of_step(trained, state, batch):
  """Computes the cells of both views, and the step itself."""
  images = trained.views(batch, jax.random.PRNGKey(0))['large']

  def cells(params, stats, view):
    outputs, _ = trained.segmenter.apply(
      {'params': params, 'batch_stats': stats},
      images[:, view],
      heads=('masks',),
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.PRNGKey(0)},
    )
    return outputs['masks']

  average = jax.tree.map(
    lambda k, q: 0.9 * k + 0.1 * q,
    state.momentum_params,
    {name: state.params[name] for name in ('encoder', 'heads')},
  )
  return (
    cells(state.params, state.batch_stats, 0),
    cells(average, state.momentum_batch_stats, 1),
    average,
    *trained.train_step(state, batch),
  )


@pytest.fixture(scope='module')
def stepped():
  with jax.enable_x64():
    trained, batch = tiny.make_mask_method(jnp.float64), tiny.draw_mask_batch()
    state = jax.device_get(training.init_state(trained, batch))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state
    )
    state = state.replace(
      momentum_params=jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape), state.momentum_params
      )
    )
    compute = jax.jit(lambda s, b: parts_of_step(trained, s, b))
    parts = jax.device_get(compute(state, batch))
  return state, batch, parts


def upsampled(cells):
  maps = np.stack([reference.resize(x, (16, 16)) for x in cells])
  return maps[..., :-1], maps[..., -1]


def test_the_loss_and_the_ring(stepped):
  state, batch, (online, other, average, after, scalars) = stepped
  masks = batch['label_large'] > 0
  prototypes = reference.prototypes(upsampled(other)[0], masks[:, 1])
  embeddings, saliency = upsampled(online)
  ring = state.memory['masks']
  for name, expected in (
    (
      'contrast',
      reference.mask_loss(embeddings, masks[:, 0], prototypes, ring.rows),
    ),
    ('saliency', reference.saliency_loss(saliency, masks[:, 0])),
  ):
    np.testing.assert_allclose(scalars[f'loss_{name}'], expected, rtol=1e-9)
  np.testing.assert_allclose(
    scalars['loss'], scalars['loss_contrast'] + scalars['loss_saliency']
  )
  new = after.memory['masks']
  assert (int(ring.position), int(new.position)) == (0, 8)
  np.testing.assert_allclose(new.rows[:8], prototypes, rtol=1e-9)
  np.testing.assert_array_equal(new.rows[8:], ring.rows[8:])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
    after.momentum_params,
    average,
  )


@pytest.mark.slow
def test_eight_devices_are_one_in_float64(monkeypatch):
  with jax.enable_x64():
    trained = tiny.make_mask_method(jnp.float64)
    batches = [tiny.draw_mask_batch(i) for i in range(2)]
    state = jax.tree.map(
      lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
      jax.device_get(training.init_state(trained, batches[0])),
    )
    one, eight = meshes.one_and_eight(trained, state, batches, 1, monkeypatch)
    kinds = meshes.collectives_of_step(trained, state, batches[0])
  meshes.assert_close(one, eight, atol=1e-8)
  # Prototypes of 8 images, for the logits and for the ring; not in the loop
  # over rows of pixels.
  assert {*kinds} <= {'all-reduce', 'all-gather'}
  sources = [c.source for each in kinds.values() for c in each]
  assert not [source for source in sources if 'while' in source]
  assert sum(c.size for c in kinds['all-gather']) <= 8 * 8 * tiny.BATCH * 6


def test_small_parts_of_a_mask_are_removed():
  saliency = np.zeros((20, 20))
  saliency[2:6, 2:6] = 0.9
  saliency[10, 10] = saliency[11, 11] = saliency[10, 12] = 0.8  # 8 neighbors
  saliency[15, 3:6] = 0.7
  saliency[18, 5:10] = 0.5  # Not above the threshold.
  mask = salient_views.salient_mask(saliency, 0.5, 0.0075)
  expected = saliency > 0.6
  np.testing.assert_array_equal(mask, expected)
  mask = salient_views.salient_mask(saliency, 0.5, 0.01)
  expected[6:] = False
  np.testing.assert_array_equal(mask, expected)
  # Of what remains, 16 of 400 pixels are too few.
  assert not salient_views.salient_mask(saliency, 0.5, 0.041).any()


def test_shares_are_strictly_inside():
  labels = np.zeros((2, 10, 10), np.int16)
  labels[:, 0, :2] = 1
  assert salient_views.shows_enough(labels, SHARES)
  labels[1, 0, 1] = 0
  assert not salient_views.shows_enough(labels, SHARES)
  labels[1] = 1
  assert not salient_views.shows_enough(labels, SHARES)


def make_crop(masks):
  """Builds crops of images whose salient pixels are white."""
  examples = [
    fake_data.make_record(i, 255 * np.stack([m] * 3, -1), m)
    for i, m in enumerate(masks)
  ]
  split = fake_data.make_split(examples, num_classes=2)
  group = views.ViewGroup('large', 2, (16, 16), (0.2, 1.0))
  crop = views.MultiCrop((group,), with_labels=True)
  return salient_views.SalientCrop(crop, split, SHARES)


def example_of(mask):
  return {
    'image': np.stack([255 * mask] * 3, -1).astype(np.uint8),
    'label': mask.astype(np.int16),
    'id': np.bytes_('first'),
    'size': np.array(mask.shape, np.int32),
  }


def test_masks_are_cropped_with_their_images():
  mask = np.zeros((32, 40), int)
  mask[8:24, 8:30] = 1
  crop, rng = make_crop([mask]), np.random.default_rng(0)
  for _ in range(5):
    example = crop(example_of(mask), rng)
    views_, labels = example['views_large'], example['label_large']
    assert labels.dtype == np.int16 and labels.shape == (2, 16, 16)
    assert ((views_[..., 0] > 127) != labels).mean() < 0.06
    assert salient_views.shows_enough(labels, SHARES)
  assert {'label', 'image'}.isdisjoint(example)
  spec = crop.crop.spec(3)
  assert spec['label_large'].shape == (3, 2, 16, 16)


def test_another_image_is_taken(monkeypatch):
  good, empty = np.zeros((2, 32, 32), int)
  good[8:24, 8:24] = 1
  crop = make_crop([empty, good])
  example = crop(example_of(empty), np.random.default_rng(0))
  assert example['id'] != b'first'
  assert example['label_large'].any()
  monkeypatch.setattr(salient_views, '_MAX_IMAGES', 5)
  with pytest.raises(errors.UserError, match='salient share between 0.01 and'):
    make_crop([empty])(example_of(empty), np.random.default_rng(0))


def test_descriptors_and_their_whitening():
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(3, 4, 5, 6))
  saliency = 2 * rng.normal(size=(3, 4, 5))
  with jax.enable_x64():
    actual = jax.jit(mask_clusters.mask_descriptors)(embeddings, saliency)
  np.testing.assert_allclose(
    actual, reference.descriptors(embeddings, saliency), rtol=1e-9
  )
  rows = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 6)) + 3
  whitening = mask_clusters.fit_whitening(rows, 5)
  whitened = (rows - whitening.mean) @ whitening.matrix
  assert whitened.shape == (50, 4)  # All that vary.
  np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=1e-9)
  equal = mask_clusters.fit_whitening(np.zeros((5, 3)), 2)
  assert equal.matrix.shape == (3, 1) and np.isfinite(equal.matrix).all()
  with jax.enable_x64():
    actual = jax.jit(mask_clusters.whiten)(rows, *whitening)
  np.testing.assert_allclose(actual, whitened, atol=1e-9)


def test_mini_batches_of_rows():
  rng = np.random.default_rng(0)
  rows = 4 * rng.normal(size=(3, 4))[rng.integers(0, 3, 70)]
  rows = rows + rng.normal(size=rows.shape)
  fitted = mask_clusters.RowKmeans(3, 20, 5, passes=2).fit(rows)
  draws = np.random.default_rng(5)
  first = rows[draws.permutation(70)][:60]
  chosen = kmeans.sample_initial_centroids(jax.random.PRNGKey(5), 1, 60, 3)
  centroids = wsss.lloyd(first, first[np.asarray(chosen)[0]], 20)
  counts = np.bincount(wsss.squared_error(first, centroids)[0], minlength=3)
  batches = []
  for _ in range(2):
    order = draws.permutation(70)
    batches += [rows[order[i : i + 20]] for i in (0, 20, 40)]
  expected, _ = reference.mini_batch_kmeans(
    batches, centroids, counts.astype(float)
  )
  np.testing.assert_allclose(fitted, expected, rtol=1e-4, atol=1e-4)
