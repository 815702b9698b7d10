"""Tiny networks with random weights, and images, for the tests of PASS."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import loader as loader_lib
from pass_luss.pretrain import heads
from segcore.distributed import sharding
from segcore.models import segmenter
from segcore.models.encoders import resnet
from segcore.train import train_state

CLASSES = 4
READING = loader_lib.ReadOptions(threads=1, buffered=1)


def build_network(heads_by_name, dtype=jnp.float32):
  """Builds a dilated ResNet of width 4 and output stride 8, with heads."""
  encoder = resnet.DilatedResNet(
    blocks=(1, 1, 1, 1),
    width=4,
    stem='small',
    unit='basic',
    output_stride=8,
    zero_init=False,
    dtype=dtype,
  )
  return segmenter.Segmenter(encoder, None, heads_by_name)


@functools.cache
def build_attention_network():
  """Returns a network with an attention head, and its state."""
  net = build_network(
    {'clusters': heads.Clusters(8, 6, 5), 'attention': heads.AttentionHead()}
  )
  return net, random_state(net)


def random_state(net):
  """Returns a state whose parameters and statistics are all random."""
  shapes = jax.eval_shape(
    net.init, jax.random.PRNGKey(0), jnp.zeros((1, 32, 32, 3))
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    fan_in = np.prod(leaf.shape[:-1]) if name == 'kernel' else 25
    value = rng.normal(size=leaf.shape) / np.sqrt(max(fan_in, 1))
    return (np.abs(value) + 0.5 if name in ('var', 'scale') else value).astype(
      np.float32
    )

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  return train_state.inference_train_state(variables, sharding.make_mesh())


def random_images(count=2, size=(32, 40), seed=0):
  """Returns smooth images, uint8 [count, *size, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 4, 5, 3), np.uint8)
  return np.stack(
    [cv2.resize(x, size[::-1], interpolation=cv2.INTER_CUBIC) for x in coarse]
  )


def to_symmetric(images):
  """Converts [0, 255] to [-1, 1], the range of a network's input."""
  return jax.device_put((images.astype(np.float32) - 127.5) / 127.5)


def attention_weights(state):
  """Returns the attention's parameters as the transcription names them."""
  params = jax.tree.map(np.asarray, state.params['heads']['attention'])
  stats = jax.tree.map(np.asarray, state.batch_stats['heads']['attention'])
  weights = {'theta': params['threshold']}
  for i in (1, 2):
    weights |= {
      f'w{i}': params[f'conv{i}']['kernel'][0, 0],
      f'b{i}': params[f'conv{i}']['bias'],
      f'gamma{i}': params[f'bn{i}']['scale'],
      f'beta{i}': params[f'bn{i}']['bias'],
      f'mean{i}': stats[f'bn{i}']['mean'],
      f'variance{i}': stats[f'bn{i}']['var'],
    }
  return weights


def projection_weights(params):
  """Returns a projection's parameters as the transcription names them."""
  weights = {
    'w1': params['dense1']['kernel'],
    'b1': params['dense1']['bias'],
    'gamma': params['bn1']['scale'],
    'beta': params['bn1']['bias'],
    'w2': params['dense2']['kernel'],
    'b2': params['dense2']['bias'],
  }
  return jax.tree.map(np.asarray, weights)


def deepest_features(net, state, images):
  """Returns the encoder's deepest map of uint8 images, in float64."""

  @jax.jit
  def deepest(variables, images):
    maps = net.apply(variables, images, decode=False, method='features')
    return maps['encoder'].deepest.array

  variables = train_state.train_state_variables(state)
  return np.asarray(deepest(variables, to_symmetric(images)), np.float64)
