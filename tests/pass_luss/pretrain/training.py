"""Tiny networks, batches and states, for steps of pretraining."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pretrain import (
  comparator_options,
  objective_choice,
  objective_list,
  objective_options,
  view_colors,
)
from pass_luss.pretrain import method as method_lib
from segcore.models import features, segmenter
from segcore.models.layers import norm
from segcore.ops import color_augment
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.pass_luss import support

BATCH, LARGE, SMALL = 8, 32, 24
SIZES = objective_options.HeadSizes(hidden=8, embedding=6, prototypes=5)
CLUSTERS = objective_options.SwavOptions(
  queue=16, queue_from_step=1, frozen_steps=2
)
SWAV = objective_choice.ObjectiveOptions(
  clusters=CLUSTERS, alignment=objective_options.P2POptions(grid=4)
)
PIXPRO = objective_choice.ObjectiveOptions(
  clusters=CLUSTERS,
  alignment=objective_options.P2POptions(grid=4),
  shallow=objective_options.D2SOptions(stages=(3, 2)),
  pixpro=objective_options.PixproOptions(hidden=8, size=6),
)
# Objectives that PASS is compared with, by name.
_KEYS = {'size': 6, 'decay': 0.9}
COMPARED = {
  'supervised': comparator_options.SupervisedOptions(
    num_classes=4, first_class=1
  ),
  'simclr': comparator_options.SimclrOptions(size=6),
  'moco': comparator_options.MocoOptions(queue=16, **_KEYS),
  'byol': comparator_options.ByolOptions(hidden=8, size=6, decay=0.9),
  'simsiam': comparator_options.SimsiamOptions(size=8, hidden=4),
  'densecl': comparator_options.DenseclOptions(queue=16, hidden=8, **_KEYS),
  'pcl': comparator_options.PclOptions(
    queue=16,
    num_images=40,
    clusters=(12, 16),
    negatives=3,
    from_step=2,
    every=2,
    restarts=2,
    short_side=40,
    crop=32,
    **_KEYS,
  ),
  'adco': comparator_options.AdcoOptions(negatives=16, **_KEYS),
}
MULTI_CROP = dataclasses.replace(COMPARED['adco'], variant='multi_crop')
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


def compared_options(name, **fields):
  """Builds the options of an objective that PASS is compared with, alone."""
  alone = {
    'clusters': None,
    'alignment': None,
    'shallow': objective_options.D2SOptions(()),
  }
  return objective_choice.ObjectiveOptions(
    **{**alone, name: COMPARED[name], **fields}
  )


def make_method(options=SWAV, dtype=jnp.float32, num_steps=20, tx=LARC):
  """Builds a method with a tiny network."""
  objectives = objective_list.build_objectives(options, SIZES)
  net = support.build_network(
    objective_list.build_objective_heads(objectives, dtype), dtype
  )
  update = update_lib.Update(('encoder', 'heads'), tx, num_steps)
  return method_lib.Pretrain(net, update, objectives, COLORS, options.combine)


def make_batch(seed=0, small=True, large=LARGE, smaller=()):
  """Draws a batch of two large views, and of two small or of smaller ones."""
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
    'tags': np.eye(5, dtype=bool)[rng.integers(1, 5, BATCH)],
    'index': rng.permutation(40)[:BATCH].astype(np.int32),
    **group('large', 2, large),
  }
  if small:
    batch |= group('small', 2, SMALL)
  for number, size in enumerate(smaller, start=1):
    batch |= group(f'smaller{number}', 1, size)
  return jax.device_put(batch)


class TinyEncoder(nn.Module):
  """One convolution of stride 8 and a batch norm: compiled in a second."""

  dtype: Any = jnp.float32
  size_multiple: ClassVar[int] = 8

  @nn.compact
  def __call__(self, images, train=False):
    """Computes a single map, of stride 8."""
    x = nn.Conv(
      6, (8, 8), (8, 8), use_bias=False, dtype=self.dtype, name='conv'
    )(images)
    x = norm.batch_norm(train=train, dtype=self.dtype, name='bn')(x)
    maps = features.FeatureMap('x4', 8, nn.relu(x))
    return features.Features((maps,))


def make_tiny_method(name, dtype=jnp.float64, num_steps=20, rate=0.1, **fields):
  """Builds an objective that PASS is compared with, on the tiny encoder."""
  options = compared_options(name, **fields)
  objectives = objective_list.build_objectives(options, SIZES)
  net = segmenter.Segmenter(
    TinyEncoder(dtype),
    None,
    objective_list.build_objective_heads(objectives, dtype),
  )
  tx = optimizers.OptimizerOptions(
    name='sgd', learning_rate=rate, schedule='constant'
  )
  colors = view_colors.ViewColors(2 * (color_augment.ColorOptions(),))
  return method_lib.Pretrain(
    net,
    update_lib.Update(('encoder', 'heads'), tx, num_steps),
    objectives,
    colors,
  )


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
