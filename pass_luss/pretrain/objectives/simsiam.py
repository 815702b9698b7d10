"""SimSiam: each view predicts the other's projection, a constant.

Chen and He, arXiv:2011.10566 (spec §2.6):

  z_v = g(pool(f(x_v))),  p_v = h(z_v)        of both views v
  L   = -1/2 [mean_b cos(p_1, sg z_2) + mean_b cos(p_2, sg z_1)]   (Eq. 4)

The learning rate of the predictor h does not follow the schedule: a matter of
the optimizer (`constant_rate`).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import (
  comparator_options,
  embedding_ops,
  objective,
  projection_heads,
  view_axis,
)
from pass_luss.pretrain.objectives import swav
from segcore.models import segmenter
from segcore.types import Scalar

# Pattern of the parameters of the predictor, for `constant_rate`.
PREDICTOR = '^heads/simsiam/predictor/'


class Simsiam(objective.Objective):
  """The SimSiam objective, on both large views."""

  options: comparator_options.SimsiamOptions

  name = 'simsiam'
  # Separate forward passes: batch statistics are of one view.
  encodes_by_view = True

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projector g and the predictor h."""
    hidden = projection_heads.Layer(0, bias=False, norm='affine', relu=True)
    # The official code has a bias in the last layer of the projector that is
    # never trained; the norm after it subtracts it again.
    last = projection_heads.Layer(self.options.size, bias=False, norm='plain')
    predictor = (
      dataclasses.replace(hidden, size=self.options.hidden),
      projection_heads.Layer(self.options.size),
    )
    head = projection_heads.ProjectionHead(
      (hidden, hidden, last), predictor, dtype=dtype
    )
    return {self.name: head}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Projects and predicts from both views: z and p, [B, 2, D]."""

    def apply(rows: Array) -> objective.Arrays:
      projected = net.heads.call_method(self.name, 'project', rows, True)
      predicted = net.heads.call_method(self.name, 'predict', projected, True)
      return {'projections': projected, 'predictions': predicted}

    return views.apply_to_pooled(apply)

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes L, and the spread of the projections, 0 after a collapse."""
    outputs = step.outputs[self.name]
    loss = simsiam_loss(outputs['predictions'], outputs['projections'])
    rows = view_axis.merge_view_axis(outputs['projections'])
    spread = swav.embedding_deviation(
      embedding_ops.l2_normalize_embeddings(rows)
    )
    return objective.LossTerms(
      {'loss_simsiam': loss}, {'embedding_spread': spread}
    )


def simsiam_loss(
  predictions: Float[Array, 'B 2 D'], projections: Float[Array, 'B 2 D']
) -> Scalar:
  """Computes -1/2 [mean cos(p_1, sg z_2) + mean cos(p_2, sg z_1)].

  Args:
    predictions: predictions p of both views.
    projections: projections z of both views.
  """
  other = jax.lax.stop_gradient(projections[:, ::-1])
  return -jnp.mean(embedding_ops.cosine_similarities(predictions, other))
