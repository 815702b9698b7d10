"""PixPro: each pixel's propagated embedding agrees with the other view.

Xie et al., "Propagate Yourself", arXiv:2011.10043 (spec §2.10):

  x = g(f(v)), k = g'(f'(v))                 pixels; f', g' momentum networks
  y_i = Σ_j max(cos(x_i, x_j), 0)^γ t(x_j)   propagation (Eq. 3, 4)
  A(i, j) = distance of cells i, j < 𝒯       positive pairs (Eq. 1)
  L = -2 mean_A cos(y_i, k_j), from view 1 to 2 plus from 2 to 1   (Eq. 5)

The factor 2 is the official code's. The paper's loss on whole images is not
used (its weight is 0).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import (
  embedding_ops,
  heads,
  momentum,
  objective,
  objective_options,
  view_geometry,
)
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Cells, Scalar


class Pixpro(objective.Objective):
  """The PixPro objective, on the large views."""

  options: objective_options.PixproOptions

  name = 'pixpro'
  # The official model encodes and projects one view after the other. Other
  # objectives share the encoder's pass over all views of a size (spec §2.3).
  encodes_by_view = True

  @property
  def needs_momentum(self) -> momentum.MomentumSpec:
    """Returns the momentum average of the encoder and of the projector g."""
    return momentum.MomentumSpec(
      functools.partial(
        momentum.momentum_encoder_decay, initial=self.options.decay
      ),
      {'pixpro': ('projector',)},
    )

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projector g and the transform t."""
    head = heads.PixproHead(self.options.hidden, self.options.size, dtype=dtype)
    return {'pixpro': head}

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds the pixels of the large views: keys k, L2-normalized."""
    # Without the propagation: keys are the pixels themselves (x' in the paper).
    pixels = _project(net, views)
    keys = views.split(embedding_ops.l2_normalize_embeddings(pixels))
    return {'keys': keys.reshape(*keys.shape[:2], -1, keys.shape[-1])}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Returns the propagated pixel embeddings of the large views (y)."""
    pixels = _project(net, views)
    transformed = net.heads.call_method('pixpro', 'apply_transform', pixels)
    propagated = propagate_pixels(pixels, transformed, self.options.power)
    return {'propagated': views.split(propagated)}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes L, in both directions."""
    keys = step.momentum_outputs[self.name]['keys']
    propagated = step.outputs[self.name]['propagated']
    positive = view_geometry.nearby_view_cells(
      step.batch['box_large'],
      step.batch['flip_large'],
      step.batch['size'],
      propagated.shape[2:4],
      self.options.distance,
    )
    # From view 2 to 1 the same pairs count, with their order exchanged.
    propagated = propagated.reshape(keys.shape)
    total = pixpro_loss(propagated[:, 0], keys[:, 1], positive) + pixpro_loss(
      propagated[:, 1], keys[:, 0], jnp.swapaxes(positive, 1, 2)
    )
    return objective.LossTerms({'loss_pixpro': total}, {})


def _project(
  net: segmenter.Segmenter, views: objective.EncodedViews
) -> Float[Array, 'BV h w D']:
  """Applies the projector g to the pixels of the large views."""
  return views.apply(
    lambda maps: net.heads.call_method('pixpro', 'project', maps, True),
    views.large.deepest.array,
  )


def propagate_pixels(pixels: Cells, transformed: Cells, power: float) -> Cells:
  """Computes y_i = Σ_j max(cos(x_i, x_j), 0)^γ v_j, L2-normalized.

  Args:
    pixels: projected pixels x.
    transformed: transformed pixels t(x), which are L2-normalized here to v.
    power: exponent γ; a larger one gives dissimilar pixels less weight.
  """
  batch, *_, size = pixels.shape
  flat = embedding_ops.l2_normalize_embeddings(pixels).reshape(batch, -1, size)
  values = embedding_ops.l2_normalize_embeddings(transformed).reshape(
    batch, -1, size
  )
  exact = embedding_ops.EXACT
  cosines = jnp.einsum('bid,bjd->bij', flat, flat, precision=exact)
  # A pixel is similar to itself (cos 1), so the sum is never 0; opposite pixels
  # add nothing.
  similarity = jnp.maximum(cosines, 0.0) ** power
  summed = jnp.einsum('bij,bjd->bid', similarity, values, precision=exact)
  return embedding_ops.l2_normalize_embeddings(summed).reshape(pixels.shape)


def pixpro_loss(
  propagated: Float[Array, 'B hw D'],
  keys: Float[Array, 'B hw D'],
  positive: Bool[Array, 'B hw hw'],
) -> Scalar:
  """Computes -2 mean_b(Σ_A y_i·k_j / (|A| + 1e-6)).

  An image without positive pairs contributes 0, but counts in the mean.

  Args:
    propagated: L2-normalized embeddings y of one view.
    keys: L2-normalized embeddings k of the other view.
    positive: mask A of the positive pairs (i, j).
  """
  scores = jnp.einsum(
    'bid,bjd->bij',
    losses.at_least_float32(propagated),
    losses.at_least_float32(keys),
    precision=embedding_ops.EXACT,
  )
  # Views without an overlap have no pairs: 0 / 1e-6, not 0 / 0.
  count = jnp.sum(positive, axis=(1, 2))
  total = jnp.sum(jnp.where(positive, scores, 0.0), axis=(1, 2))
  return -2.0 * jnp.mean(total / (count + 1e-6))
