"""Tiny networks, batches and states, for steps of pretraining."""

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pretrain import heads, view_colors
from pass_luss.pretrain import method as method_lib
from pass_luss.pretrain import options as options_lib
from pass_luss.pretrain.objectives import d2s as d2s_lib
from pass_luss.pretrain.objectives import p2p as p2p_lib
from pass_luss.pretrain.objectives import pixpro, swav
from segcore.ops import color_augment
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.pass_luss import support

BATCH, LARGE, SMALL = 8, 32, 24
SIZES = heads.HeadSizes(hidden=8, embedding=6, prototypes=5)
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


def make_method(options=SWAV, dtype=jnp.float32, num_steps=20, tx=LARC):
  """Builds a method with a tiny network."""
  objectives = options_lib.build_objectives(options, SIZES)
  net = support.build_network(
    options_lib.build_objective_heads(objectives, dtype), dtype
  )
  update = update_lib.Update(('encoder', 'heads'), tx, num_steps)
  return method_lib.Pretrain(net, update, objectives, COLORS, options.combine)


def make_batch(seed=0, small=True):
  """Draws a batch of two large views, and of two small ones."""
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

  batch = {
    'size': np.full((BATCH, 2), 64, np.int32),
    'mask': np.ones(BATCH, bool),
    **group('large', 2, LARGE),
  }
  if small:
    batch |= group('small', 2, SMALL)
  return jax.device_put(batch)


def batch_spec(batch):
  """Returns shapes and types of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def forward_views(method, batch):
  """Returns state, views, outputs and statistics of a forward pass."""
  state = init_state(method, batch)

  @jax.jit
  def forward(state, batch):
    views = method.views(batch, jax.random.PRNGKey(1))
    return views, *method.forward(state.params, state.batch_stats, views, batch)

  views, outputs, stats = forward(state, batch)
  return state, views, outputs, stats


def init_state(method, batch):
  """Returns the state before the first step."""
  # Not optimized: that takes longer than running it once.
  init = jax.jit(
    lambda rng: method.init(rng, batch_spec(batch), None),
    compiler_options={'xla_backend_optimization_level': 0},
  )
  return init(jax.random.PRNGKey(0))
