"""Whole steps of representation learning: networks, queue, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import embedding_ops, heads, view_colors
from pass_luss.pretrain import method as method_lib
from pass_luss.pretrain import options as options_lib
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import d2s as d2s_lib
from pass_luss.pretrain.objectives import p2p as p2p_lib
from pass_luss.pretrain.objectives import pixpro, swav
from segcore.cost import communication
from segcore.distributed import sharding
from segcore.models import segmenter
from segcore.models.encoders import resnet
from segcore.ops import color_augment
from segcore.train import optimizers, train_state
from segcore.train import update as update_lib
from tests.pass_luss import support
from tests.support import meshes
from tests.transcriptions import pass_luss as reference

BATCH, LARGE, SMALL = 8, 32, 24
WIDTHS = heads.HeadSizes(hidden=8, embedding=6, prototypes=5)
CLUSTERS = swav.SwavOptions(queue=16, queue_from_step=1, frozen_steps=2)
SWAV = options_lib.ObjectiveOptions(
  clusters=CLUSTERS, alignment=p2p_lib.P2POptions(grid=4)
)
PIXPRO = options_lib.ObjectiveOptions(
  clusters=CLUSTERS,
  alignment=p2p_lib.P2POptions(grid=4),
  shallow=d2s_lib.D2SOptions(stages=(3, 2)),
  pixpro=pixpro.PixproOptions(hidden=8, size=6),
)
LARC = optimizers.OptimizerOptions(
  name='sgd',
  learning_rate=0.6,
  final_learning_rate=6e-4,
  adaptation='larc',
  weight_decay=1e-6,
  weight_decay_mode='l2',
)
COLORS = view_colors.ViewColors(
  large=(
    color_augment.ColorOptions(gray=0.5),
    color_augment.ColorOptions(solarize=0.5),
  ),
  small=color_augment.ColorOptions(gray=0.5),
  red_deviation=0.228,
)


def method_of(options=SWAV, dtype=jnp.float32, num_steps=20, tx=LARC):
  objectives = options_lib.build(options, WIDTHS)
  net = support.build_network(options_lib.build_heads(objectives, dtype), dtype)
  update = update_lib.Update(('encoder', 'heads'), tx, num_steps)
  return method_lib.Pretrain(net, update, objectives, COLORS, options.combine)


def batch_of(seed=0, small=True):
  rng = np.random.default_rng(seed)

  def group(name, count, size):
    low = rng.uniform(0, 20, (BATCH, count, 2))
    return {
      f'views_{name}': rng.integers(
        0, 256, (BATCH, count, size, size, 3), np.uint8
      ),
      f'box_{name}': np.concatenate(
        [low, rng.uniform(15, 40, low.shape)], -1
      ).astype(np.float32),
      f'flip_{name}': rng.random((BATCH, count)) < 0.5,
    }

  found = {
    'size': np.full((BATCH, 2), 64, np.int32),
    'mask': np.ones(BATCH, bool),
    **group('large', 2, LARGE),
  }
  if small:
    found |= group('small', 2, SMALL)
  return jax.tree.map(jnp.asarray, found)


def spec(batch):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


@pytest.fixture(scope='module')
def begun():
  """The state before step 0, and after each of 4 steps; what was logged."""
  trained = method_of()
  batches = [batch_of(i) for i in range(4)]
  states, logged = [trained_state(trained, batches[0])], []
  step = jax.jit(trained.train_step)
  for batch in batches:
    state, scalars = step(states[-1], batch)
    states.append(state)
    logged.append(scalars)
  return jax.device_get((states, logged)), batches


def published(depth):
  """The network of S50, or of S300 and S919."""
  kind, blocks = {
    18: ('basic', (2, 2, 2, 2)),
    50: ('bottleneck', (3, 4, 6, 3)),
  }[depth]
  stages = (3,)
  widths = (512, 128, 500) if depth == 18 else (2048, 128, 3000)
  encoder = resnet.DilatedResNet(
    blocks=blocks, unit=kind, stem='plain', output_stride=32, zero_init=False
  )
  return encoder, stages, heads.HeadSizes(*widths)


@pytest.mark.parametrize(
  ('depth', 'stages', 'backbone', 'total'),
  [
    (18, (3,), 11_176_512, 12_919_488),
    (50, (3,), 23_508_032, 47_809_216),
    (50, (3, 2), 23_508_032, 55_425_856),
  ],
)
def test_published_parameter_counts(depth, stages, backbone, total):
  encoder, _, widths = published(depth)
  options = options_lib.ObjectiveOptions(shallow=d2s_lib.D2SOptions(stages))
  net = segmenter.Segmenter(
    encoder,
    None,
    options_lib.build_heads(options_lib.build(options, widths), jnp.float32),
  )
  shapes = jax.eval_shape(
    net.init, jax.random.PRNGKey(0), jnp.zeros((1, 224, 224, 3))
  )['params']

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  assert count(shapes['encoder']) == backbone
  assert count(shapes) == total


@pytest.mark.parametrize(
  ('size', 'expected'), [(512, 527_872), (2048, 8_402_944)]
)
def test_published_parameters_of_attention(size, expected):
  shapes = jax.eval_shape(
    heads.Attention().init, jax.random.PRNGKey(0), jnp.zeros((1, 7, 7, size))
  )['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_first_values_are_torchs():
  """Dense layers and biases: uniform, within 1/sqrt(fan_in)."""
  head = heads.Projection(64, 32)
  params = head.init(jax.random.PRNGKey(0), jnp.zeros((2, 400)))['params']
  for name, fan_in in (('dense1', 400), ('dense2', 64)):
    for leaf in params[name].values():
      assert np.abs(leaf).max() <= 1 / np.sqrt(fan_in)
    kernel = np.asarray(params[name]['kernel'])
    # A uniform distribution's deviation is its bound over the root of 3.
    np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(3 * fan_in), rtol=0.05)


def test_prototypes_wait_and_stay_of_unit_length(begun):
  (states, _), _ = begun

  def prototypes(state):
    return state.params['heads']['clusters']['prototypes']

  first = reference.unit_prototypes(prototypes(states[0]))
  # Frozen in steps 0 and 1, but renormalized.
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


def test_frozen_prototypes_gather_no_momentum_by_decay():
  """LARS decays before it looks at the gradient."""
  lars = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=1.0,
    adaptation='lars',
    weight_decay=1e-2,
    weight_decay_mode='l2',
  )
  trained = method_of(tx=lars)
  batch = batch_of()
  state = trained_state(trained, batch)
  before = reference.unit_prototypes(
    np.asarray(state.params['heads']['clusters']['prototypes'])
  )
  step = jax.jit(trained.train_step)
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


def test_queue_fills_from_its_step_on_and_newest_stand_first(begun):
  (states, logged), _ = begun
  assert [int(state.queue.count) for state in states] == [0, 0, 8, 16, 16]
  np.testing.assert_array_equal(
    states[3].queue.rows[:, BATCH:], states[2].queue.rows[:, :BATCH]
  )
  np.testing.assert_allclose(
    np.linalg.norm(states[4].queue.rows, axis=-1), 1.0, rtol=1e-5
  )
  # What is logged was true before the step.
  assert [float(s['queue_fill']) for s in logged] == [0, 0, 0.5, 1]


def test_a_step_is_what_the_transcription_says(begun):
  """Loss, with the queue in use, from the outputs of the network."""
  (states, logged), batches = begun
  trained = method_of()
  state, batch = jax.tree.map(jnp.asarray, states[3]), batches[3]
  params = prototypes_lib.normalize(state.params)
  views = trained.views(batch, jax.random.fold_in(state.rng, state.step))
  found, _ = jax.jit(trained.forward)(params, state.batch_stats, views, batch)
  found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
  prototypes = np.asarray(params['heads']['clusters']['prototypes'], np.float64)
  queue = np.asarray(state.queue.rows, np.float64)
  swav_loss, targets = reference.swav_loss(
    [found['swav']['embeddings'][:, v] @ prototypes for v in range(4)],
    reference.scores_of_queue(queue, prototypes),
    0.1,
    0.05,
    3,
  )
  shallow = np.moveaxis(found['d2s']['3'], 1, 0)
  d2s = reference.d2s_loss(shallow, targets, 0.1)
  p, z = found['p2p']['predicted'], found['p2p']['points']
  p2p = reference.p2p_of(p[:, 0], p[:, 1], z[:, 0], z[:, 1])
  total = reference.total_loss(swav_loss, [d2s], p2p)
  expected = {
    'loss': total,
    'loss_swav': swav_loss,
    'loss_shallow3': d2s,
    'loss_p2p': p2p,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(logged[3][name], value, rtol=2e-4)


def test_views_go_through_heads_together():
  """Statistics of the projection are over all views of both sizes."""
  trained = method_of()
  batch = batch_of()
  state = trained_state(trained, batch)
  views = trained.views(batch, jax.random.PRNGKey(1))
  found, _ = jax.jit(trained.forward)(
    state.params, state.batch_stats, views, batch
  )

  def pooled(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    return embedding_ops.average_pool(maps.deepest.array)

  rows = []
  for name in ('large', 'small'):
    flat = views[name].reshape(-1, *views[name].shape[2:])
    each, _ = trained.segmenter.apply(
      train_state.variables(state), flat, method=pooled, mutable=['batch_stats']
    )
    rows.append(np.asarray(each, np.float64).reshape(BATCH, 2, -1))
  together = np.concatenate(rows, axis=1).reshape(4 * BATCH, -1)
  projection = state.params['heads']['clusters']['projection']
  np.testing.assert_allclose(
    np.asarray(found['swav']['embeddings']).reshape(4 * BATCH, -1),
    reference.image_projection(
      together, support.projection_weights(projection)
    ),
    atol=2e-3,
  )


def trained_state(trained, batch):
  # Compiled without optimizing, which takes longer than to run it once.
  init = jax.jit(
    lambda rng: trained.init(rng, spec(batch), None),
    compiler_options={'xla_backend_optimization_level': 0},
  )
  return init(jax.random.PRNGKey(0))


@pytest.mark.parametrize('fsdp', meshes.SPLIT)
def test_eight_devices_are_one_in_float64(fsdp, monkeypatch):
  """With all there is: a queue in use, LARC, SwAV and PixelPro together."""
  with jax.enable_x64():
    trained = method_of(PIXPRO, jnp.float64)
    batch = batch_of()
    state = trained_state(trained, batch)
    state = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
    )
    rows = reference.normalize(np.random.default_rng(0).normal(size=(2, 16, 6)))
    state = jax.device_get(
      state.replace(
        step=jnp.asarray(5, jnp.int32),
        queue=queue_lib.Queue(jnp.asarray(rows), jnp.asarray(16, jnp.int32)),
      )
    )
    batches = [batch_of(0), batch_of(1)]
    one, eight = meshes.one_and_eight(
      *(trained, state, batches, fsdp, monkeypatch)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
    one,
    eight,
  )


def test_what_devices_of_a_step_exchange():
  trained = method_of()
  batch = batch_of()
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(
    lambda rng: trained.init(rng, spec(batch), None), jax.random.PRNGKey(0)
  )
  whole = sharding.replicated(mesh)
  shapes = jax.tree.map(lambda x: x.update(sharding=whole), shapes)
  rows = sharding.batch_sharding(mesh)
  batches = jax.tree.map(lambda x: x.update(sharding=rows), spec(batch))
  step = jax.jit(trained.train_step, out_shardings=whole)
  compiled = step.lower(shapes, batches).compile()
  found = communication.list_collectives(compiled)
  kinds = {kind: [c for c in found if c.kind == kind] for kind, *_ in found}
  assert set(kinds) == {'all-reduce', 'all-gather'}
  # The new embeddings of both large views, to every device's queue.
  assert sum(c.size for c in kinds['all-gather']) == 4 * 2 * BATCH * 6


def test_momentum_encoder_follows():
  trained = method_of(PIXPRO, num_steps=10)
  batch = batch_of(small=False)
  state = trained_state(trained, batch)
  slow = state.momentum_params['encoder']['conv_root']['kernel']
  step = jax.jit(trained.train_step)
  first, scalars = step(state, batch)
  assert np.isfinite(scalars['loss_pixpro'])
  # It moves before it looks: at step 0 it is still the copy.
  np.testing.assert_array_equal(
    first.momentum_params['encoder']['conv_root']['kernel'], slow
  )
  second, _ = step(first, batch)
  decay = reference.momentum(1, 10)
  np.testing.assert_allclose(
    second.momentum_params['encoder']['conv_root']['kernel'],
    reference.ema(
      np.asarray(slow),
      np.asarray(first.params['encoder']['conv_root']['kernel']),
      decay,
    ),
    rtol=1e-5,
    atol=1e-7,
  )
  # Its statistics are its own.
  assert set(second.momentum_params['heads']['pixpro']) == {'projector'}
  name = ('encoder', 'bn_root', 'mean')
  own, other = second.momentum_batch_stats, second.batch_stats
  for part in name:
    own, other = own[part], other[part]
  assert np.abs(own).max() > 0
  assert np.abs(own - other).max() > 0


@pytest.mark.parametrize('combine', ['mean', 'sum'])
def test_totals(combine):
  def total(options, **terms):
    options = dataclasses.replace(options, combine=combine)
    return method_of(options).total(
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
    reference.total_loss(3.0, [1.0], -0.5, combine=kind),
  )
  np.testing.assert_allclose(
    total(PIXPRO, swav=[3.0], d2s=[1.0, 5.0], p2p=[-0.5], pixpro=[-2.0]),
    reference.pixpro_total_loss(-2.0, 3.0, [1.0, 5.0], -0.5, combine=kind),
  )


def test_red_is_divided_by_swavs_deviation():
  """(x - 0.485) / 0.228, though the encoder divides by 0.229."""
  image = jnp.full((1, 1, 1, 3), 0.3)
  shown = view_colors.with_red_deviation(image, 0.228)
  unit = 0.5 * (0.3 + 1)
  np.testing.assert_allclose(
    (0.5 * (shown[..., 0] + 1) - 0.485) / 0.229,
    (unit - 0.485) / 0.228,
    rtol=1e-5,
  )
  np.testing.assert_array_equal(shown[..., 1:], image[..., 1:])


@pytest.mark.parametrize(
  'alternative',
  [
    dataclasses.replace(
      SWAV,
      alignment=p2p_lib.P2POptions('clustering', 4),
      shallow=d2s_lib.D2SOptions((3, 2), targets='own', view='same'),
    ),
    dataclasses.replace(
      SWAV, alignment=p2p_lib.P2POptions('contrastive', 4, project=False)
    ),
    options_lib.ObjectiveOptions(
      clusters=None,
      alignment=p2p_lib.P2POptions(grid=4, project=False),
      shallow=d2s_lib.D2SOptions(()),
      pixpro=pixpro.PixproOptions(hidden=8, size=6),
    ),
  ],
  ids=['clustering-own-same', 'contrastive-unprojected', 'pixpro-unprojected'],
)
def test_ablations_learn_everything_they_have(alternative):
  """Every parameter gets a gradient, but for biases before a norm."""
  trained = method_of(alternative)
  batch = batch_of(small=alternative.clusters is not None)
  state = trained_state(trained, batch)
  state = state.replace(step=jnp.asarray(4, jnp.int32))
  after, scalars = jax.jit(trained.train_step)(state, batch)
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


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: options_lib.ObjectiveOptions(clusters=None),
      'expected one of them',
    ),
    (
      lambda: options_lib.ObjectiveOptions(
        clusters=None, pixpro=pixpro.PixproOptions()
      ),
      r'expected \(\) without clusters',
    ),
    (lambda: d2s_lib.D2SOptions((4,)), 'stages: expected some'),
    (lambda: p2p_lib.P2POptions(kind='clustering', project=False), 'project'),
    (lambda: swav.SwavOptions(epsilon=0.0), 'epsilon'),
    (lambda: view_colors.ViewColors(large=()), 'expected 2'),
  ],
)
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()
