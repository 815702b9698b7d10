"""A network of 1x1 convolutions, in flax and in numpy, and steps of methods.

Everything a step computes can be computed again in numpy (float64), as a
function of the parameters; the gradient of a step of SGD with rate 1 and
without momentum is what it subtracts.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segcore.models import features, segmenter
from segcore.models import heads as heads_lib
from segcore.models.layers import norm, resize
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.transcriptions import u2pl as reference
from u2pl.semi import systems

CLASSES, BATCH = 3, 2
F64 = jnp.float64


class Encoder(nn.Module):
  """Maps x1 (stride 4), x2 and x3 (stride 8)."""

  size_multiple: int = 1

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Dense(5, dtype=F64, name='conv1')(images[:, ::4, ::4])
    x = nn.relu(norm.batch_norm(train=train, dtype=F64, name='bn')(x))
    y = nn.relu(nn.Dense(6, dtype=F64, name='conv2')(x[:, ::2, ::2]))
    z = nn.relu(nn.Dense(7, dtype=F64, name='conv3')(y))
    maps = ('x1', 4, x), ('x2', 8, y), ('x3', 8, z)
    return features.Features(tuple(features.FeatureMap(*m) for m in maps))


class Decoder(nn.Module):
  """Reads x3 and x1; ends at stride 4 with 6 channels."""

  @nn.compact
  def __call__(self, maps, condition=None, train=False):
    low, deep = maps.by_name('x1').array, maps.by_name('x3').array
    deep = resize.resize_bilinear(deep, low.shape[1:3], align_corners=True)
    x = nn.Dense(6, dtype=F64, name='conv')(jnp.concatenate([low, deep], -1))
    x = nn.relu(norm.batch_norm(train=train, dtype=F64, name='bn')(x))
    return features.Features((features.FeatureMap('fused', 4, x),))


def make_method(options):
  """Returns the method on the network, whose heads are 1x1s."""
  heads = {}
  logits = heads_lib.ConvHead(CLASSES, 1, stride=4, dtype=F64)
  own = options.further_heads(CLASSES, logits)
  if options.needs_representations:
    heads['rep'] = heads_lib.ConvHead(4, 1, stride=4, dtype=F64)
  return systems.METHODS[type(options)](
    segmenter=segmenter.Segmenter(
      Encoder(), Decoder(), {'logits': logits, **heads, **own}
    ),
    update=update_lib.Update(
      segmenter.SUBMODULES,
      optimizers.OptimizerOptions(
        name='sgd', momentum=0.0, learning_rate=1.0, schedule='constant'
      ),
      num_steps=100,
    ),
    options=options,
    num_classes=CLASSES,
    steps_per_epoch=5,
  )


def draw_batch(side, seed=0, batch=BATCH):
  """Returns both streams; the first rows of unlabeled images are padding."""
  rng = np.random.default_rng(seed)

  def stream():
    label = rng.integers(-1, CLASSES, (batch, 4, 4))
    label = label.repeat(side // 4, 1).repeat(side // 4, 2)
    image = 60 * (label + 1)[..., None] + rng.integers(0, 60, (*label.shape, 3))
    return {'image': image.astype(np.uint8), 'label': label.astype(np.int16)}

  valid = np.ones((batch, side, side), bool)
  valid[0, :5] = False
  return {'labeled': stream(), 'unlabeled': {**stream(), 'valid': valid}}


def init_state(trained, side, step=7):
  """Returns a state in float64; biases and norms differ from their init."""
  spec = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), draw_batch(side)
  )
  state = jax.jit(lambda key: trained.init(key, spec, None))(
    jax.random.PRNGKey(0)
  )
  rng = np.random.default_rng(1)

  def spread(x):
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
      return x
    x = x.astype(np.float64)
    # Of biases, scales and statistics; variances stay positive.
    return np.abs(x + 0.3 * rng.normal(size=x.shape)) if x.ndim == 1 else x

  return jax.tree.map(spread, state).replace(step=np.int32(step))


def images_of(batch):
  """Returns labeled and unlabeled images in [-1, 1]."""
  return [
    (batch[name]['image'].astype(np.float64) - 127.5) / 127.5
    for name in ('labeled', 'unlabeled')
  ]


# In numpy.


@functools.cache
def upsampling(cells, size):
  """Returns the weight of each cell (column) in each pixel (row)."""
  count = cells[0] * cells[1]
  basis = np.eye(count).reshape(1, *cells, count)
  return reference.bilinear(basis, size).reshape(-1, count)


def upsample(x, size):
  """Resizes maps with aligned corners, by the reference's weights."""
  cells = x.reshape(len(x), -1, x.shape[-1])
  resized = upsampling(x.shape[1:3], tuple(size)) @ cells
  return resized.reshape(len(x), *size, -1)


def relu(x):
  return np.maximum(x, 0)


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def batch_norm(p, x):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']


def running_norm(p, stats, x):
  mean, var = stats['mean'], stats['var']
  return (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']


def encode(params, images, stats=None):
  """Returns x1, x2 and x3, in training mode unless there are statistics."""
  p = params['encoder']
  x = dense(p['conv1'], images[:, ::4, ::4])
  if stats is None:
    x = batch_norm(p['bn'], x)
  else:
    x = running_norm(p['bn'], stats['encoder']['bn'], x)
  x = relu(x)
  y = relu(dense(p['conv2'], x[:, ::2, ::2]))
  return x, y, relu(dense(p['conv3'], y))


def decode(params, maps):
  """Returns the fused map, in training mode."""
  low, _, deep = maps
  p = params['decoder']
  deep = upsample(deep, low.shape[1:3])
  x = dense(p['conv'], np.concatenate([low, deep], -1))
  return relu(batch_norm(p['bn'], x))


def classify(params, x, head='logits'):
  p = params['heads'][head]['conv']
  return x @ p['kernel'][0, 0] + p['bias']


def gradient_of(before, after):
  """Returns what a step has subtracted."""
  return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after)


def run_step(trained, state, batch, sample_draws):
  """Runs a step; returns the state after, its scalars, and draws.

  Args:
    trained: method.
    state: state before.
    batch: batch of the step.
    sample_draws: function of the PRNG key of the step.
  """

  @jax.jit
  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    return *trained.train_step(state, batch), sample_draws(rng)

  return jax.device_get(step(state, batch))


def run_first_step(options, side, sample_draws, prepare=None):
  """Runs a step of a new method in float64.

  Args:
    options: options of the method.
    side: side of the images.
    sample_draws: function of the PRNG key of the step.
    prepare: function that changes the state for the batch; None for none.

  Returns:
    Method, state, batch, state after, scalars, and draws.
  """
  with jax.enable_x64():
    trained = make_method(options)
    state = init_state(trained, side)
    batch = draw_batch(side)
    if prepare:
      prepare(state, batch)
    return trained, state, batch, *run_step(trained, state, batch, sample_draws)


def check_step(losses, params, after, scalars):
  """Compares terms of the loss, and the gradient of their sum.

  Args:
    losses: function of the parameters, in numpy, with the terms by name.
    params: parameters before the step.
    after: parameters after it.
    scalars: scalars of the step.
  """
  for name, value in losses(params).items():
    np.testing.assert_allclose(scalars[name], value, rtol=2e-5, err_msg=name)
  check_gradient(
    lambda moved: sum(losses(moved).values()),
    params,
    gradient_of(params, after),
  )


def check_gradient(loss, params, gradient, parts=segmenter.SUBMODULES):
  """Compares a gradient with differences of a loss, along random directions.

  Args:
    loss: function of the parameters, in numpy; what has no gradient in it is
      computed from other parameters.
    params: parameters.
    gradient: gradient at these.
    parts: names of the parts that move, each alone.
  """
  rng, step = np.random.default_rng(2), 1e-6
  for part in parts:
    leaves, tree = jax.tree.flatten(params[part])
    moves = [rng.normal(size=np.shape(x)) for x in leaves]

    def at(sign, part=part, leaves=leaves, tree=tree, moves=moves):
      moved = [
        np.asarray(x) + sign * step * v
        for x, v in zip(leaves, moves, strict=True)
      ]
      return loss({**params, part: jax.tree.unflatten(tree, moved)})

    slope = (at(1) - at(-1)) / (2 * step)
    along = sum(
      float((np.asarray(g) * v).sum())
      for g, v in zip(jax.tree.leaves(gradient[part]), moves, strict=True)
    )
    assert abs(slope) > 1e-7, part
    np.testing.assert_allclose(along, slope, rtol=2e-4, err_msg=part)
