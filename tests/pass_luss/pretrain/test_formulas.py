"""The parts of PASS against slow numpy transcriptions (`reference_pass`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import (
  embedding_ops,
  heads,
  momentum,
  sinkhorn,
  view_geometry,
)
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import d2s, p2p, p2p_variants, pixpro, swav
from segcore.models.layers import norm
from tests.pass_luss import support
from tests.transcriptions import pass_luss as reference

BATCH, SIZE, PROTOTYPES = 6, 5, 7


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def drawn(*shape, seed=0, scale=1.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


def units(*shape, seed=0):
  return reference.normalize(drawn(*shape, seed=seed))


def assert_close(found, expected, rtol=1e-6):
  np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=1e-12)


def numeric_gradient(loss, x, step=1e-6):
  """By central differences."""
  found = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    moved = [x.copy(), x.copy()]
    moved[0][index] += step
    moved[1][index] -= step
    found[index] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
  return found


def assert_gradient(loss, reference_loss, x):
  found = jax.grad(loss)(jnp.asarray(x))
  expected = numeric_gradient(reference_loss, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  assert np.abs(expected).max() > 1e-4


# SwAV.


@pytest.mark.parametrize('iterations', [1, 3, 10])
def test_sinkhorn(iterations):
  scores = units(BATCH, SIZE) @ units(PROTOTYPES, SIZE, seed=1).T
  found = sinkhorn.assign(jnp.asarray(scores), 0.05, iterations)
  assert_close(found, reference.sinkhorn(scores, 0.05, iterations))


def test_sinkhorn_in_float32_of_the_published_size():
  rng = np.random.default_rng(0)
  rows = reference.normalize(rng.normal(size=(400, 128)))
  prototypes = reference.normalize(rng.normal(size=(300, 128)))
  scores = (rows @ prototypes.T).astype(np.float32)
  found = sinkhorn.assign(jnp.asarray(scores), 0.05, 3)
  assert found.dtype == jnp.float32
  expected = reference.sinkhorn(scores.astype(np.float64), 0.05, 3)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sinkhorn_of_extreme_scores_stays_finite():
  scores = np.full((4, 3), -1.0, np.float32)
  scores[0, 0] = 1.0
  found = np.asarray(sinkhorn.assign(jnp.asarray(scores), 0.05, 3))
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)


def test_sinkhorn_without_a_sample_is_that_of_the_others():
  scores = drawn(BATCH, PROTOTYPES, scale=0.3)
  used = np.array([True, False, True, True, False, True])
  found = sinkhorn.assign(jnp.asarray(scores), 0.05, 3, jnp.asarray(used))
  assert_close(found[used], reference.sinkhorn(scores[used], 0.05, 3))
  assert not np.asarray(found)[~used].any()


@pytest.mark.parametrize('active', [True, False])
def test_targets_with_a_queue(active):
  scores = drawn(BATCH, PROTOTYPES, scale=0.3)
  remembered = drawn(9, PROTOTYPES, seed=1, scale=0.3)
  found = swav.targets(
    jnp.asarray(scores),
    jnp.asarray(remembered),
    jnp.asarray(active),
    swav.SwavOptions(),
  )
  joint = np.concatenate([remembered, scores]) if active else scores
  assert_close(found, reference.sinkhorn(joint, 0.05, 3)[-BATCH:])


def scores_of(embeddings, prototypes):
  """[B, V, K] of [B, V, D]."""
  return embedding_ops.similarities(
    jnp.asarray(embeddings), jnp.asarray(prototypes)
  )


@pytest.mark.parametrize('num_views', [2, 5])
@pytest.mark.parametrize('queued', [False, True])
def test_swav_loss(num_views, queued):
  prototypes = units(PROTOTYPES, SIZE, seed=1).T
  embeddings = units(BATCH, num_views, SIZE)
  queue = units(2, 8, SIZE, seed=3) if queued else None
  remembered = reference.scores_of_queue(queue, prototypes) if queued else None
  expected, targets = reference.swav_loss(
    [embeddings[:, v] @ prototypes for v in range(num_views)],
    remembered,
    0.1,
    0.05,
    3,
  )
  scores = scores_of(embeddings, prototypes)
  found = jnp.stack(
    [
      swav.targets(
        scores[:, i],
        jnp.zeros((0, PROTOTYPES))
        if remembered is None
        else jnp.asarray(remembered[i]),
        jnp.asarray(queued),
        swav.SwavOptions(),
      )
      for i in (0, 1)
    ],
    axis=1,
  )
  assert_close(jnp.moveaxis(found, 1, 0), targets)
  assert_close(swav.swapped_loss(scores, found, 0.1), expected)

  # By the embeddings, and by the prototypes, while targets stay.
  def loss(x, p):
    return swav.swapped_loss(embedding_ops.similarities(x, p), found, 0.1)

  weights = reference.crop_weights(num_views)

  def reference_loss(x, p):
    total = 0.0
    for i in (0, 1):
      for v in range(num_views):
        logits = x[:, v] @ p / 0.1
        logits = logits - logits.max(axis=1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= weights[i][v] * np.mean((targets[i] * log_probs).sum(axis=1))
    return total

  assert_close(reference_loss(embeddings, prototypes), expected)
  assert_gradient(
    lambda x: loss(x, jnp.asarray(prototypes)),
    lambda x: reference_loss(x, prototypes),
    embeddings,
  )
  assert_gradient(
    lambda p: loss(jnp.asarray(embeddings), p),
    lambda p: reference_loss(embeddings, p),
    prototypes,
  )


def test_no_gradient_flows_through_targets():
  scores = jnp.asarray(drawn(BATCH, PROTOTYPES, scale=0.3))
  remembered = jnp.asarray(drawn(3, PROTOTYPES, scale=0.3))

  def total(s, r):
    found = swav.targets(s, r, jnp.asarray(True), swav.SwavOptions())
    return jnp.sum(found * jnp.arange(PROTOTYPES))

  for gradient in jax.grad(total, (0, 1))(scores, remembered):
    assert not np.asarray(gradient).any()


def test_queue_is_a_list_with_the_newest_first():
  queue = queue_lib.empty(queue_lib.QueueSpec(5, 2))
  expected = np.zeros((2, 5, 2))
  for step in range(4):
    new = drawn(2, 2, 2, seed=step)
    queue = queue_lib.push(queue, jnp.asarray(new))
    expected = reference.queue_push(expected, np.moveaxis(new, 1, 0))
    assert_close(queue.rows, expected)
    assert queue.count == min(5, 2 * (step + 1))


def test_unit_prototypes():
  prototypes = drawn(SIZE, PROTOTYPES)
  assert_close(
    embedding_ops.l2_normalize(jnp.asarray(prototypes), axis=0),
    reference.unit_prototypes(prototypes),
  )
  gradient = jax.grad(lambda x: embedding_ops.l2_normalize(x).sum())(
    jnp.zeros(3)
  )
  assert np.isfinite(gradient).all()


def test_usage_and_spread_tell_collapse():
  even = jnp.full((4, 8), 1 / 8)
  one = jnp.zeros((4, 8)).at[:, 2].set(1.0)
  np.testing.assert_allclose(prototypes_lib.usage(even), 1.0)
  np.testing.assert_allclose(prototypes_lib.usage(one), 0.0, atol=1e-9)
  apart = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
  np.testing.assert_allclose(swav.embedding_deviation(apart), 1.0)
  np.testing.assert_allclose(
    swav.embedding_deviation(jnp.ones((3, 1))), 0.0, atol=1e-9
  )


# D2S.


@pytest.mark.parametrize('view', ['other', 'same'])
def test_deep_to_shallow(view):
  scores = drawn(BATCH, 2, PROTOTYPES, scale=0.3)
  targets = reference.sinkhorn(drawn(2 * BATCH, PROTOTYPES, seed=4, scale=0.2))
  targets = targets.reshape(2, BATCH, PROTOTYPES)

  def loss(x):
    return d2s.loss(x, jnp.asarray(np.moveaxis(targets, 0, 1)), 0.1, view)

  def reference_loss(x):
    return reference.d2s_loss(
      np.moveaxis(x, 1, 0), targets, 0.1, same_view=view == 'same'
    )

  assert_close(loss(jnp.asarray(scores)), reference_loss(scores))
  assert_gradient(loss, reference_loss, scores)


# P2P.


def boxes_of(count, seed=0, mirrored=True):
  """Boxes (top, left, height, width) of two views; the first pair is apart."""
  rng = np.random.default_rng(seed)
  boxes = np.concatenate(
    [rng.uniform(0, 30, (count, 2, 2)), rng.uniform(25, 60, (count, 2, 2))],
    axis=-1,
  )
  boxes[0] = [[0, 0, 10, 10], [5, 30, 10, 10]]
  flips = rng.random((count, 2)) < 0.5 * mirrored
  return boxes, flips


def official(box):
  """(left, top, width, height)."""
  top, left, height, width = box
  return left, top, width, height


def test_overlap_grids():
  boxes, flips = boxes_of(8)
  rows, columns, overlap = view_geometry.overlap_grids(
    jnp.asarray(boxes), jnp.asarray(flips), 7
  )
  assert not overlap[0]
  assert np.asarray(overlap).sum() >= 4
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    grids = reference.overlap_grids(*map(official, box), *flip, 7)
    for view in (0, 1):
      found = np.stack(
        np.broadcast_arrays(columns[i, view][None], rows[i, view][:, None]), -1
      )
      assert_close(found, grids[view])


def test_sampling():
  boxes, flips = boxes_of(5, seed=1)
  features = drawn(5, 6, 4, 3)
  rows, columns, _ = view_geometry.overlap_grids(
    jnp.asarray(boxes), jnp.asarray(flips), 7
  )
  found = view_geometry.sample(jnp.asarray(features), rows[:, 0], columns[:, 0])
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    grid, _ = reference.overlap_grids(*map(official, box), *flip, 7)
    assert_close(found[i], reference.grid_sample(features[i], grid))
  assert not np.asarray(found)[0].any()


def test_points_of_identical_views_on_the_border_are_half_nothing():
  boxes = jnp.asarray([[[3.0, 4.0, 20.0, 20.0]] * 2])
  rows, columns, _ = view_geometry.overlap_grids(
    boxes, jnp.zeros((1, 2), bool), 7
  )
  found = view_geometry.sample(
    jnp.ones((1, 7, 7, 1)), rows[:, 0], columns[:, 0]
  )
  expected = np.outer([0.5, 1, 1, 1, 1, 1, 0.5], [0.5, 1, 1, 1, 1, 1, 0.5])
  assert_close(found[0, ..., 0], expected)


def test_regression_of_pixels():
  boxes, flips = boxes_of(4, seed=2)
  maps = drawn(4, 2, 5, 5, SIZE)
  matrix = drawn(SIZE, SIZE, seed=5)
  expected = reference.p2p_loss(
    maps[:, 0],
    maps[:, 1],
    *(np.array([official(b) for b in boxes[:, view]]) for view in (0, 1)),
    flips[:, 0],
    flips[:, 1],
    lambda z: z @ matrix,
    7,
  )
  rows, columns, _ = view_geometry.overlap_grids(
    jnp.asarray(boxes), jnp.asarray(flips), 7
  )

  def points_of(x):
    return jnp.stack(
      [
        view_geometry.sample(x[:, v], rows[:, v], columns[:, v]) for v in (0, 1)
      ],
      axis=1,
    )

  def loss(x, targets):
    return p2p.regression_loss(points_of(x) @ matrix, targets)

  z = points_of(jnp.asarray(maps))
  assert_close(loss(jnp.asarray(maps), z), expected)

  # Targets have no gradient: they are held where the difference is taken.
  def reference_loss(x):
    at = np.asarray(points_of(jnp.asarray(x)))
    p = at @ matrix
    held = np.asarray(z)
    return reference.p2p_of(p[:, 0], p[:, 1], held[:, 0], held[:, 1])

  found = jax.grad(
    lambda x: p2p.regression_loss(points_of(x) @ matrix, points_of(x))
  )(jnp.asarray(maps))
  held = jax.grad(lambda x: loss(x, z))(jnp.asarray(maps))
  assert_close(found, held)
  some = [(1, 0, 2, 2, 1), (2, 1, 1, 3, 0), (3, 0, 4, 4, 4)]
  for index in some:
    moved = [maps.copy(), maps.copy()]
    moved[0][index] += 1e-6
    moved[1][index] -= 1e-6
    slope = (reference_loss(moved[0]) - reference_loss(moved[1])) / 2e-6
    np.testing.assert_allclose(found[index], slope, rtol=1e-5, atol=1e-9)


def test_points_without_an_overlap_have_no_gradient():
  gradient = jax.grad(lambda z: p2p.regression_loss(z, jnp.zeros_like(z)))(
    jnp.zeros((1, 2, 3, 3, 4))
  )
  assert not np.asarray(gradient).any()


def test_contrast_of_pixels():
  points = drawn(3, 2, 3, 3, SIZE)
  overlap = np.array([True, False, True])

  def loss(x):
    return p2p_variants.contrastive_loss(x, jnp.asarray(overlap), 0.2)

  def reference_loss(x):
    a, b = x[:, 0], x[:, 1]
    # Both sides of each pair move here, so nothing is held.
    return reference.contrastive_p2p_loss(a, b, a, b, overlap, 0.2)

  assert_close(loss(jnp.asarray(points)), reference_loss(points))
  assert_gradient(loss, reference_loss, points)


def test_clusters_of_pixels():
  points = drawn(4, 2, 3, 3, SIZE)
  prototypes = units(PROTOTYPES, SIZE, seed=1).T
  overlap = np.array([True, False, True, True])
  found = p2p_variants.clustering_loss(
    jnp.asarray(points),
    jnp.asarray(prototypes),
    jnp.asarray(overlap),
    swav.SwavOptions(),
  )
  logits = reference.normalize(points) @ prototypes
  expected = reference.clustering_p2p_loss(
    logits[:, 0], logits[:, 1], overlap, 0.1, 0.05, 3
  )
  assert_close(found, expected)
  gradient = jax.grad(p2p_variants.clustering_loss, (0, 1))(
    jnp.asarray(points),
    jnp.asarray(prototypes),
    jnp.asarray(overlap),
    swav.SwavOptions(),
  )
  assert np.asarray(gradient[0])[0].any()
  assert not np.asarray(gradient[0])[1].any()
  assert not np.asarray(gradient[1]).any()


# PixelPro.


def test_propagation():
  pixels = drawn(2, 3, 4, SIZE)
  kernel, bias = drawn(SIZE, SIZE, seed=1), drawn(SIZE, seed=2)
  found = pixpro.propagate(
    jnp.asarray(pixels), jnp.asarray(pixels @ kernel + bias), 2.0
  )
  for i in (0, 1):
    expected = reference.ppm(pixels[i], kernel, bias, 2, 0)
    assert_close(found[i], expected.reshape(3, 4, SIZE))


def test_positive_pairs():
  boxes, flips = boxes_of(6, seed=3)
  boxes = np.rint(boxes)
  sizes = np.array([[100, 80]] * 3 + [[95, 120]] * 3)
  found = view_geometry.nearby_cells(
    jnp.asarray(boxes), jnp.asarray(flips), jnp.asarray(sizes), (5, 5), 0.7
  )
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    expected = reference.pixpro_masks(
      *map(official, box), *flip, 5, tuple(sizes[i]), 0.7
    )
    np.testing.assert_array_equal(found[i], expected)
  assert 20 < np.asarray(found).sum() < 300
  assert not np.asarray(found)[0].any()


def test_pixpro_loss():
  y, k = units(3, 2, 2, 2, SIZE), units(3, 2, 2, 2, SIZE, seed=1)
  masks = np.random.default_rng(2).random((3, 4, 4)) < 0.4
  masks[1] = False

  def loss(x):
    flat = x.reshape(3, 2, 4, SIZE)
    keys = jnp.asarray(k).reshape(3, 2, 4, SIZE)
    positive = jnp.asarray(masks)
    return pixpro.loss(flat[:, 0], keys[:, 1], positive) + pixpro.loss(
      flat[:, 1], keys[:, 0], jnp.swapaxes(positive, 1, 2)
    )

  expected = reference.pixpro_loss(y[:, 0], y[:, 1], k[:, 0], k[:, 1], masks)
  assert_close(loss(jnp.asarray(y)), expected)


@pytest.mark.parametrize('step', [0, 1, 37, 100])
def test_momentum(step):
  found = momentum.cosine_decay(jnp.asarray(step), 100, 0.99)
  assert_close(found, reference.momentum(step, 100, 0.99))


# Heads.


def with_random_values(variables, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5 + 0.3), variables
  )


def bn(params, name):
  return {
    f'gamma{name}': np.asarray(params[f'bn{name}']['scale']),
    f'beta{name}': np.asarray(params[f'bn{name}']['bias']),
  }


def test_projection_of_images():
  head = heads.Projection(6, 4, jnp.float64)
  x = drawn(BATCH, SIZE)
  params = with_random_values(
    head.init(jax.random.PRNGKey(0), jnp.asarray(x))['params']
  )
  stats = head.init(jax.random.PRNGKey(0), jnp.asarray(x))['batch_stats']
  found, _ = head.apply(
    {'params': params, 'batch_stats': stats},
    jnp.asarray(x),
    True,
    mutable=['batch_stats'],
  )
  assert set(params) == {'dense1', 'bn1', 'dense2'}
  weights = support.projection_weights(params)
  # The last norm and the result are float32 by intention.
  assert_close(found, reference.image_projection(x, weights), rtol=1e-4)


def test_layers_of_pixels_and_predictor():
  x = drawn(3, 2, 4, SIZE)
  head = heads.PixelProjection(6, 3, jnp.float64)
  variables = head.init(jax.random.PRNGKey(0), jnp.asarray(x))
  params = with_random_values(variables['params'])
  assert not any('bias' in params[f'conv{i}'] for i in (1, 2, 3))
  found, _ = head.apply(
    {**variables, 'params': params}, jnp.asarray(x), True, mutable=True
  )
  weights = {
    f'w{i}': np.asarray(params[f'conv{i}']['kernel'])[0, 0] for i in (1, 2, 3)
  } | {**bn(params, 1), **bn(params, 2)}
  assert_close(found, reference.pixel_mlp(x, weights))

  head = heads.Predictor(jnp.float64)
  variables = head.init(jax.random.PRNGKey(0), jnp.asarray(x))
  params = with_random_values(variables['params'])
  found, _ = head.apply(
    {**variables, 'params': params}, jnp.asarray(x), True, mutable=True
  )
  weights = {
    'w1': params['conv1']['kernel'][0, 0],
    'gamma': params['bn1']['scale'],
    'beta': params['bn1']['bias'],
    'w2': params['conv2']['kernel'][0, 0],
    'b2': params['conv2']['bias'],
  }
  weights = jax.tree.map(np.asarray, weights)
  assert_close(found, reference.predictor(x, weights))


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_attention(shared, train):
  maps = drawn(2, 2, 3, SIZE)
  head = heads.Attention(shared=shared, dtype=jnp.float64)
  variables = head.init(jax.random.PRNGKey(0), jnp.asarray(maps))
  assert not np.asarray(variables['params']['threshold']).any()
  params = with_random_values(variables['params'])
  stats = jax.tree.map(
    lambda x: jnp.abs(x) + 0.5, with_random_values(variables['batch_stats'], 1)
  )
  found, _ = head.apply(
    {'params': params, 'batch_stats': stats},
    jnp.asarray(maps),
    train,
    mutable=['batch_stats'],
  )
  weights = {
    'w1': np.asarray(params['conv1']['kernel'])[0, 0],
    'b1': np.asarray(params['conv1']['bias']),
    'w2': np.asarray(params['conv2']['kernel'])[0, 0],
    'b2': np.asarray(params['conv2']['bias']),
    'theta': np.asarray(params['threshold']),
    **bn(params, 1),
    **bn(params, 2),
  }
  for i in (1, 2):
    weights[f'mean{i}'] = np.asarray(stats[f'bn{i}']['mean'])
    weights[f'variance{i}'] = np.asarray(stats[f'bn{i}']['var'])
  enlarged = reference.normalize(reference.bilinear(maps, (8, 12)))
  expected = reference.attention(enlarged, weights, train)
  assert found.shape == (2, 8, 12, 1 if shared else SIZE)
  # Norms of the last layer, and enlarged maps, are float32 by intention.
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_norms_without_scale_and_shift_have_no_parameters():
  plain = norm.batch_norm(
    train=True, dtype=jnp.float32, name='bn', affine=False
  )
  variables = plain.init(jax.random.PRNGKey(0), jnp.ones((4, 3)))
  assert set(variables) == {'batch_stats'}
