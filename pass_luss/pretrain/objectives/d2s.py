"""D2S: assignments of deep features supervise shallow ones (spec §2.7).

  e_s = P_s(pool(g_s(c_s)))                embedding of stage s of the encoder
  L_s = 1/2 Σ_{i=1,2} CE(q_i, softmax(e_s(x_v)ᵀ sg(C) / τ))

q_i are SwAV's targets of the large view i and v is the other large view; C are
SwAV's prototypes, which get no gradient from here (sg).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import heads, objective, objective_options
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain.objectives import swav
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar


@dataclasses.dataclass(frozen=True)
class D2S(objective.Objective):
  """The D2S objective, on the large views.

  Attributes:
    options: stages and targets.
    sizes: widths of the heads.
    clusters: options of SwAV: temperature, and Sinkhorn's options for 'own'
      targets.
  """

  options: objective_options.D2SOptions
  sizes: objective_options.HeadSizes
  clusters: objective_options.SwavOptions

  name = 'd2s'
  averaged = True

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds g_s and P_s of each stage."""
    return {
      f'shallow{stage}': heads.Shallow(
        self.sizes.hidden,
        self.sizes.embedding,
        dtype,
        map_name=f'x{stage}',
      )
      for stage in self.options.stages
    }

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Scores the shallow embeddings of the large views, [B, 2, K], by stage."""
    outputs = {}
    for stage in self.options.stages:
      shallow = views.large.by_name(f'x{stage}').array
      embeddings = net.heads.call_method(
        f'shallow{stage}', '__call__', shallow, True
      )
      scores = net.heads.call_method('clusters', 'fixed_scores', embeddings)
      outputs[str(stage)] = views.split(scores)
    return outputs

  def targets(self, step: objective.Step) -> objective.Arrays:
    """Returns the targets q [B, 2, K] of each stage: SwAV's, or its own."""
    if self.options.targets == 'deep':
      deep = step.targets['swav']['assignments']
      return dict.fromkeys(step.outputs[self.name], deep)
    # Without a queue: that of the state holds embeddings of deep features.
    prototypes = prototypes_lib.select_prototype_parameters(step.params)
    return {
      stage: swav.swav_view_targets(scores, None, prototypes, self.clusters)
      for stage, scores in step.outputs[self.name].items()
    }

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes L_s of each stage."""
    targets = step.targets[self.name]
    terms = {
      f'loss_shallow{stage}': d2s_loss(
        scores, targets[stage], self.clusters.temperature, self.options.view
      )
      for stage, scores in step.outputs[self.name].items()
    }
    return objective.LossTerms(terms, {})


def d2s_loss(
  scores: Float[Array, 'B 2 K'],
  targets: Float[Array, 'B 2 K'],
  temperature: float,
  view: Literal['other', 'same'],
) -> Scalar:
  """Computes 1/2 Σ_i mean_b(-Σ_k q_ik log softmax(s_v / τ)_k), v = 1-i or i.

  Args:
    scores: scores of the shallow features of both views.
    targets: targets q, whose rows sum to 1.
    temperature: temperature τ.
    view: view whose scores a target is compared with.
  """
  # Both views are swapped at once, so that targets stay where they are.
  if view == 'other':
    scores = scores[:, ::-1]
  log_probs = jax.nn.log_softmax(losses.at_least_float32(scores) / temperature)
  return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))
