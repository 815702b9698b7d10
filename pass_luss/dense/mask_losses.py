"""Losses of MaskContrast: contrast of masks, and saliency.

Source: Van Gansbeke et al. 2021, arXiv:2102.06191 (spec comparators §3.6).
"""

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import embedding_ops
from segcore.ops import losses
from segcore.types import Scalar

with epy.lazy_imports():
  import optax

# Added to the share of an image's pixels, in the logarithm of its weight.
_SHARE_OFFSET = 1.02


def mask_prototypes(
  embeddings: Float[Array, 'B H W D'], masks: Bool[Array, 'B H W']
) -> Float[Array, 'B D']:
  """Computes n(Σ n(e)) over the pixels of each mask.

  Args:
    embeddings: embeddings e of the pixels.
    masks: salient pixels.
  """
  normalized = embedding_ops.l2_normalize_embeddings(embeddings)
  sums = jnp.einsum(
    'bhwd,bhw->bd',
    normalized,
    masks.astype(normalized.dtype),
    precision=embedding_ops.EXACT,
  )
  return embedding_ops.l2_normalize_embeddings(sums)


def mask_weights(masks: Bool[Array, 'B H W']) -> Float[Array, 'B']:
  """Computes the weight 1 / log(1.02 + p) of each image's mask.

  p is the share of its pixels among those of all masks.
  """
  counts = jnp.sum(masks, axis=(1, 2)).astype(jnp.result_type(float))
  return 1.0 / jnp.log(_SHARE_OFFSET + counts / jnp.sum(counts))


def mask_contrast_loss(
  embeddings: Float[Array, 'B H W D'],
  masks: Bool[Array, 'B H W'],
  prototypes: Float[Array, 'B D'],
  negatives: Float[Array, 'N D'],
  temperature: float,
) -> Scalar:
  """Contrasts each salient pixel with the prototypes of all masks.

    L = Σ w_b CE([q·P, q·N] / T, b) / Σ w_b over the pixels q of all masks b

  Source: Van Gansbeke et al., Eq. 4, with the released weights.

  Args:
    embeddings: embeddings of the pixels of the queries, not normalized.
    masks: salient pixels of the queries.
    prototypes: L2-normalized prototypes P of the masks of the same images.
    negatives: L2-normalized prototypes N of earlier batches.
    temperature: temperature T.
  """
  queries = embedding_ops.l2_normalize_embeddings(embeddings)
  # A product with the identity: the sum over devices leaves the prototypes on
  # all of them, once, where the loop below would gather them in each round.
  everywhere = jnp.einsum(
    'bk,bd->kd',
    jnp.eye(len(prototypes), dtype=prototypes.dtype),
    prototypes,
    precision=embedding_ops.EXACT,
  )
  columns = jnp.concatenate([everywhere, negatives]).astype(queries.dtype)
  own = jnp.arange(len(queries))

  # One row of pixels at a time, of all images: the scores of all pixels would
  # not fit in memory.
  @jax.checkpoint
  def add_row(
    sums: Float[Array, 'B'], row: tuple[Array, Array]
  ) -> tuple[Float[Array, 'B'], None]:
    pixels, mask = row
    logits = jnp.einsum(
      'bwd,kd->bwk', pixels, columns, precision=embedding_ops.EXACT
    )
    labels = jnp.broadcast_to(own[:, None], mask.shape)
    loss = losses.cross_entropy(logits / temperature, labels)
    return sums + jnp.sum(jnp.where(mask, loss, 0.0), axis=1), None

  sums, _ = jax.lax.scan(
    add_row,
    jnp.zeros(len(queries), queries.dtype),
    (queries.swapaxes(0, 1), masks.swapaxes(0, 1)),
  )
  weights = mask_weights(masks).astype(queries.dtype)
  counts = jnp.sum(masks, axis=(1, 2))
  return jnp.sum(weights * sums) / jnp.sum(weights * counts)


def balanced_saliency_loss(
  logits: Float[Array, 'B H W'], masks: Bool[Array, 'B H W']
) -> Scalar:
  """Computes the binary cross entropy that balances both classes.

    (w Σ t softplus(-o) + (1 - w) Σ (1 - t) softplus(o)) / number of pixels

  w is the share of pixels with t = 0, over the whole batch.
  Source: Xie and Tu 2015 (HED), Eq. 2.

  Args:
    logits: saliency logits o.
    masks: salient pixels t.
  """
  logits = losses.at_least_float32(logits)
  share = 1.0 - jnp.mean(masks.astype(logits.dtype))
  loss = optax.sigmoid_binary_cross_entropy(logits, masks)
  return jnp.mean(jnp.where(masks, share, 1.0 - share) * loss)
