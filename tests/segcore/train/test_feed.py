"""Batches whose stream is drawn by the state, with and without a restart."""

import numpy as np
import pytest

from input_pipeline import loader, paired_stream, samplers
from segcore.train import feed, train_state


def transform(record, rng):
  return {'image': np.full((1, 1, 3), record), 'draw': rng.random()}


def state_of(known):
  return train_state.TrainState(0, {'known': known}, {}, {}, None)


def read_sampler(state):
  """Returns the sampler of one image, the one that the state knows."""
  images = np.zeros((1, 9), bool)
  images[0, state.params['known']] = True
  return samplers.ClassImageSampler(np.ones(1), images)


def batches_from(start, every, num_steps=7, observed=None):
  """Returns the batches of steps, of which the state knows the number."""
  stream = paired_stream.PairedStream(
    list(range(9)), transform, read_sampler=read_sampler, redraw_every=every
  )
  pairs = loader.Loader({'': stream}, 2, 0, shard=loader.ProcessShard(0, 1))

  def observe(batches, step):
    observed.append(step)
    return batches

  with feed.BatchFeed(
    pairs, num_steps, lambda x: x, None if observed is None else observe
  ) as batches:
    # A state keeps what was known at the start of an interval.
    return [
      batches.next(state_of(step // every * every), step)
      for step in range(start, num_steps)
    ]


@pytest.mark.parametrize('start', [2, 3, 4])
def test_a_restart_reads_the_same_batches(start):
  observed = []
  whole = batches_from(0, every=3, observed=observed)
  assert observed == [0, 3, 6]
  drawn = [int(batch['index'][1]) for batch in whole]
  assert drawn == [0, 0, 0, 3, 3, 3, 6]
  again = batches_from(start, every=3)
  for batch, other in zip(whole[start:], again, strict=True):
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_the_end_of_the_training_ends_the_feed():
  with pytest.raises(StopIteration):
    stream = loader.Stream([0, 1], transform)
    with feed.BatchFeed(
      loader.Loader({'': stream}, 1, 0, shard=loader.ProcessShard(0, 1)),
      2,
      lambda x: x,
    ) as batches:
      for step in range(2):
        assert batches.next(state_of(0), step)['image'].shape == (1, 1, 1, 3)
      next(batches._batches)
