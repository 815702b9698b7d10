"""MoCo v2: the key of another view among the keys of earlier batches.

He et al., arXiv:1911.05722; Chen et al., arXiv:2003.04297 (spec §2.3):

  θ_k ← m θ_k + (1 - m) θ_q               before the step (Eq. 2)
  q = n(g(pool(f(v_1))))                  queries, of the encoder
  k = n(g'(pool(f'(v_2))))                keys, of the momentum encoder
  L = InfoNCE(q, k, ring; T)              (Eq. 1)
  ring ← k                                after the step

Batch statistics are those of the whole batch, so the keys need no shuffling.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import (
  comparator_options,
  contrast,
  embedding_ops,
  momentum,
  objective,
  projection_heads,
)
from pass_luss.pretrain import queue as queue_lib
from segcore.models import segmenter
from segcore.types import Scalar


class KeyObjective(objective.Objective):
  """Base of the objectives that compare queries of a view with keys of another.

  Attributes:
    head_modules: names of the modules of the head, all of which the momentum
      encoder has.
  """

  options: comparator_options.KeyOptions

  head_modules: ClassVar[tuple[str, ...]] = ('projector',)
  # The official code encodes each view by itself, by a network of its own.
  encodes_by_view = True

  @property
  def views(self) -> tuple[int, ...]:
    """Returns the number of the view of the queries."""
    return (0,)

  @property
  def momentum_views(self) -> tuple[int, ...]:
    """Returns the number of the view of the keys."""
    return (1,)

  @property
  def needs_momentum(self) -> momentum.MomentumSpec:
    """Returns the average of the encoder and of the whole head."""
    decay = functools.partial(momentum.constant_decay, decay=self.options.decay)
    return momentum.MomentumSpec(decay, {self.name: self.head_modules})

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the head g, whose hidden layer is as wide as the encoder."""
    layers = (
      projection_heads.Layer(0, relu=True),
      projection_heads.Layer(self.options.size),
    )
    return {self.name: projection_heads.ProjectionHead(layers, dtype=dtype)}

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds the other view: keys k, L2-normalized [B, V, D]."""
    maps = [views.view(number) for number in self.momentum_views]
    return {'keys': self.embed(net, maps)}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds one view: queries q, L2-normalized [B, V, D]."""
    maps = [views.view(number) for number in self.views]
    return {'queries': self.embed(net, maps)}

  def embed(
    self, net: segmenter.Segmenter, maps: Sequence[Array]
  ) -> Float[Array, 'B V d']:
    """Embeds views, one after the other, L2-normalized.

    Args:
      net: the network, bound to its parameters.
      maps: the encoder's map of each view [B, h, w, D], of any size.
    """
    embeddings = [
      net.heads.call_method(
        self.name,
        'project',
        embedding_ops.average_pool_embeddings(each),
        True,
      )
      for each in maps
    ]
    return embedding_ops.l2_normalize_embeddings(jnp.stack(embeddings, axis=1))


class RingObjective(KeyObjective):
  """Base of the objectives whose negatives are the keys of earlier batches."""

  options: comparator_options.MocoOptions

  def image_loss(self, step: objective.Step, ring: queue_lib.Ring) -> Scalar:
    """Computes InfoNCE(q, k, ring; T), of one view of each image.

    Args:
      step: outputs of both networks.
      ring: ring as it was before this step.
    """
    return contrast.info_nce_loss(
      step.outputs[self.name]['queries'][:, 0],
      step.momentum_outputs[self.name]['keys'][:, 0],
      ring.rows,
      self.options.temperature,
    )

  def write_keys(
    self, step: objective.Step, ring: queue_lib.Ring
  ) -> queue_lib.Ring:
    """Writes the keys of this step into a ring."""
    keys = step.momentum_outputs[self.name]['keys'][:, 0]
    return queue_lib.write_ring(ring, keys)


@dataclasses.dataclass(frozen=True)
class Moco(RingObjective):
  """The MoCo v2 objective: a query of view 1, a key of view 2.

  Attributes:
    options: head, ring and momentum encoder.
  """

  name = 'moco'

  def initial_memory(self, rng: Array) -> queue_lib.Ring:
    """Builds the ring of keys, of noise."""
    return queue_lib.random_ring(rng, self.options.queue, self.options.size)

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the loss L of a batch."""
    loss = self.image_loss(step, step.state.memory[self.name])
    return objective.LossTerms({'loss_moco': loss}, {})

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Writes the keys of this step into the ring."""
    ring = self.write_keys(step, step.state.memory[self.name])
    return new.with_memory(self.name, ring)
