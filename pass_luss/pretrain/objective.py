"""The interface between pretraining and its objectives.

`method.Pretrain` runs the encoder once a step and calls, for each objective:

  prepare            parameters before the forward pass
  momentum_outputs   its heads on the momentum encoder's maps, no gradient
  outputs            its heads on the encoder's maps
  targets            what the outputs are compared with, no gradient
  loss               its terms of the loss
  after_update       its part of the state once the parameters were updated
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import embedding_ops, momentum, queue, view_axis
from segcore import types
from segcore.models import features, segmenter
from segcore.train import train_state

# Arrays that an objective names itself.
Arrays = Mapping[str, Array]


@flax.struct.dataclass
class State(train_state.TrainState):
  """Training state with what objectives keep from step to step.

  Attributes:
    queue: `queue.Queue` of embeddings; None if no objective needs one.
    momentum_params: parameters of the momentum encoder and of its heads; None
      if no objective needs them.
    momentum_batch_stats: running statistics of the momentum encoder, which are
      not averages of the encoder's: its own forward passes update them.
    memory: what objectives keep themselves, by objective: rings of keys,
      negatives, prototypes; None if none of them does.
  """

  queue: Any
  momentum_params: Any
  momentum_batch_stats: Any
  memory: Any = None

  def with_memory(self, name: str, memory: Any) -> 'State':
    """Returns the state with another memory of one objective.

    Args:
      name: name of the objective.
      memory: what it keeps.
    """
    return self.replace(memory={**self.memory, name: memory})


@dataclasses.dataclass(frozen=True)
class EncodedViews:
  """The encoder's maps of the views of a batch.

  Attributes:
    maps: encoder's maps of each group of views, with B·V rows: 'large', and
      'small' or 'smaller1', 'smaller2', … if there are any.
    batch: boxes and flips of the views; {} for the momentum encoder.
    batch_size: number B of images.
    by_view: whether each view was encoded by itself, with batch statistics of
      its own, and heads are to do the same.
    numbers: numbers of the large views that were encoded.
  """

  maps: Mapping[str, features.Features]
  batch: batch_lib.Batch
  batch_size: int
  by_view: bool = False
  numbers: tuple[int, ...] = (0, 1)

  @property
  def large(self) -> features.Features:
    """Returns the maps of the large views that were encoded."""
    return self.maps['large']

  def view(self, number: int) -> Float[Array, 'B h w D']:
    """Returns the deepest map of one large view."""
    return self.split(self.large.deepest.array)[:, self.numbers.index(number)]

  @property
  def smaller(self) -> list[Array]:
    """Returns the deepest map [B, h, w, D] of each smaller view, in order."""
    names = sorted(n for n in self.maps if n.startswith('smaller'))
    return [self.maps[name].deepest.array for name in names]

  def split(self, rows: Array) -> Array:
    """Reshapes [B·V, …] to [B, V, …]."""
    return view_axis.split_view_axis(rows, self.batch_size)

  def apply(self, function: Callable[[Array], Any], rows: Array) -> Any:
    """Applies a head in training mode to rows [B·V, …] of the large views.

    Args:
      function: function from rows [N, …] to a tree of arrays [N, …].
      rows: rows of all views.

    Returns:
      The tree, of arrays [B·V, …].
    """
    views = self.split(rows)
    if self.by_view:
      return view_axis.apply_to_each_view(function, views)
    return view_axis.apply_to_all_views(function, views)

  def apply_to_pooled(self, function: Callable[[Array], Any]) -> Any:
    """Applies a head in training mode to the pooled maps of the large views.

    Args:
      function: function from rows [N, D] to a tree of arrays [N, …].

    Returns:
      The tree, of arrays [B, V, …].
    """
    rows = embedding_ops.average_pool_embeddings(self.large.deepest.array)
    return jax.tree.map(self.split, self.apply(function, rows))

  def pooled(self) -> Float[Array, 'B V D']:
    """Average-pools the deepest maps of all views, the large ones first."""
    return jnp.concatenate(
      [
        self.split(embedding_ops.average_pool_embeddings(maps.deepest.array))
        for maps in self.maps.values()
      ],
      axis=1,
    )


@dataclasses.dataclass(frozen=True)
class Step:
  """Inputs of the targets and the loss of an objective, in one step.

  Attributes:
    params: parameters that the loss is differentiated with respect to.
    state: training state before the update.
    batch: boxes and flips of the views, sizes of the images.
    outputs: outputs computed from the encoder, by objective.
    momentum_outputs: outputs computed from the momentum encoder, by objective.
    targets: targets by objective; while targets are computed, only those of the
      objectives listed earlier.
    rng: PRNG key of what targets draw in this step.
  """

  params: types.Params
  state: State
  batch: batch_lib.Batch
  outputs: Mapping[str, Arrays]
  momentum_outputs: Mapping[str, Arrays]
  targets: Mapping[str, Arrays]
  rng: Array | None = None


class LossTerms(NamedTuple):
  """The result of an objective's loss.

  Attributes:
    terms: terms to be minimized, by the names under which they are logged.
    scalars: further scalars that are logged and not minimized.
  """

  terms: types.Metrics
  scalars: types.Metrics


@dataclasses.dataclass(frozen=True)
class EmbeddingSpec:
  """Schedule and preprocessing of the momentum encoder's embeddings.

  They are those of all images of the training split.

  Attributes:
    first: number of finished steps before which they are not.
    every: number of steps between them: those of an epoch.
    num_images: number of images of the training split.
    short_side: short side of the resized images, in pixels.
    crop: side of their center crop, in pixels.
  """

  first: int
  every: int
  num_images: int
  short_side: int
  crop: int


@dataclasses.dataclass(frozen=True)
class Objective:
  """One pretraining objective; a subclass annotates the class of `options`.

  Attributes:
    options: options of the objective.
    name: key of its arrays in `Step`.
    averaged: whether its terms are averaged with those of SwAV and D2S (spec
      §2.8); else they are added to that average.
    encodes_by_view: whether, where it is the only objective, each view is
      encoded by itself, with batch statistics of its own.
  """

  options: Any

  name: ClassVar[str]
  averaged: ClassVar[bool] = False
  encodes_by_view: ClassVar[bool] = False

  @property
  def views(self) -> tuple[int, ...]:
    """Returns the numbers of the large views that the encoder encodes."""
    return (0, 1)

  @property
  def momentum_views(self) -> tuple[int, ...]:
    """Returns the numbers of the large views of the momentum encoder."""
    return (0, 1)

  @property
  def needs_queue(self) -> queue.QueueSpec | None:
    """Returns the size of the queue that it reads and fills, or None."""
    return None

  @property
  def needs_momentum(self) -> momentum.MomentumSpec | None:
    """Returns the momentum encoder that it compares with, or None."""
    return None

  @property
  def needs_embeddings(self) -> EmbeddingSpec | None:
    """Returns the schedule of the embeddings that it needs, or None."""
    return None

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds its heads, by the names of their parameters."""
    raise NotImplementedError

  def initial_memory(self, rng: Array) -> Any:
    """Builds its memory before step 0; None if it keeps nothing."""
    del rng

  def prepare(self, params: types.Params) -> types.Params:
    """Returns the parameters as the forward pass takes them."""
    return params

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: EncodedViews
  ) -> Arrays:
    """Applies its heads to the momentum encoder's maps of the large views."""
    raise NotImplementedError

  def outputs(self, net: segmenter.Segmenter, views: EncodedViews) -> Arrays:
    """Applies its heads in training mode, inside the network.

    Args:
      net: the network, bound to its parameters.
      views: the encoder's maps.
    """
    raise NotImplementedError

  def targets(self, step: Step) -> Arrays:
    """Computes the targets that its outputs are compared with.

    Objectives listed later may read these targets, too.
    """
    del step
    return {}

  def loss(self, step: Step) -> LossTerms:
    """Computes its terms of the loss."""
    raise NotImplementedError

  def after_update(self, step: Step, new: State) -> State:
    """Returns the new state with the objective's own fields updated.

    Args:
      step: inputs of the loss, with the state before the update.
      new: state after the update.
    """
    del step
    return new
