"""Batches of a training on its devices, step by step."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from input_pipeline import batch as batch_lib
from input_pipeline import loader as loader_lib
from segcore.train import train_state

# (batches on the host, finished steps before them) -> the same batches.
Observer = Callable[[Iterator[batch_lib.Batch], int], Iterator[batch_lib.Batch]]


class BatchFeed(contextlib.AbstractContextManager):
  """Reads and transfers the batches of a training, ahead of their use.

  Streams that are drawn by the training state are opened again at multiples of
  their interval. Between these steps a run that is resumed reads them with the
  same sampler, which is a part of the state.
  """

  def __init__(
    self,
    loader: loader_lib.Loader,
    num_steps: int,
    put: Callable[[Any], Any],
    observe: Observer | None = None,
  ):
    """Reads nothing yet.

    Args:
      loader: loader of the batches.
      num_steps: number of steps of the training.
      put: function that starts the transfer of a batch to the devices.
      observe: function that passes batches on, to record them.
    """
    self._loader = loader
    self._num_steps = num_steps
    self._put = put
    self._observe = observe
    self._end = -1  # Number of finished steps at which to open anew.
    self._batches: Iterator[Any] = iter(())
    self._opened = contextlib.ExitStack()

  def __enter__(self) -> 'BatchFeed':
    return self

  def __exit__(self, *exception: Any) -> None:
    self._opened.close()

  def next(self, state: train_state.TrainState, step: int) -> Any:
    """Returns the batch that follows a number of finished steps.

    Args:
      state: training state after these steps.
      step: number of finished steps; one more in each call.
    """
    if self._end in (-1, step):
      self._open(state, step)
    return next(self._batches)

  def _open(self, state: train_state.TrainState, step: int) -> None:
    """Opens the streams at a step, until the next one at which they change."""
    self._opened.close()
    loader, self._end = self._loader, self._num_steps
    if every := loader.redraw_every:
      loader = loader.redrawn(state)
      self._end = min(self._end, (step // every + 1) * every)
    batches = self._opened.enter_context(loader.start(step))
    batches = itertools.islice(batches, self._end - step)
    if self._observe:
      batches = self._observe(batches, step)
    self._batches = loader_lib.prefetch_batches(batches, self._put)
