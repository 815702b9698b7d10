"""Two networks that teach each other, which CPS and GCT share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float

from segcore import types
from segcore.train import train_state
from u2pl.semi import method


@flax.struct.dataclass
class State(train_state.TrainState):
  """Training state of two networks.

  Parameters, batch statistics and optimizer state are those of the first one.

  Attributes:
    second: `TrainState` of the second network.
  """

  second: Any


@dataclasses.dataclass(frozen=True)
class TwoNetworks(method.SemiSupervised):
  """Base class of methods of two networks, of which the first is evaluated.

  Both start from the same pretrained parts, and from different random ones.
  """

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Initializes both networks, the parts that were loaded alike."""
    first, second = (
      super(TwoNetworks, self).init(key, batch_spec, loaded)
      for key in jax.random.split(rng)
    )
    return State(**vars(first), second=second)

  def forward_both(
    self,
    params: tuple[types.Params, types.Params],
    batch_stats: tuple[types.Params, types.Params],
    streams: Sequence[Float[Array, 'B H W 3']],
    rng: Array,
  ) -> tuple[list[list[dict[str, Array]]], tuple[types.Params, types.Params]]:
    """Applies both networks to streams, one after the other as the authors do.

    Each stream has batch statistics of its own.

    Args:
      params: parameters of both networks.
      batch_stats: batch statistics of both before the passes.
      streams: images in [-1, 1].
      rng: key of the dropout.

    Returns:
      Outputs by head of each stream and network, and the batch statistics of
      both networks after the passes.
    """
    stats, results = list(batch_stats), []
    for i, images in enumerate(streams):
      results.append([])
      for j in range(2):
        key = jax.random.fold_in(rng, 2 * i + j)
        outputs, stats[j] = self.forward(params[j], stats[j], images, key)
        results[-1].append(outputs)
    return results, tuple(stats)

  def update_both(
    self,
    state: State,
    gradients: tuple[types.Params, types.Params],
    batch_stats: tuple[types.Params, types.Params],
  ) -> State:
    """Runs the optimizer step of each network.

    Args:
      state: state before the step; further fields of a subclass stay.
      gradients: gradients of both.
      batch_stats: batch statistics of both after their forward passes.
    """
    first = self.update.apply_gradients(state, gradients[0], batch_stats[0])
    second = self.update.apply_gradients(
      state.second, gradients[1], batch_stats[1]
    )
    return first.replace(second=second)
