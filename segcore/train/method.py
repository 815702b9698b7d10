"""The contract between a method and the training loop."""

import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import update as update_lib


@runtime_checkable
class Method(Protocol):
  """One kind of training. All three functions are pure and get jitted."""

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> train_state.TrainState:
    """The state before step 0.

    Args:
      rng: the run's key.
      batch_spec: shapes and types of a global batch.
      loaded: subtrees of parameters and statistics read before, or None.
    """

  def train_step(
    self, state: train_state.TrainState, batch: batch_lib.Batch
  ) -> tuple[train_state.TrainState, types.Metrics]:
    """One update, and scalars to log; those are checked to be finite."""

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """Class scores at the network's own grid; images in [-1, 1]."""


@runtime_checkable
class ScoreModel(Protocol):
  """The part of a method that looks at images: what evaluation needs."""

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """See `Method.predict`."""


@dataclasses.dataclass(frozen=True)
class HeadScores:
  """The scores of one head of a trained network.

  Attributes:
    segmenter: the network.
    name: of the head.
  """

  segmenter: segmenter_lib.Segmenter
  name: str = 'logits'

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """In evaluation mode."""
    found = self.segmenter.apply(
      train_state.variables(state), images, heads=(self.name,)
    )
    return found[self.name]


def forward(
  segmenter: segmenter_lib.Segmenter,
  params: types.Params,
  batch_stats: types.Params,
  images: Float[Array, 'B H W 3'],
  *,
  heads: tuple[str, ...],
  train: tuple[str, ...],
  rng: Array,
  condition: Float[Array, 'B'] | None = None,
) -> tuple[dict[str, Array], types.Params]:
  """A forward pass of training: outputs by head, and the new statistics.

  Args:
    segmenter: the network.
    params: all of its parameters.
    batch_stats: all of its statistics.
    images: in [-1, 1].
    heads: which outputs.
    train: parts in training mode (dropout, batch statistics); the others run as
      in evaluation.
    rng: key of the dropout.
    condition: the noise level of each image, for a conditional decoder.
  """
  found, changed = segmenter.apply(
    {'params': params, 'batch_stats': batch_stats},
    images,
    heads=heads,
    train=train,
    condition=condition,
    rngs={'dropout': rng},
    mutable=['batch_stats'],
  )
  return found, {**batch_stats, **changed.get('batch_stats', {})}


@dataclasses.dataclass(frozen=True)
class SingleLossMethod:
  """A method that is one loss over one stream; a subclass writes the loss.

  Attributes:
    segmenter: the network.
    update: what is trained, and how.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> train_state.TrainState:
    """See `Method.init`."""
    shape = batch_spec['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  def train_step(
    self, state: train_state.TrainState, batch: batch_lib.Batch
  ) -> tuple[train_state.TrainState, types.Metrics]:
    """One update; 'loss' is the mean over what the loss counts."""
    return self.update(self.loss, state, batch)

  def loss(
    self,
    params: types.Params,
    batch_stats: types.Params,
    batch: batch_lib.Batch,
    keys: update_lib.ForwardKeys,
  ) -> update_lib.LossOutput:
    """The loss of a microbatch; see `Loss`."""
    raise NotImplementedError

  def forward(
    self,
    params: types.Params,
    batch_stats: types.Params,
    images: Float[Array, 'B H W 3'],
    head: str,
    keys: update_lib.ForwardKeys,
    condition: Float[Array, 'B'] | None = None,
  ) -> tuple[Array, types.Params]:
    """One head's output in training, and the new statistics.

    Parts that are not trained run as in evaluation. A condition is for a
    conditional decoder.
    """
    found, batch_stats = forward(
      self.segmenter,
      params,
      batch_stats,
      images,
      heads=(head,),
      train=self.update.trained,
      rng=keys.network,
      condition=condition,
    )
    return found[head], batch_stats

  def apply(
    self,
    state: train_state.TrainState,
    images: Array,
    head: str,
    condition: Float[Array, 'B'] | None = None,
  ) -> Array:
    """One head's output in evaluation; a condition is for such a decoder."""
    outputs = self.segmenter.apply(
      train_state.variables(state), images, heads=(head,), condition=condition
    )
    return outputs[head]
