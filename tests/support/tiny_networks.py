"""Networks that are small enough to train in a test."""

import jax
import numpy as np

from segcore.models import segmenter
from segcore.models.decoders import unet
from segcore.models.encoders import resnet_gn
from segcore.train import optimizers
from tests.support import fake_checkpoints


def hybrid(heads, dropout_rate=0.0):
  """Builds a TransUNet for images of 64 pixels: stride 16, maps of 4x4."""
  encoder = fake_checkpoints.HYBRID.clone(
    blocks=(1, 1, 1), num_layers=1, mlp_dim=32, dropout_rate=dropout_rate
  )
  decoder = unet.UNetDecoder(widths=(16, 16, 8, 8, 8), num_groups=4)
  return segmenter.Segmenter(encoder, decoder, heads)


def small_unet(heads):
  """Builds a U-Net for images of 32 pixels: stride 8."""
  encoder = resnet_gn.ResNet(blocks=(1, 1), width=8, num_groups=4)
  decoder = unet.UNetDecoder(widths=(16, 8, 8), num_groups=4)
  return segmenter.Segmenter(encoder, decoder, heads)


def adam(rate=1e-2, **fields):
  """Returns options of Adam at a constant learning rate."""
  return optimizers.OptimizerOptions(
    learning_rate=rate, schedule='constant', **fields
  )


def images(batch, size, seed=0):
  """Draws uint8 images with labels of 3 classes, some of them ignored."""
  rng = np.random.default_rng(seed)
  arrays = {
    'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    'label': rng.integers(-1, 3, (batch, size, size)).astype(np.int16),
    'mask': np.ones(batch, bool),
  }
  return jax.device_put(arrays)


def spec(batch):
  """Returns the shapes and types of a batch."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def initial_state(method, batch, seed=0):
  """Returns a state as `init` does, with values drawn by numpy.

  Compiling jax's random numbers for each kernel would take longer than a test.
  """
  key = jax.random.PRNGKey(seed)
  shapes = jax.eval_shape(lambda rng: method.init(rng, spec(batch), None), key)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
    else:
      value = np.full(leaf.shape, 1.0 if name in ('scale', 'var') else 0.0)
    return value.astype(leaf.dtype)

  draws = jax.tree_util.tree_map_with_path(
    draw, (shapes.params, shapes.batch_stats)
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state)
  state = shapes.replace(
    step=np.int32(0),
    params=draws[0],
    batch_stats=draws[1],
    opt_state=zeros,
    rng=key,
  )
  return jax.device_put(state)
