"""Whole training steps of pretraining: networks, state, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import (
  embedding_ops,
  objective_choice,
  objective_options,
)
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import pixpro, swav
from segcore.cost import communication
from segcore.distributed import sharding
from segcore.train import checkpoint, optimizers, train_state
from tests.pass_luss import support
from tests.pass_luss.pretrain.training import (
  BATCH,
  CLUSTERS,
  PIXPRO,
  SIZES,
  SWAV,
  batch_spec,
  forward_views,
  init_state,
  make_batch,
  make_method,
)
from tests.support import meshes
from tests.transcriptions import pass_pixpro, pass_pretraining, pass_updates


@pytest.fixture(scope='module')
def trained():
  """Returns the states before and after each of 4 steps, scalars, batches."""
  method = make_method()
  batches = [make_batch(i) for i in range(4)]
  states, logged = [init_state(method, batches[0])], []
  step = jax.jit(method.train_step)
  for batch in batches:
    state, scalars = step(states[-1], batch)
    states.append(state)
    logged.append(scalars)
  return jax.device_get((states, logged)), batches


def test_prototypes_are_frozen_at_first_and_stay_normalized(trained):
  (states, _), _ = trained

  def prototypes(state):
    return state.params['heads']['clusters']['prototypes']

  first = pass_pretraining.normalize_prototypes(prototypes(states[0]))
  # Frozen in steps 0 and 1, but normalized.
  for state in states[1:3]:
    np.testing.assert_allclose(prototypes(state), first, rtol=1e-5)
  assert np.abs(prototypes(states[3]) - first).max() > 1e-5
  momenta = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(states[2].opt_state)
    if 'prototypes' in jax.tree_util.keystr(path)
  ]
  assert len(momenta) == 1
  assert not momenta[0].any()


@pytest.mark.slow
def test_frozen_prototypes_gather_no_momentum_by_decay():
  """LARS decays weights even where the gradient is 0."""
  lars = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=1.0,
    adaptation='lars',
    weight_decay=1e-2,
    weight_decay_mode='l2',
  )
  method = make_method(tx=lars)
  batch = make_batch()
  state = init_state(method, batch)
  before = pass_pretraining.normalize_prototypes(
    np.asarray(state.params['heads']['clusters']['prototypes'])
  )
  step = jax.jit(method.train_step)
  for _ in range(2):
    state, _ = step(state, batch)
  np.testing.assert_allclose(
    state.params['heads']['clusters']['prototypes'], before, rtol=1e-5
  )
  slots = jax.tree_util.tree_leaves_with_path(state.opt_state)
  kept = [
    leaf for path, leaf in slots if 'prototypes' in jax.tree_util.keystr(path)
  ]
  assert len(kept) == 1 and not np.asarray(kept[0]).any()


def test_queue_fills_from_its_step_on_newest_first(trained):
  (states, logged), _ = trained
  assert [int(state.queue.count) for state in states] == [0, 0, 8, 16, 16]
  np.testing.assert_array_equal(
    states[3].queue.rows[:, BATCH:], states[2].queue.rows[:, :BATCH]
  )
  np.testing.assert_allclose(
    np.linalg.norm(states[4].queue.rows, axis=-1), 1.0, rtol=1e-5
  )
  # The fill before the step is logged.
  assert [float(s['queue_fill']) for s in logged] == [0, 0, 0.5, 1]


def test_losses_of_a_step_equal_the_transcription(trained):
  """From the outputs of the network, with the queue in use."""
  (states, logged), batches = trained
  method = make_method()
  state, batch = states[3], batches[3]

  @jax.jit
  def forward(state, batch):
    params = prototypes_lib.l2_normalize_prototypes(state.params)
    views = method.views(batch, jax.random.fold_in(state.rng, state.step))
    outputs, _ = method.forward(params, state.batch_stats, views, batch)
    return outputs, params

  outputs, params = forward(state, batch)
  outputs = jax.tree.map(lambda x: np.asarray(x, np.float64), outputs)
  prototypes = np.asarray(params['heads']['clusters']['prototypes'], np.float64)
  queue = np.asarray(state.queue.rows, np.float64)
  swav_loss, targets = pass_pretraining.swav_loss(
    [outputs['swav']['embeddings'][:, v] @ prototypes for v in range(4)],
    pass_pretraining.scores_of_queue(queue, prototypes),
    0.1,
    0.05,
    3,
  )
  shallow = np.moveaxis(outputs['d2s']['3'], 1, 0)
  d2s = pass_pretraining.d2s_loss(shallow, targets, 0.1)
  p, z = outputs['p2p']['predicted'], outputs['p2p']['points']
  p2p = pass_pretraining.p2p_cosine_loss(p[:, 0], p[:, 1], z[:, 0], z[:, 1])
  total = pass_pretraining.total_loss(swav_loss, [d2s], p2p)
  expected = {
    'loss': total,
    'loss_swav': swav_loss,
    'loss_shallow3': d2s,
    'loss_p2p': p2p,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(logged[3][name], value, rtol=2e-4)


def test_views_of_all_sizes_pass_the_head_together():
  """Batch statistics of the projection are over all views of both sizes."""
  method = make_method()
  state, views, outputs, _ = forward_views(method, make_batch())

  def pooled(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    return embedding_ops.average_pool_embeddings(maps.deepest.array)

  @jax.jit
  def apply_pooled(variables, images):
    return method.segmenter.apply(
      variables, images, method=pooled, mutable=['batch_stats']
    )

  rows = []
  for name in ('large', 'small'):
    flat = views[name].reshape(-1, *views[name].shape[2:])
    each, _ = apply_pooled(train_state.train_state_variables(state), flat)
    rows.append(np.asarray(each, np.float64).reshape(BATCH, 2, -1))
  together = np.concatenate(rows, axis=1).reshape(4 * BATCH, -1)
  projection = state.params['heads']['clusters']['projection']
  weights = support.projection_weights(projection)
  np.testing.assert_allclose(
    np.asarray(outputs['swav']['embeddings']).reshape(4 * BATCH, -1),
    pass_pretraining.image_projection(together, weights),
    atol=2e-3,
  )


def test_pixpro_alone_encodes_one_view_after_the_other():
  """As two forward passes of the official model: outputs and statistics."""
  alone = objective_choice.ObjectiveOptions(
    clusters=None,
    alignment=None,
    shallow=objective_options.D2SOptions(()),
    pixpro=objective_options.PixproOptions(hidden=8, size=6),
  )
  method = make_method(alone)
  state, views, outputs, stats = forward_views(method, make_batch(small=False))

  def propagated(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    pixels = net.heads.call_method(
      'pixpro', 'project', maps.deepest.array, True
    )
    values = net.heads.call_method('pixpro', 'apply_transform', pixels)
    return pixpro.propagate_pixels(pixels, values, 2.0)

  @jax.jit
  def one_view(batch_stats, images):
    return method.segmenter.apply(
      {'params': state.params, 'batch_stats': batch_stats},
      images,
      method=propagated,
      mutable=['batch_stats'],
    )

  expected_stats = state.batch_stats
  for view in (0, 1):
    expected, changed = one_view(expected_stats, views['large'][:, view])
    expected_stats = {**expected_stats, **changed['batch_stats']}
    np.testing.assert_allclose(
      outputs['pixpro']['propagated'][:, view], expected, atol=2e-5
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    stats,
    expected_stats,
  )
  # With SwAV beside it all views of a size are one batch.
  assert not make_method(PIXPRO)._encodes_by_view


@pytest.mark.parametrize('fsdp', meshes.SPLIT)
def test_eight_devices_are_one_in_float64(fsdp, monkeypatch):
  """With all parts: a queue in use, LARC, SwAV and PixPro together."""
  with jax.enable_x64():
    method = make_method(PIXPRO, jnp.float64)
    batch = make_batch()
    state = init_state(method, batch)
    state = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
    )
    rows = pass_pretraining.normalize(
      np.random.default_rng(0).normal(size=(2, 16, 6))
    )
    state = jax.device_get(
      state.replace(
        step=jnp.asarray(5, jnp.int32),
        queue=queue_lib.Queue(jnp.asarray(rows), jnp.asarray(16, jnp.int32)),
      )
    )
    batches = [make_batch(0), make_batch(1)]
    one, eight = meshes.one_and_eight(
      *(method, state, batches, fsdp, monkeypatch)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
    one,
    eight,
  )


@pytest.mark.slow
def test_collectives_of_a_step():
  method = make_method()
  batch = make_batch()
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(
    lambda rng: method.init(rng, batch_spec(batch), None), jax.random.PRNGKey(0)
  )
  whole = sharding.replicated_sharding(mesh)
  shapes = jax.tree.map(lambda x: x.update(sharding=whole), shapes)
  rows = sharding.batch_sharding(mesh)
  batches = jax.tree.map(lambda x: x.update(sharding=rows), batch_spec(batch))
  step = jax.jit(method.train_step, out_shardings=whole)
  compiled = step.lower(shapes, batches).compile()
  collectives = communication.list_collectives(compiled)
  kinds = {
    kind: [c for c in collectives if c.kind == kind] for kind, *_ in collectives
  }
  assert set(kinds) == {'all-reduce', 'all-gather'}
  # New embeddings of both large views, for the replicated queue.
  assert sum(c.size for c in kinds['all-gather']) == 4 * 2 * BATCH * 6


@pytest.mark.slow
def test_momentum_encoder_is_an_average_with_statistics_of_its_own():
  method = make_method(PIXPRO, num_steps=10)
  batch = make_batch(small=False)
  state = init_state(method, batch)
  initial = state.momentum_params['encoder']['conv_root']['kernel']
  step = jax.jit(method.train_step)
  first, scalars = step(state, batch)
  assert np.isfinite(scalars['loss_pixpro'])
  # Averaged before the forward pass: at step 0 it is still the copy.
  np.testing.assert_array_equal(
    first.momentum_params['encoder']['conv_root']['kernel'], initial
  )
  second, _ = step(first, batch)
  decay = pass_updates.momentum(1, 10)
  np.testing.assert_allclose(
    second.momentum_params['encoder']['conv_root']['kernel'],
    pass_updates.ema(
      np.asarray(initial),
      np.asarray(first.params['encoder']['conv_root']['kernel']),
      decay,
    ),
    rtol=1e-5,
    atol=1e-7,
  )
  assert set(second.momentum_params['heads']['pixpro']) == {'projector'}
  own, other = (
    stats['encoder']['bn_root']['mean']
    for stats in (second.momentum_batch_stats, second.batch_stats)
  )
  assert np.abs(own).max() > 0
  assert np.abs(own - other).max() > 0


@pytest.mark.parametrize('combine', ['mean', 'sum'])
def test_totals(combine):
  def total(options, **terms):
    options = dataclasses.replace(options, combine=combine)
    return make_method(options).total(
      {
        name: {
          f'loss_{i}': jnp.asarray(value) for i, value in enumerate(values)
        }
        for name, values in terms.items()
      }
    )

  kind = {'mean': 'code', 'sum': 'paper'}[combine]
  np.testing.assert_allclose(
    total(SWAV, swav=[3.0], d2s=[1.0], p2p=[-0.5]),
    pass_pretraining.total_loss(3.0, [1.0], -0.5, combine=kind),
  )
  np.testing.assert_allclose(
    total(PIXPRO, swav=[3.0], d2s=[1.0, 5.0], p2p=[-0.5], pixpro=[-2.0]),
    pass_pixpro.pixpro_total_loss(-2.0, 3.0, [1.0, 5.0], -0.5, combine=kind),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    dataclasses.replace(
      SWAV,
      alignment=objective_options.P2POptions('clustering', 4),
      shallow=objective_options.D2SOptions((3, 2), targets='own', view='same'),
    ),
    dataclasses.replace(
      SWAV,
      alignment=objective_options.P2POptions('contrastive', 4, project=False),
    ),
    objective_choice.ObjectiveOptions(
      clusters=None,
      alignment=objective_options.P2POptions(grid=4, project=False),
      shallow=objective_options.D2SOptions(()),
      pixpro=objective_options.PixproOptions(hidden=8, size=6),
    ),
  ],
  ids=['clustering-own-same', 'contrastive-unprojected', 'pixpro-unprojected'],
)
def test_ablations_update_all_parameters(options):
  """Every parameter has an effect on the loss."""
  method = make_method(options)
  batch = make_batch(small=options.clusters is not None)
  state = init_state(method, batch)
  state = state.replace(step=jnp.asarray(4, jnp.int32))
  after, scalars = jax.jit(method.train_step)(state, batch)
  assert all(np.isfinite(value) for value in scalars.values())
  for path, (old, new) in (
    (jax.tree_util.keystr(path), pair)
    for path, pair in jax.tree_util.tree_leaves_with_path(
      jax.tree.map(
        lambda a, b: (np.asarray(a), np.asarray(b)), state.params, after.params
      ),
      is_leaf=lambda x: isinstance(x, tuple),
    )
  ):
    assert (old != new).any(), path


def test_pixpro_loss_of_a_step_equals_the_transcription():
  method = make_method(PIXPRO)
  batch = make_batch()
  state = init_state(method, batch)

  def project(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    return net.heads.call_method('pixpro', 'project', maps.deepest.array, True)

  @jax.jit
  def step_and_outputs(state, batch):
    # Only the scalars of the step: its gradient is not compiled.
    _, scalars = method.train_step(state, batch)
    params = prototypes_lib.l2_normalize_prototypes(state.params)
    views = method.views(batch, jax.random.fold_in(state.rng, state.step))
    outputs, _ = method.forward(params, state.batch_stats, views, batch)
    # At step 0 the momentum encoder equals the encoder.
    large = views['large']
    keys, _ = method.segmenter.apply(
      train_state.train_state_variables(state),
      large.reshape(-1, *large.shape[2:]),
      method=project,
      mutable=['batch_stats'],
    )
    return scalars['loss_pixpro'], outputs['pixpro']['propagated'], keys

  loss, propagated, keys = step_and_outputs(state, batch)
  propagated = np.asarray(propagated, np.float64)
  keys = pass_pretraining.normalize(np.asarray(keys)).reshape(propagated.shape)
  masks = []
  for box, flip in zip(batch['box_large'], batch['flip_large'], strict=True):
    (top, left, height, width), (top2, left2, height2, width2) = np.asarray(box)
    masks.append(
      pass_pixpro.pixpro_masks(
        (left, top, width, height),
        (left2, top2, width2, height2),
        *np.asarray(flip),
        propagated.shape[2],
        (64, 64),
        0.7,
      )
    )
  expected = pass_pixpro.pixpro_loss(
    propagated[:, 0],
    propagated[:, 1],
    keys[:, 0],
    keys[:, 1],
    np.array(masks),
  )
  np.testing.assert_allclose(loss, expected, rtol=2e-4)


@pytest.mark.parametrize('absent', [None, ()])
def test_state_without_queue_or_momentum_encoder_is_restored(absent, tmp_path):
  """Checkpoints written before hold () where None is now."""
  options = dataclasses.replace(SWAV, clusters=objective_options.SwavOptions())
  method, batch = make_method(options), batch_spec(make_batch())
  shapes = jax.eval_shape(
    lambda rng: method.init(rng, batch, None), jax.random.PRNGKey(0)
  )
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jax.device_put(rng.integers(0, 9, x.shape).astype(x.dtype)),
    shapes,
  )
  assert (state.queue, state.momentum_params) == (None, None)
  saved = state.replace(
    queue=absent, momentum_params=absent, momentum_batch_stats=absent
  )
  with checkpoint.Checkpoints(tmp_path / 'represent') as checkpoints:
    checkpoints.save(0, saved)
    checkpoints.wait()
    step, restored = checkpoints.restore(batch_spec(state))
  assert step == 0
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(
  ('objective', 'need'),
  [
    (swav.Swav(CLUSTERS, SIZES), 'needs_queue'),
    (pixpro.Pixpro(objective_options.PixproOptions()), 'needs_momentum'),
  ],
)
def test_a_second_queue_or_momentum_encoder_is_refused(objective, need):
  message = f'expected at most one with {need}, got {objective.name} and'
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(make_method(), objectives=(objective, objective))
