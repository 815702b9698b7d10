"""Small networks, batches and training steps to test semi-supervised methods.

Images have a side of 33 pixels, representations 9 cells.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import deeplabv3plus
from segcore.models.encoders import resnet
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.u2pl import inputs
from u2pl import mixing, pseudo_labels
from u2pl.semi import options as options_lib
from u2pl.semi import systems

CLASSES, SIZE, BATCH = 5, 33, 8
NUM_UNLABELED = 12


def make_heads(
  representation=8, auxiliary=False, dtype=jnp.float32, options=None
):
  if options is not None:  # Without norms, which perturbed decoders lack.
    logits = heads_lib.ConvHead(CLASSES, 1, stride=4, dtype=dtype)
    return {'logits': logits, **options.further_heads(CLASSES, logits)}
  blocks = {'width': 8, 'dropout_rate': 0.0, 'dtype': dtype}
  heads = {
    'logits': heads_lib.ConvBlocksHead(CLASSES, **blocks),
    'rep': heads_lib.ConvBlocksHead(representation, **blocks),
  }
  if auxiliary:
    heads['aux'] = heads_lib.ConvBlocksHead(
      CLASSES, num_blocks=1, reads='encoder', map_name='x3', **blocks
    )
  return heads


def make_network(dtype=jnp.float32, **kwargs):
  return segmenter.Segmenter(
    resnet.DilatedResNet(blocks=(1, 1), width=4, multi_grid=(1,), dtype=dtype),
    deeplabv3plus.DeepLabV3Plus(
      width=8, dilations=(2,), dropout_rate=0.0, dtype=dtype
    ),
    make_heads(dtype=dtype, **kwargs),
  )


PLUS = options_lib.LearnOptions(
  consistency=options_lib.ConsistencyOptions(
    reverse=0.1, denoise='raw', mixing=mixing.MixingOptions(group=2)
  ),
  contrast=inputs.CONTRAST,
  prototype_momentum=0.9,
  warmup_epochs=1,
)


def make_method(options=PLUS, num_steps=40, **kwargs):
  if type(options).further_heads is not options_lib.SystemOptions.further_heads:
    kwargs['options'] = options
  return systems.METHODS[type(options)](
    segmenter=make_network(**kwargs),
    update=update_lib.Update(
      segmenter.SUBMODULES,
      optimizers.OptimizerOptions(
        name='sgd', learning_rate=0.05, schedule='poly', weight_decay=1e-4
      ),
      num_steps,
    ),
    options=options,
    num_classes=CLASSES,
    steps_per_epoch=4,
    num_unlabeled=NUM_UNLABELED,
  )


def draw_batch(seed=0):
  rng = np.random.default_rng(seed)

  def stream():
    # Coarse, as real labels are; some pixels are ignored.
    coarse = rng.integers(-1, CLASSES, (BATCH, 4, 4))
    label = coarse.repeat(9, 1).repeat(9, 2)[:, :SIZE, :SIZE]
    shades = rng.integers(40, 200, CLASSES + 1)[label]
    image = shades[..., None] + rng.integers(-30, 30, (BATCH, SIZE, SIZE, 3))
    return {
      'image': image.astype(np.uint8),
      'label': label.astype(np.int16),
      'mask': np.ones(BATCH, bool),
    }

  batch = {'labeled': stream(), 'unlabeled': stream(), 'pasted': stream()}
  # Of pairs, for systems that read them; one image occurs twice.
  index = rng.permutation(NUM_UNLABELED)[:BATCH]
  index[-1] = index[0]
  drawn = rng.integers(0, CLASSES, BATCH)
  drawn[::2] = -1
  batch['unlabeled'] |= {
    'index': index.astype(np.int32),
    'drawn_class': drawn.astype(np.int32),
  }
  return batch


def batch_spec():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), draw_batch()
  )


def init_state(trained, step=0, seed=0):
  init = jax.jit(lambda rng: trained.init(rng, batch_spec(), None))
  state = init(jax.random.PRNGKey(seed))
  return state.replace(step=jnp.int32(step))


def draw_state(trained, step=0):
  """Draws a state in numpy, which takes less time than compiling `init`."""
  shapes = jax.eval_shape(
    lambda rng: trained.init(rng, batch_spec(), None), jax.random.PRNGKey(0)
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name == 'kernel':
      scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5
      return np.float32(scale * rng.normal(size=leaf.shape))
    return np.full(leaf.shape, name in ('scale', 'var'), leaf.dtype)

  state = jax.tree_util.tree_map_with_path(draw, shapes)
  return state.replace(step=np.int32(step))


def run_steps(trained, state, count, first=0, jitted=None):
  step = jitted or jax.jit(trained.train_step)
  scalars = {}
  for i in range(first, first + count):
    state, scalars = step(state, draw_batch(i))
  return state, scalars


def forward(method, params, batch_stats, images, rng, perturb=None):
  """Applies a network in training mode; returns logits at full resolution."""

  @jax.jit
  def apply(params, batch_stats, images):
    outputs, stats = method.forward(params, batch_stats, images, rng, perturb)
    logits = pseudo_labels.upsample_teacher_scores(
      outputs['logits'], images.shape[1:3]
    )
    return logits, stats

  logits, stats = apply(params, batch_stats, images)
  return np.asarray(logits, np.float64), stats


def symmetric_images(batch):
  """Returns labeled and unlabeled images of a batch in [-1, 1]."""
  return [
    (batch[name]['image'].astype(np.float32) - 127.5) / 127.5
    for name in ('labeled', 'unlabeled')
  ]


def difference(a, b):
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max()) if x.size else 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
