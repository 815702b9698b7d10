"""Pairs of a passed and a drawn image, on any number of hosts."""

import numpy as np
import pytest

from input_pipeline import loader, paired_stream, samplers

NUM_RECORDS = 6


def transform(record, rng):
  return {'image': np.full((1, 1, 3), record), 'draw': rng.random()}


def read_sampler(state):
  return samplers.ClassImageSampler(np.array([0.0, 0.5, 0.5]), state)


def loader_of(batch_size=4, shard=None, every=5):
  stream = paired_stream.PairedStream(
    list(range(NUM_RECORDS)),
    transform,
    read_sampler=read_sampler,
    redraw_every=every,
  )
  other = loader.Stream(list(range(NUM_RECORDS)), transform)
  return loader.Loader(
    {'unlabeled': stream, 'labeled': other},
    batch_size,
    seed=0,
    shard=shard or loader.ProcessShard(0, 1),
  )


def shown():
  """Class 1 is shown by images 2 and 4, class 2 by none."""
  images = np.zeros((3, NUM_RECORDS), bool)
  images[1, [2, 4]] = True
  return images


def rows_of(batches, count):
  streams = [batches[k]['unlabeled'] for k in range(count)]
  return {
    name: np.concatenate([stream[name] for stream in streams])
    for name in streams[0]
  }


def test_every_second_image_is_drawn_by_its_class():
  rows = rows_of(loader_of().redrawn(shown()).batches(), 60)
  index, drawn = rows['index'], rows['drawn_class']
  np.testing.assert_array_equal(rows['image'][:, 0, 0, 0], index)
  # First images: each of them once in a pass.
  assert (drawn[::2] == paired_stream.NO_CLASS).all()
  for start in range(0, 60, NUM_RECORDS):
    passed = index[::2][start : start + NUM_RECORDS]
    assert sorted(passed) == [*range(NUM_RECORDS)]
  # Second ones: those of their class, or any where none shows it.
  drawn, index = drawn[1::2], index[1::2]
  assert set(drawn) == {1, 2} and 0.35 < (drawn == 1).mean() < 0.65
  assert set(index[drawn == 1]) == {2, 4}
  assert set(index[drawn == 2]) == {*range(NUM_RECORDS)}
  # Both of a pair have augmentations of their own.
  assert len(set(rows['draw'])) == len(rows['draw'])


def test_the_first_images_do_not_depend_on_the_sampler():
  fresh, redrawn = (
    rows_of(x.batches(), 9) for x in (loader_of(), loader_of().redrawn(shown()))
  )
  for name in ('index', 'draw'):
    np.testing.assert_array_equal(fresh[name][::2], redrawn[name][::2])
  assert set(fresh['drawn_class'][1::2]) == {0}
  assert set(fresh['index'][1::2]) <= {*range(NUM_RECORDS)}


@pytest.mark.parametrize('count', [2, 4])
def test_hosts_read_parts_of_the_same_batches(count):
  whole = loader_of().redrawn(shown()).batches()
  parts = [
    loader_of(shard=loader.ProcessShard(i, count)).redrawn(shown()).batches()
    for i in range(count)
  ]
  for k in (0, 7):
    for name in ('index', 'drawn_class', 'draw'):
      np.testing.assert_array_equal(
        np.concatenate([part[k]['unlabeled'][name] for part in parts]),
        whole[k]['unlabeled'][name],
      )


def test_streams_say_how_often_they_change():
  assert loader_of(every=5).redraw_every == 5
  plain = loader.Stream([0], transform)
  assert plain.redrawn(None) is plain
  assert loader.Loader({'': plain}, 1, 0).redraw_every == 0
  streams = {
    str(every): loader_of(every=every).streams['unlabeled'] for every in (2, 3)
  }
  with pytest.raises(ValueError, match='expected one number for all streams'):
    _ = loader.Loader(streams, 2, 0).redraw_every
