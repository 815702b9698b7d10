"""The interface of methods to the training loop, and what they share."""

import contextlib
import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
from etils import epy
from jaxtyping import Array, Float

from input_pipeline.batch import Batch
from segcore import types
from segcore.train import update as update_lib

with epy.lazy_imports():
  import flax.linen as nn

  from segcore.models import segmenter as segmenter_lib
  from segcore.train import train_state


@runtime_checkable
class Method(Protocol):
  """Interface of a training method; its functions are pure and get jitted."""

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> 'train_state.TrainState':
    """Initializes the state at step 0.

    Args:
      rng: PRNG key of the run.
      batch_spec: shapes and types of a global batch.
      loaded: subtrees of parameters and batch statistics to start from, or
        None.
    """

  def train_step(
    self, state: 'train_state.TrainState', batch: Batch
  ) -> 'train_state.StepResult':
    """Computes one step of training.

    Returns:
      The next state, and scalars to log, which the loop checks to be finite.
    """

  def predict(
    self, state: 'train_state.TrainState', images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """Predicts class scores at the network's output resolution.

    Args:
      state: the training state.
      images: images in [-1, 1].
    """


@runtime_checkable
class ScoreModel(Protocol):
  """Interface of a model that predicts scores: what evaluation needs."""

  def predict(
    self, state: 'train_state.TrainState', images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """Predicts scores of images in [-1, 1], as `Method.predict` does."""


@dataclasses.dataclass(frozen=True)
class HeadScores:
  """Model that predicts the scores of one head of a network.

  Attributes:
    segmenter: the network.
    name: name of the head.
  """

  segmenter: 'segmenter_lib.Segmenter'
  name: str = 'logits'

  def predict(
    self, state: 'train_state.TrainState', images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """Predicts scores of images in [-1, 1], in evaluation mode."""
    outputs = self.segmenter.apply(
      train_state.train_state_variables(state), images, heads=(self.name,)
    )
    return outputs[self.name]


def initial_parameters(
  method: Method,
  seed: int,
  batch_spec: types.BatchSpec,
  loaded: types.Params | None,
  part: str,
) -> types.Params:
  """Computes the parameters of one part of the network before step 0, again.

  Args:
    method: method that is trained.
    seed: seed of the training.
    batch_spec: shapes and types of a global batch.
    loaded: subtrees of parameters that the training started from, or None.
    part: name of the part: 'encoder', 'decoder' or 'heads'.
  """

  def init(rng, loaded):
    return method.init(rng, batch_spec, loaded).params[part]

  options = train_state.init_compiler_options()
  jitted = jax.jit(init, compiler_options=options)
  return jax.device_get(jitted(jax.random.PRNGKey(seed), loaded))


def training_forward_pass(
  segmenter: 'segmenter_lib.Segmenter',
  params: types.Params,
  batch_stats: types.Params,
  images: Float[Array, 'B H W 3'],
  *,
  heads: tuple[str, ...],
  train: bool | tuple[str, ...] = True,
  rng: Array | None,
  condition: Float[Array, 'B'] | None = None,
  perturb: 'segmenter_lib.Perturbation | None' = None,
) -> tuple[dict[str, Any], types.Params]:
  """Applies the network in training mode.

  Args:
    segmenter: the network.
    params: all of its parameters.
    batch_stats: all of its batch statistics.
    images: images in [-1, 1].
    heads: names of the heads to compute.
    train: parts in training mode (dropout, batch statistics), True for all; the
      others run in evaluation mode.
    rng: PRNG key of dropout and stochastic depth; None to leave both out, so
      that only batch norms are in training mode.
    condition: noise level of each image, for a conditional decoder.
    perturb: function applied to the encoder's maps before the decoder.

  Returns:
    Outputs by head, and all batch statistics after the forward pass.
  """
  drops_nothing = rng is None
  with (
    nn.intercept_methods(_skip_dropout)
    if drops_nothing
    else contextlib.nullcontext()
  ):
    outputs, updated = segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      heads=heads,
      train=train,
      condition=condition,
      perturb=perturb,
      rngs=None if drops_nothing else {'dropout': rng},
      mutable=['batch_stats'],
    )
  return outputs, {**batch_stats, **updated.get('batch_stats', {})}


def _skip_dropout(next_method: Any, args: Any, kwargs: Any, context: Any):
  """Makes every dropout of a network the identity, whatever its rate."""
  if isinstance(context.module, nn.Dropout):
    return args[0]
  return next_method(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class SingleLossMethod:
  """Base class of methods with one loss over one stream of images.

  Attributes:
    segmenter: the network.
    update: trained parts, optimizer and gradient accumulation.
  """

  segmenter: 'segmenter_lib.Segmenter'
  update: update_lib.Update

  # Head whose scores are predicted.
  head: ClassVar[str] = 'logits'

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> 'train_state.TrainState':
    """Initializes the network and the optimizer."""
    shape = batch_spec['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  def train_step(
    self, state: 'train_state.TrainState', batch: Batch
  ) -> 'train_state.StepResult':
    """Computes one step; the metric 'loss' is the mean over the count."""
    return self.update(self.loss, state, batch)

  def loss(
    self,
    params: types.Params,
    batch_stats: types.Params,
    batch: Batch,
    keys: update_lib.ForwardKeys,
  ) -> update_lib.LossOutput:
    """Computes the loss of a microbatch; implemented by subclasses."""
    raise NotImplementedError

  def predict(
    self, state: 'train_state.TrainState', images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    """Computes the scores of the head at its own resolution."""
    return self.apply(state, images, self.head)

  def forward(
    self,
    params: types.Params,
    batch_stats: types.Params,
    images: Float[Array, 'B H W 3'],
    head: str,
    keys: update_lib.ForwardKeys,
    condition: Float[Array, 'B'] | None = None,
  ) -> tuple[Array, types.Params]:
    """Applies one head in training mode; returns it with the batch statistics.

    Parts that are not trained run in evaluation mode. `condition` is the noise
    level of each image, for a conditional decoder.
    """
    outputs, batch_stats = training_forward_pass(
      self.segmenter,
      params,
      batch_stats,
      images,
      heads=(head,),
      train=self.update.trained,
      rng=keys.network,
      condition=condition,
    )
    return outputs[head], batch_stats

  def apply(
    self,
    state: 'train_state.TrainState',
    images: Array,
    head: str,
    condition: Float[Array, 'B'] | None = None,
  ) -> Array:
    """Applies one head in evaluation mode.

    `condition` is the noise level of each image, for a conditional decoder.
    """
    outputs = self.segmenter.apply(
      train_state.train_state_variables(state),
      images,
      heads=(head,),
      condition=condition,
    )
    return outputs[head]
