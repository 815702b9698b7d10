"""SimCLR: the two views of an image among all views of the batch.

Chen et al., arXiv:2002.05709 (spec §2.2):

  z = n(g(pool(f(v))))                       2B rows, both views of B images
  s = z zᵀ / T without the diagonal
  L = mean over 2B rows of -log softmax(s_i)_{partner of i}     (NT-Xent, Eq. 1)

Gradients flow through both factors of s, of all devices.
"""

from typing import Literal

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
  view_axis,
)
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar


class Simclr(objective.Objective):
  """The SimCLR objective, on both large views together."""

  options: comparator_options.SimclrOptions

  name = 'simclr'

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projection head g of the chosen kind."""
    layers = projection_layers(self.options.head, self.options.size)
    return {self.name: projection_heads.ProjectionHead(layers, dtype=dtype)}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds both views in one pass: z, L2-normalized [B, 2, D]."""

    def embed(rows: Array) -> Array:
      projected = net.heads.call_method(self.name, 'project', rows, True)
      return embedding_ops.l2_normalize_embeddings(projected)

    return {'embeddings': views.apply_to_pooled(embed)}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the loss L, the mean or the sum of those of both views."""
    embeddings = step.outputs[self.name]['embeddings']
    loss = nt_xent_loss(embeddings, self.options.temperature)
    factor = {'mean': 1.0, 'sum': 2.0}[self.options.combine_views]
    return objective.LossTerms({'loss_simclr': factor * loss}, {})


def projection_layers(
  head: Literal['batch_256', 'released', 'paper'], size: int
) -> tuple[projection_heads.Layer, ...]:
  """Builds the layers of a head; hidden ones are as wide as the encoder."""
  if head == 'paper':
    return (
      projection_heads.Layer(0, relu=True),
      projection_heads.Layer(size, bias=False),
    )
  is_released = head == 'released'
  hidden = projection_heads.Layer(
    0, bias=False, norm='affine', relu=True, init='normal'
  )
  last = projection_heads.Layer(
    size, bias=False, norm='scale' if is_released else 'affine', init='normal'
  )
  return (hidden, hidden, last) if is_released else (hidden, last)


def nt_xent_loss(
  embeddings: Float[Array, 'B 2 D'], temperature: float
) -> Scalar:
  """Computes the normalized temperature-scaled cross entropy, NT-Xent.

  Args:
    embeddings: L2-normalized embeddings of both views.
    temperature: temperature T.
  """
  rows = view_axis.merge_view_axis(losses.at_least_float32(embeddings))
  similarities = contrast.row_similarities(rows, rows) / temperature
  own = jnp.eye(len(rows), dtype=bool)
  normalizers = jax.scipy.special.logsumexp(
    jnp.where(own, -jnp.inf, similarities), axis=-1
  )
  partners = jnp.sum(embeddings[:, 0] * embeddings[:, 1], axis=-1)
  # Both views of an image have the same positive term.
  return jnp.mean(normalizers) - jnp.mean(partners) / temperature
