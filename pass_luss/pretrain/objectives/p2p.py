"""P2P: pixels of two views that show the same point get the same embedding.

PASS, the released loss (spec §2.6):

  grids  points of the overlap of views a and b, in either view
  z      = sample(p(f(v)), grid)               projected, then sampled
  p_v    = q(z_v)                              predicted
  L      = -1/2 [mean cos(p_a, sg z_b) + mean cos(p_b, sg z_a)]

The losses of the paper's ablations are in `p2p_variants`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import (
  embedding_ops,
  heads,
  objective,
  objective_options,
  view_axis,
  view_geometry,
)
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain.objectives import p2p_variants
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar


@dataclasses.dataclass(frozen=True)
class P2P(objective.Objective):
  """The P2P objective, on the large views.

  Attributes:
    options: loss and grid.
    sizes: widths of the head.
    clusters: SwAV's options, for kinds that compare with its prototypes.
  """

  options: objective_options.P2POptions
  sizes: objective_options.HeadSizes
  clusters: objective_options.SwavOptions | None

  name = 'p2p'

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projection p and the predictor q, as far as used."""
    if not self._has_head:
      return {}
    head = heads.Alignment(
      self.sizes.hidden,
      self.sizes.embedding,
      has_projection=self.options.project,
      has_predictor=self.options.predicts,
      dtype=dtype,
    )
    return {'pixels': head}

  @property
  def _has_head(self) -> bool:
    return self.options.project or self.options.predicts

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Samples the points of the overlap in both views: z, and q(z)."""
    rows, columns, overlap = view_geometry.view_overlap_grids(
      views.batch['box_large'],
      views.batch['flip_large'],
      self.options.grid,
    )
    maps = views.large.deepest.array
    if self._has_head:
      maps = net.heads.call_method('pixels', 'project', maps, True)
    # Sampled after p, as in the released code; the paper projects the samples.
    sampled = view_geometry.sample_view_maps(
      losses.at_least_float32(maps),
      view_axis.merge_view_axis(rows),
      view_axis.merge_view_axis(columns),
    )
    outputs = {'overlap': overlap, 'points': views.split(sampled)}
    if self.options.predicts:
      predicted = PREDICTIONS[self.options.predictor_statistics](
        lambda points: net.heads.call_method('pixels', 'predict', points, True),
        outputs['points'],
      )
      outputs['predicted'] = views.split(predicted)
    return outputs

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes L, by the kind's formula."""
    overlap = step.outputs[self.name]['overlap']
    return objective.LossTerms(
      {'loss_p2p': LOSSES[self.options.kind](self, step)},
      {'overlap_share': jnp.mean(overlap.astype(jnp.float32))},
    )


# How q is applied to both views, by the option `predictor_statistics`. The
# released code passes both as one batch (spec §2.6).
PREDICTIONS = {
  'joint': view_axis.apply_to_all_views,
  'per_view': view_axis.apply_to_each_view,
}


def p2p_regression_loss(
  predicted: Float[Array, 'B 2 n m D'], projected: Float[Array, 'B 2 n m D']
) -> Scalar:
  """Computes -1/2 [mean cos(p_a, sg z_b) + mean cos(p_b, sg z_a)].

  The means are over all images and points; without an overlap z is 0, so such
  images add 0.
  """
  # Without the stopped gradient and the predictor, equal embeddings everywhere
  # would be a minimum that training falls into.
  other = jax.lax.stop_gradient(projected[:, ::-1])
  return -jnp.mean(embedding_ops.cosine_similarities(predicted, other))


def _regression(p2p: P2P, step: objective.Step) -> Scalar:
  outputs = step.outputs[p2p.name]
  return p2p_regression_loss(outputs['predicted'], outputs['points'])


def _contrastive(p2p: P2P, step: objective.Step) -> Scalar:
  outputs = step.outputs[p2p.name]
  return p2p_variants.p2p_contrastive_loss(
    outputs['points'], outputs['overlap'], p2p.options.temperature
  )


def _clustering(p2p: P2P, step: objective.Step) -> Scalar:
  outputs = step.outputs[p2p.name]
  return p2p_variants.p2p_clustering_loss(
    outputs['points'],
    prototypes_lib.select_prototype_parameters(step.params),
    outputs['overlap'],
    p2p.clusters,
  )


# The loss of an objective in a step, by the option `kind`.
LOSSES: Mapping[str, Callable[[P2P, objective.Step], Scalar]] = {
  'regression': _regression,
  'contrastive': _contrastive,
  'clustering': _clustering,
}
