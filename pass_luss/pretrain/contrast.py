"""Losses of embeddings against one positive and many negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops
from segcore.ops import losses
from segcore.types import Scalar

Rows = Float[Array, 'N D']
Negatives = Float[Array, 'M D']


def info_nce_loss(
  queries: Rows, keys: Rows, negatives: Negatives, temperature: float
) -> Scalar:
  """Computes InfoNCE (van den Oord et al. 2018; He et al. 2020, Eq. 1).

  mean_i -log softmax([q_i·k_i, q_i·N] / T)_0

  Args:
    queries: L2-normalized rows q.
    keys: L2-normalized positive k of each row.
    negatives: L2-normalized negatives N, the same for all rows.
    temperature: temperature T.
  """
  queries = losses.at_least_float32(queries)
  positive = jnp.einsum(
    'nd,nd->n', queries, keys, precision=embedding_ops.EXACT
  )
  others = row_similarities(queries, negatives)
  # The positive is not concatenated to the negatives, of which there are many:
  # its term joins their sum of exponentials.
  positive, others = positive / temperature, others / temperature
  normalizer = jnp.logaddexp(
    positive, jax.scipy.special.logsumexp(others, axis=-1)
  )
  return jnp.mean(normalizer - positive)


def row_similarities(queries: Rows, rows: Negatives) -> Float[Array, 'N M']:
  """Computes the inner products of rows, at full float32 precision."""
  return jnp.einsum('nd,md->nm', queries, rows, precision=embedding_ops.EXACT)
