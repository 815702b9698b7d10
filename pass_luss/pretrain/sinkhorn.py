"""Sinkhorn's algorithm: balanced assignments of samples to prototypes.

SwAV, Eq. 3-5: the assignment Q that maximizes Tr(QᵀS) + ε H(Q) while all
prototypes get the same share of the samples is Diag(u) exp(S / ε) Diag(v); the
vectors u and v are found by iteration (spec §2.5).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segcore.ops import losses


def sinkhorn_assign(
  scores: Float[Array, 'N K'],
  epsilon: float,
  num_iterations: int,
  used: Bool[Array, 'N'] | None = None,
) -> Float[Array, 'N K']:
  """Computes soft assignments that use all prototypes equally.

  Rows sum to 1. Runs in float32 or wider: float16 cannot hold exp(1 / ε) = 5e8.

  Args:
    scores: cosine similarities of samples and prototypes.
    epsilon: weight ε of the entropy; a smaller one moves each row closer to a
      single prototype.
    num_iterations: number of iterations, at least 1.
    used: mask of the samples that take part; None for all. Rows of the others
      are 0.
  """
  if used is None:
    used = jnp.ones(len(scores), bool)
  return sinkhorn_assign_blocks([(scores, used)], epsilon, num_iterations)[0]


def sinkhorn_assign_blocks(
  blocks: Sequence[tuple[Float[Array, '_ K'], Bool[Array, '_']]],
  epsilon: float,
  num_iterations: int,
) -> list[Float[Array, '_ K']]:
  """Computes the assignments of several blocks of samples jointly.

  The usual form divides the matrix exp(S / ε) by its row and its column sums
  in turn. Here the matrix stays as it is and only the factors u and v of its
  rows and columns are iterated: the same result with less memory traffic.
  Blocks are not concatenated, since the batch is split over the devices and
  the queue is replicated.

  Args:
    blocks: scores and used samples of each block, as in `sinkhorn_assign`.
    epsilon: weight ε of the entropy.
    num_iterations: number of iterations, at least 1.
  """
  # Unused samples are masked after the maximum over K: a mask of [N, K] would
  # be written to memory, too.
  shift = jnp.max(
    jnp.stack(
      [
        jnp.max(jnp.where(used, jnp.max(scores, axis=1), -jnp.inf))
        for scores, used in blocks
      ]
    )
  )
  # A common factor cancels in the divisions; this one keeps the exponents at 0
  # or below. Only unused samples can exceed it, and are clipped to stay finite.
  kernels = [
    jnp.exp(jnp.minimum(losses.at_least_float32(scores) - shift, 0.0) / epsilon)
    for scores, _ in blocks
  ]
  num_prototypes = kernels[0].shape[1]
  sample_factors = [used.astype(kernels[0].dtype) for _, used in blocks]
  prototype_factors = jnp.ones(num_prototypes)
  for _ in range(num_iterations):
    # Sums of products, not matrix products: on a CPU XLA would add thousands
    # of terms of a dot product one after another, and lose digits.
    sums = sum(
      jnp.sum(kernel * factors[:, None], axis=0)
      for kernel, factors in zip(kernels, sample_factors, strict=True)
    )
    prototype_factors = _inverse(sums) / num_prototypes
    sample_factors = [
      used * _inverse(jnp.sum(kernel * prototype_factors, axis=1))
      for kernel, (_, used) in zip(kernels, blocks, strict=True)
    ]
  return [
    factors[:, None] * kernel * prototype_factors
    for kernel, factors in zip(kernels, sample_factors, strict=True)
  ]


def _inverse(sums: Float[Array, 'N']) -> Float[Array, 'N']:
  """Inverts positive numbers; 0 elsewhere."""
  return jnp.where(sums > 0, 1.0 / jnp.where(sums > 0, sums, 1.0), 0.0)
