"""DenseCL: MoCo v2 on images and on the cells of their maps.

Wang et al., arXiv:2011.09157 (spec §2.8):

  F, F'      deepest maps of view 1 (encoder) and of view 2 (momentum encoder)
  q, q_s     n of the image and of the cell projections of F
  k, k_t     the same of F'; k̄ = n(mean over t of the projections before n)
  c(s)       = argmax_t cos(F_s, F'_t)                               (Eq. 4)
  L = (1 - λ) InfoNCE(q, k, ring) + λ InfoNCE(q_s, k_c(s), ring of k̄)
                                                                 (Eq. 1-3)

with λ = 1/2; the second term is a mean over images and cells.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import (
  comparator_options,
  contrast,
  embedding_ops,
  objective,
  projection_heads,
)
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import moco
from segcore.models import segmenter


class Densecl(moco.RingObjective):
  """The DenseCL objective: queries of view 1, keys of view 2."""

  options: comparator_options.DenseclOptions

  name = 'densecl'
  head_modules = ('image_projector', 'cell_projector')

  def initial_memory(self, rng: Array) -> dict[str, queue_lib.Ring]:
    """Builds the rings of keys of images and of pooled keys of cells."""
    sizes = self.options.queue, self.options.size
    keys = jax.random.split(rng)
    return {
      name: queue_lib.random_ring(key, *sizes)
      for name, key in zip(('images', 'cells'), keys, strict=True)
    }

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds both projections, dense layers and 1x1 convolutions."""
    hidden, size = self.options.hidden, self.options.size
    images, cells = (
      (
        projection_heads.Layer(hidden, relu=True, init=init),
        projection_heads.Layer(size, init=init),
      )
      # The official code initializes its dense layers, not the convolutions.
      for init in ('kaiming', 'fan_in_uniform')
    )
    head = projection_heads.DenseHead(images, cells, dtype=dtype)
    return {self.name: head}

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds view 2: the keys of the image, its cells and their mean.

    Returns:
      L2-normalized 'keys' k [B, 1, E]; 'cells' k_t [B, h·w, E]; 'pooled' k̄
      [B, E]; 'features' F' [B, h·w, D].
    """
    image, cells, features = self._embed_image_and_cells(net, views.view(1))
    normalize = embedding_ops.l2_normalize_embeddings
    return {
      'keys': image,
      'cells': normalize(cells),
      'pooled': normalize(jnp.mean(cells, axis=1)),
      'features': features,
    }

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds view 1: the queries of the image and of its cells.

    Returns:
      L2-normalized 'queries' q [B, 1, E]; 'cells' q_s [B, h·w, E]; 'features' F
      [B, h·w, D].
    """
    image, cells, features = self._embed_image_and_cells(net, views.view(0))
    cells = embedding_ops.l2_normalize_embeddings(cells)
    return {'queries': image, 'cells': cells, 'features': features}

  def _embed_image_and_cells(
    self, net: segmenter.Segmenter, maps: Float[Array, 'B h w D']
  ) -> tuple[
    Float[Array, 'B 1 E'], Float[Array, 'B n E'], Float[Array, 'B n D']
  ]:
    """Embeds each image and the n = h·w cells of its map.

    Returns:
      Normalized embeddings of images, those of cells as they are, and the
      normalized features of the cells.
    """
    image, cells = net.heads.call_method(self.name, 'project', maps, True)
    cells, features = (
      x.reshape(len(x), -1, x.shape[-1]) for x in (cells, jnp.asarray(maps))
    )
    normalize = embedding_ops.l2_normalize_embeddings
    return normalize(image)[:, None], cells, normalize(features)

  def targets(self, step: objective.Step) -> objective.Arrays:
    """Selects the key of each cell of the queries' view: k_c(s)."""
    keys = step.momentum_outputs[self.name]
    matches = match_cells(step.outputs[self.name]['features'], keys['features'])
    cells = jnp.take_along_axis(keys['cells'], matches[..., None], axis=1)
    return {'cells': cells}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes both terms of L, with their weights."""
    rings, size = step.state.memory[self.name], self.options.size
    cells = contrast.info_nce_loss(
      step.outputs[self.name]['cells'].reshape(-1, size),
      step.targets[self.name]['cells'].reshape(-1, size),
      rings['cells'].rows,
      self.options.temperature,
    )
    weight = self.options.dense_weight
    terms = {
      'loss_densecl_images': (1.0 - weight)
      * self.image_loss(step, rings['images']),
      'loss_densecl_cells': weight * cells,
    }
    return objective.LossTerms(terms, {})

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Writes this step's keys of images, and its pooled keys of cells."""
    rings = step.state.memory[self.name]
    pooled = step.momentum_outputs[self.name]['pooled']
    written = {
      'images': self.write_keys(step, rings['images']),
      'cells': queue_lib.write_ring(rings['cells'], pooled),
    }
    return new.with_memory(self.name, written)


def match_cells(
  features: Float[Array, 'B n D'], key_features: Float[Array, 'B m D']
) -> Array:
  """Finds the most similar cell of the keys' view, the first on a tie.

  Args:
    features: L2-normalized features of the cells of the queries' view.
    key_features: those of the keys' view.

  Returns:
    int32 [B, n], cells of the keys' view.
  """
  cosines = jnp.einsum(
    'bnd,bmd->bnm',
    jax.lax.stop_gradient(features),
    key_features,
    precision=embedding_ops.EXACT,
  )
  return jnp.argmax(cosines, axis=-1)
