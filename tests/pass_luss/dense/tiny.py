"""Tiny networks, batches and states, for steps on clusters of pixels, masks."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.dense import (
  cluster_head,
  dense_options,
  mask_contrast,
  methods,
  pixel_clustering,
)
from pass_luss.pretrain import method as pretrain_method
from pass_luss.pretrain import view_colors
from segcore.models import features, segmenter
from segcore.models.decoders import fpn
from segcore.models.layers import norm
from segcore.ops import color_augment
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.pass_luss import support
from tests.pass_luss.pretrain import training
from tests.transcriptions import luss_dense as reference

BATCH, BASE, SIDE, CLUSTERS, FEATURES = 8, 40, 32, 4, 3
PIXELS = {
  'mdc': dense_options.MdcOptions(name='mdc'),
  'picie_h': dense_options.PicieOptions(
    name='picie', over_clusters=6, adds_mse=True
  ),
}
MASKS = dense_options.MaskContrastOptions(
  size=6, width=4, dilations=(1,), dropout_rate=0.0, decay=0.9, queue=16
)
SGD = optimizers.OptimizerOptions(
  name='sgd', learning_rate=0.1, momentum=0.0, schedule='constant'
)


class CellEncoder(nn.Module):
  """One convolution of stride 4 and a batch norm: compiled in a second."""

  dtype: Any = jnp.float32
  size_multiple: ClassVar[int] = 4

  @nn.compact
  def __call__(self, images, train=False):
    """Computes a single map, of stride 4."""
    x = nn.Conv(5, (4, 4), (4, 4), dtype=self.dtype, name='conv')(images)
    x = norm.batch_norm(train=train, dtype=self.dtype, name='bn')(x)
    return features.Features((features.FeatureMap('x1', 4, nn.relu(x)),))


def make_pixel_method(name, dtype=jnp.float32):
  """Builds MDC or PiCIE on a tiny network."""
  options = PIXELS[name]
  net = segmenter.Segmenter(
    CellEncoder(dtype),
    fpn.FPN(FEATURES, dtype=dtype),
    {cluster_head.NAME: cluster_head.ClusterHead(CLUSTERS)},
  )
  update = update_lib.Update(('encoder', 'decoder'), SGD, 20)
  cls = methods.METHODS[type(options)]
  return cls(net, update, options, CLUSTERS, SIDE)


def draw_pixel_batch(seed=0):
  """Draws base images and their indices."""
  rng = np.random.default_rng(seed)
  return {
    'image': support.random_images(BATCH, (BASE, BASE), seed),
    'index': rng.permutation(40)[:BATCH].astype(np.int32),
    'size': np.full((BATCH, 2), BASE, np.int32),
    'mask': np.ones(BATCH, bool),
  }


def init_pixel_state(trained, batch, dtype=jnp.float32):
  """Returns a state with random clusters and another network of the epoch."""
  spec = training.batch_spec(batch)
  init = jax.jit(lambda rng: trained.init(rng, spec, None))
  state = jax.device_get(init(jax.random.PRNGKey(0)))
  rng = np.random.default_rng(1)
  clusterings = {
    name: pixel_clustering.Clustering(
      reference.normalize(rng.normal(size=x.centroids.shape)),
      rng.dirichlet(np.ones(len(x.weights))),
    )
    for name, x in state.clusterings.items()
  }
  labeler = jax.tree.map(
    lambda x: x + 0.1 * rng.uniform(size=x.shape), state.labeler
  )
  state = state.replace(clusterings=clusterings, labeler=labeler)
  return jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype in (np.float32, np.float64) else x,
    state,
  )


def make_mask_method(dtype=jnp.float32, options=MASKS):
  """Builds MaskContrast on a tiny network."""
  objective = mask_contrast.MaskContrast(options)
  net = segmenter.Segmenter(
    training.TinyEncoder(dtype), None, objective.heads(dtype)
  )
  colors = view_colors.ViewColors(2 * (color_augment.ColorOptions(),))
  update = update_lib.Update(('encoder', 'heads'), SGD, 20)
  return pretrain_method.Pretrain(net, update, (objective,), colors, 'sum')


def draw_mask_batch(seed=0):
  """Draws two views of images, and their masks."""
  rng = np.random.default_rng(seed)
  side = 16
  masks = np.zeros((BATCH, 2, side, side), np.int16)
  masks[:, :, 2 : 2 + 7, 3:14] = 1
  masks[rng.random(masks.shape) < 0.1] = 0
  return {
    'views_large': rng.integers(0, 256, (*masks.shape, 3), np.uint8),
    'label_large': masks,
    'box_large': np.ones((BATCH, 2, 4), np.float32),
    'flip_large': np.zeros((BATCH, 2), bool),
    'size': np.full((BATCH, 2), side, np.int32),
    'mask': np.ones(BATCH, bool),
  }
