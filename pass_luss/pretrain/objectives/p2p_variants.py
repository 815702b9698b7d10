"""Losses of P2P in the paper's ablations: contrastive and clustering.

The released code has neither (spec §2.6), so these are readings of the paper.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import embedding_ops, objective_options, sinkhorn
from pass_luss.pretrain.objectives import swav
from segcore.types import Scalar


def p2p_contrastive_loss(
  projected: Float[Array, 'B 2 n m D'],
  overlap: Bool[Array, 'B'],
  temperature: float,
) -> Scalar:
  """Contrasts each point with all other points of the other view.

  -log exp(cos(a_i, b_i) / τ) / Σ_j exp(cos(a_i, b_j) / τ), in both directions,
  averaged over all images and points; images without an overlap count as 0.
  The paper's "all other positions" are read as those of the same image.

  Args:
    projected: embeddings z of both views.
    overlap: whether the views of an image overlap.
    temperature: temperature τ.
  """
  batch, _, *grid, size = projected.shape
  points = embedding_ops.l2_normalize_embeddings(projected).reshape(
    batch, 2, grid[0] * grid[1], size
  )
  cosines = jnp.einsum(
    'bid,bjd->bij',
    points[:, 0],
    points[:, 1],
    precision=embedding_ops.EXACT,
  )
  scores = cosines / temperature
  same = jnp.arange(scores.shape[-1])
  # One softmax over the points of view a, one over those of view b.
  both = jnp.stack(
    [-jax.nn.log_softmax(scores, axis=axis)[:, same, same] for axis in (1, 2)]
  )
  return jnp.mean(jnp.where(overlap[:, None], both, 0.0))


def p2p_clustering_loss(
  projected: Float[Array, 'B 2 n m D'],
  prototypes: Float[Array, 'D K'],
  overlap: Bool[Array, 'B'],
  options: objective_options.SwavOptions,
) -> Scalar:
  """Computes SwAV's loss of points in place of images, without a queue.

  Prototypes get no gradient. Images without an overlap take no part in the
  assignments, and count as 0 in the mean.

  Args:
    projected: embeddings z of both views.
    prototypes: prototypes of SwAV.
    overlap: whether the views of an image overlap.
    options: temperature, and options of Sinkhorn's algorithm.
  """
  _, _, *grid, size = projected.shape
  points = jnp.moveaxis(
    embedding_ops.l2_normalize_embeddings(projected), 1, 3
  ).reshape(-1, 2, size)
  scores = embedding_ops.prototype_similarities(
    points, jax.lax.stop_gradient(prototypes)
  )
  used = jnp.repeat(overlap, grid[0] * grid[1])
  targets = jnp.stack(
    [
      sinkhorn.sinkhorn_assign(
        jax.lax.stop_gradient(scores[:, view]),
        options.epsilon,
        options.sinkhorn_iterations,
        used,
      )
      for view in (0, 1)
    ],
    axis=1,
  )
  # Targets of unused points are 0, and so is their cross entropy.
  return swav.swapped_prediction_loss(scores, targets, options.temperature)
