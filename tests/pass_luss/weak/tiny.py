"""Tiny networks, batches and states, for steps of weak supervision."""

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.weak import classifier_options, methods
from segcore.ops import color_augment
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.pass_luss import support

BATCH, SIDE, CLASSES = 8, 32, 3
COLORS = color_augment.ColorOptions(
  jitter=1.0, brightness=0.3, contrast=0.3, saturation=0.3
)
SGD = optimizers.OptimizerOptions(
  name='sgd',
  learning_rate=0.01,
  momentum=5e-4,
  schedule='poly',
  weight_decay=5e-4,
  weight_decay_mode='l2',
  groups=(
    ('^encoder/(conv_root|bn_root|block1)/', 0.0, 0.0),
    ('^encoder/.*/bn[^/]*/', 0.0, 0.0),
    ('^heads/', 10.0, 1.0),
  ),
)
# A network of stride 8: the smaller image has 12 pixels, two cells a side.
SEAM = classifier_options.SeamOptions(scale=0.4)


def make_method(options=SEAM, colors=COLORS, dtype=jnp.float32):
  """Builds a method with a tiny network."""
  cls = methods.METHODS[type(options)]
  net = support.build_network(cls.heads(options, CLASSES), dtype)
  update = update_lib.Update(('encoder', 'heads'), SGD, 20)
  return cls(net, update, options, colors)


def draw_batch(seed=0, num_tags=1 + CLASSES):
  """Draws images of one or two classes, with padding at their right edge."""
  rng = np.random.default_rng(seed)
  images = support.random_images(BATCH, (SIDE, SIDE), seed)
  tags = rng.random((BATCH, num_tags)) < 0.4
  tags[np.arange(BATCH), rng.integers(1, num_tags, BATCH)] = True
  tags[:, 0] = False
  valid = np.ones((BATCH, SIDE, SIDE), bool)
  valid[:3, :, 28:] = False
  return {
    'image': images,
    'tags': tags,
    'valid': valid,
    'size': np.full((BATCH, 2), SIDE, np.int32),
    'mask': np.ones(BATCH, bool),
  }


def init_state(trained, batch, dtype=jnp.float32):
  """Initializes the state; running statistics are random."""
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  init = jax.jit(lambda rng: trained.init(rng, spec, None))
  state = init(jax.random.PRNGKey(0))
  rng = np.random.default_rng(1)

  def draw(path, x):
    # Means near 0: with large ones every activation is 0 after the ReLU.
    low, high = (-0.2, 0.2) if path[-1].key == 'mean' else (0.5, 1.5)
    return rng.uniform(low, high, x.shape).astype(x.dtype)

  stats = jax.tree_util.tree_map_with_path(draw, state.batch_stats)
  return jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x,
    state.replace(batch_stats=stats),
  )
