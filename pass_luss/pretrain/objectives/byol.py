"""BYOL: each view predicts the momentum encoder's projection of the other.

Grill et al., arXiv:2006.07733 (spec §2.5):

  p_v = q(g(pool(f(x_v)))),  z'_v = g'(pool(f'(x_v)))     of both views v
  L   = mean_b |n(p_1) - n(sg z'_2)|² + |n(p_2) - n(sg z'_1)|²      (Eq. 2)
  θ'  ← m θ' + (1 - m) θ, after the update of θ            (Eq. 1)
  m   = 1 - (1 - m_0) (cos(π t/T) + 1) / 2
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import (
  comparator_options,
  embedding_ops,
  momentum,
  objective,
  projection_heads,
)
from segcore.models import segmenter
from segcore.types import Scalar


class Byol(objective.Objective):
  """The BYOL objective, on both large views."""

  options: comparator_options.ByolOptions

  name = 'byol'
  # Separate forward passes: batch statistics are of one view.
  encodes_by_view = True

  @property
  def needs_momentum(self) -> momentum.MomentumSpec:
    """Returns the average of encoder and projector, updated after them."""
    decay = functools.partial(
      momentum.momentum_encoder_decay, initial=self.options.decay
    )
    return momentum.MomentumSpec(
      decay, {self.name: ('projector',)}, after_update=True
    )

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projector g and the predictor q, of the same layers."""
    layers = (
      projection_heads.Layer(self.options.hidden, norm='affine', relu=True),
      projection_heads.Layer(self.options.size, bias=False),
    )
    head = projection_heads.ProjectionHead(layers, layers, dtype=dtype)
    return {self.name: head}

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Projects both views: z' [B, 2, D]."""

    def project(rows: Array) -> Array:
      return net.heads.call_method(self.name, 'project', rows, True)

    return {'projections': views.apply_to_pooled(project)}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Predicts from both views: p [B, 2, D]."""

    def predict(rows: Array) -> Array:
      rows = net.heads.call_method(self.name, 'project', rows, True)
      return net.heads.call_method(self.name, 'predict', rows, True)

    return {'predictions': views.apply_to_pooled(predict)}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the loss L of both views."""
    loss = byol_loss(
      step.outputs[self.name]['predictions'],
      step.momentum_outputs[self.name]['projections'],
    )
    return objective.LossTerms({'loss_byol': loss}, {})


def byol_loss(
  predictions: Float[Array, 'B 2 D'], projections: Float[Array, 'B 2 D']
) -> Scalar:
  """Computes mean_b of 4 - 2 cos(p_1, z'_2) - 2 cos(p_2, z'_1).

  Args:
    predictions: predictions p of both views.
    projections: projections z' of both views, constants.
  """
  differences = embedding_ops.l2_normalize_embeddings(
    predictions
  ) - embedding_ops.l2_normalize_embeddings(projections[:, ::-1])
  return jnp.mean(jnp.sum(jnp.square(differences), axis=(1, 2)))
