import io
import itertools
import multiprocessing
import os
import pathlib
import signal

import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from input_pipeline import datasets, loader, transforms, views
from input_pipeline.builders import base, shards
from input_pipeline.sources import fingerprints, records
from runtime import errors

SIZE = 6


def png(image):
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def some_records(count):
  """Yields records with random pixels; record i has the id 'i'."""
  rng = np.random.default_rng(count)
  for i in range(count):
    image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    label = rng.integers(-1, 3, (SIZE, SIZE))
    yield {
      'image': png(image),
      'label': records.encode_record_label(label, 3),
      'tags': [i % 3],
      'id': str(i).encode(),
    }


SEVEN = list(some_records(7))
AUGMENT = transforms.Compose(
  (
    transforms.Decode(3, ('label', 'tags')),
    transforms.RandomFlip(),
    transforms.RandomCrop((4, 4)),
  )
)
ALONE = loader.ProcessShard(0, 1)


def loader_of(*, batch_size=4, seed=0, shard=ALONE, reading=None, streams=None):
  return loader.Loader(
    streams or {'': loader.Stream(SEVEN, AUGMENT)},
    batch_size,
    seed,
    reading or loader.ReadOptions(),
    shard,
  )


def take(batches, count, step=0):
  with batches.start(step) as iterator:
    return [next(iterator) for _ in range(count)]


def assert_same(actual, expected):
  """Checks names, types and values of batches in lists and dicts."""
  if isinstance(actual, list):
    for one, other in zip(actual, expected, strict=True):
      assert_same(one, other)
  elif isinstance(actual, dict):
    assert set(actual) == set(expected)
    for name in actual:
      assert_same(actual[name], expected[name])
  else:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def beside(parts):
  """Returns the global batch of the parts of several hosts."""
  if 'mask' in parts[0]:
    return {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
  return {name: beside([part[name] for part in parts]) for name in parts[0]}


def ids(batches):
  return [int(i) for actual in batches for i in actual['id']]


def test_a_batch_holds_its_records():
  plain = loader.Stream(SEVEN, transforms.Decode(3, ('label', 'tags')))
  for batch in take(loader_of(streams={'': plain}), 4):
    assert batch['mask'].tolist() == [True] * 4
    for row, i in enumerate(ids([batch])):
      with PIL.Image.open(io.BytesIO(SEVEN[i]['image'])) as image:
        np.testing.assert_array_equal(batch['image'][row], image)
      with PIL.Image.open(io.BytesIO(SEVEN[i]['label'])) as label:
        shifted = np.asarray(label).astype(int)
      np.testing.assert_array_equal(batch['label'][row], shifted - 1)
      assert np.flatnonzero(batch['tags'][row]).tolist() == [i % 3]
      assert batch['size'][row].tolist() == [SIZE, SIZE]


def test_batches_partition_one_infinite_stream():
  # 28 records, with borders of epochs within the batches of four.
  single = take(loader_of(batch_size=1), 28)
  batches = take(loader_of(batch_size=4), 7)
  expected = [beside(single[4 * k : 4 * k + 4]) for k in range(7)]
  assert_same(batches, expected)


@pytest.mark.parametrize('step', [1, 3, 6])
def test_starting_at_a_step_is_a_seek(step):
  batches = take(loader_of(), 9)
  assert_same(take(loader_of(), 9 - step, step), batches[step:])


def test_seeking_far_is_immediate():
  step = 10**9
  actual, after = take(loader_of(batch_size=7), 2, step)
  assert sorted(ids([actual])) == sorted(ids([after])) == list(range(7))
  assert_same(take(loader_of(batch_size=7), 1, step + 1), [after])


def test_an_epoch_visits_every_record_once():
  order = ids(take(loader_of(), 14))
  epochs = [tuple(order[7 * i : 7 * i + 7]) for i in range(8)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(7))
  # Of 5040 orders.
  assert len(set(epochs)) == 8


def test_geometry_of_a_record_differs_between_epochs():
  seen = {i: set() for i in range(7)}
  for batch in take(loader_of(), 14):
    for i, image in zip(ids([batch]), batch['image'], strict=True):
      seen[i].add(image.tobytes())
  # Eight epochs draw from 9 places and 2 directions.
  assert min(map(len, seen.values())) >= 4


def test_the_seed_determines_order_and_geometry():
  first, again, other = (take(loader_of(seed=s), 3) for s in (3, 3, 4))
  assert_same(again, first)
  assert ids(other) != ids(first)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_read_parts_of_the_same_batches(hosts):
  parts = [
    take(loader_of(shard=loader.ProcessShard(i, hosts)), 3, step=2)
    for i in range(hosts)
  ]
  together = [beside(list(actual)) for actual in zip(*parts, strict=True)]
  assert_same(together, take(loader_of(), 3, step=2))


def test_two_streams_on_two_hosts():
  streams = {
    'labeled': loader.Stream(SEVEN[:5], AUGMENT),
    'unlabeled': loader.Stream(SEVEN, AUGMENT),
  }
  alone = take(loader_of(streams=streams), 3)
  parts = [
    take(loader_of(streams=streams, shard=loader.ProcessShard(i, 2)), 3)
    for i in (0, 1)
  ]
  together = [beside(list(actual)) for actual in zip(*parts, strict=True)]
  assert_same(together, alone)


def test_threads_change_nothing():
  expected = take(
    loader_of(reading=loader.ReadOptions(threads=1, buffered=1)), 6
  )
  actual = take(loader_of(reading=loader.ReadOptions(threads=4, buffered=3)), 6)
  assert_same(actual, expected)


def two_streams(size):
  """Returns a stream of whole images and a longer one of two small views."""
  group = views.ViewGroup('small', 2, size, (0.2, 0.9))
  crops = transforms.Compose((transforms.Decode(3), views.MultiCrop((group,))))
  return {
    'labeled': loader.Stream(SEVEN[:5], AUGMENT),
    'unlabeled': loader.Stream(SEVEN, crops),
  }


def test_worker_processes_change_nothing():
  # Two streams, the second of several resolutions, on one of two hosts.
  streams = two_streams((3, 3))
  part = loader.ProcessShard(1, 2)
  expected = take(loader_of(streams=streams, shard=part), 6, step=1)
  reading = loader.ReadOptions(threads=1, buffered=1, workers=2)
  batches = loader_of(streams=streams, shard=part, reading=reading)
  with batches.start(1) as iterator:
    host = [next(iterator) for _ in range(3)]
    workers = multiprocessing.active_children()
    for worker in workers:  # They go on until the trainer has saved.
      os.kill(worker.pid, signal.SIGTERM)
    # What went to a device stays when its shared memory is given back.
    ahead = loader.prefetch_batches(iterator, jax.device_put, ahead=1)
    device = [next(ahead) for _ in range(2)]
    assert len(workers) == 2
    assert all(worker.is_alive() for worker in workers)
  assert_same(host, expected[:3])
  assert_same(
    device, [loader.drop_host_only_keys(actual) for actual in expected[3:5]]
  )


def test_two_streams_of_different_lengths():
  streams = {
    'labeled': loader.Stream(SEVEN[:5], AUGMENT),
    'unlabeled': loader.Stream(SEVEN, AUGMENT),
  }
  batches = take(loader_of(streams=streams), 9)
  for name, length in (('labeled', 5), ('unlabeled', 7)):
    order = ids([actual[name] for actual in batches])
    assert len(order) == 36
    for start in range(0, 35, length):
      assert sorted(order[start : start + length]) == list(range(length))
  assert_same(take(loader_of(streams=streams), 2, step=7), batches[7:])


def test_streams_are_shuffled_independently():
  stream = loader.Stream(SEVEN, AUGMENT)
  batches = take(loader_of(streams={'a': stream, 'b': stream}), 7)
  pairs = [
    pair
    for actual in batches
    for pair in zip(actual['a']['id'], actual['b']['id'], strict=True)
  ]
  # 4 of 28 agree by chance; a standard deviation is 1.9.
  assert sum(one == other for one, other in pairs) < 12


def test_a_stream_does_not_depend_on_other_streams():
  streams = {
    'labeled': loader.Stream(SEVEN[:5], AUGMENT),
    'unlabeled': loader.Stream(SEVEN, AUGMENT),
  }
  both = take(loader_of(streams=streams), 3)
  only = {'labeled': streams['labeled']}
  alone = take(loader_of(streams=only), 3)
  assert_same(alone, [{'labeled': actual['labeled']} for actual in both])


def test_views_through_the_loader():
  # Red is x, green y, and blue the record.
  def ramp(i):
    image = np.full((40, 60, 3), 10 * i, np.uint8)
    image[..., 0] = np.arange(60)
    image[..., 1] = np.arange(40)[:, None]
    return {'image': png(image), 'id': str(i).encode()}

  groups = (
    views.ViewGroup('large', 2, (16, 16), (0.3, 1.0)),
    views.ViewGroup('small', 3, (8, 8), (0.1, 0.3)),
  )
  transform = transforms.Compose(
    (transforms.Decode(0), views.MultiCrop(groups))
  )
  stream = loader.Stream([ramp(i) for i in range(5)], transform)
  batches = loader_of(streams={'': stream})
  for batch in take(batches, 3):
    assert set(batch) == {
      *('views_large', 'box_large', 'flip_large'),
      *('views_small', 'box_small', 'flip_small'),
      *('size', 'id', 'mask'),
    }
    blue = 10 * batch['id'].astype(int)
    for group in groups:
      crops = batch[f'views_{group.name}'].astype(int)
      assert crops.shape == (4, group.count, *group.size, 3)
      expected = np.broadcast_to(blue[:, None, None, None], crops.shape[:4])
      np.testing.assert_array_equal(crops[..., 2], expected)
      # The middle of a view is the middle of its box, mirrored or not.
      box = batch[f'box_{group.name}'].astype(float)
      x, y = crops[..., 0].mean((2, 3)), crops[..., 1].mean((2, 3))
      middle_x = box[..., 1] + (box[..., 3] - 1) / 2
      middle_y = box[..., 0] + (box[..., 2] - 1) / 2
      np.testing.assert_allclose(x, middle_x, atol=0.6)
      np.testing.assert_allclose(y, middle_y, atol=0.6)
      falling = crops[..., 0, 0, 0] > crops[..., 0, -1, 0]
      np.testing.assert_array_equal(falling, batch[f'flip_{group.name}'])


def test_drop_host_only_removes_ids():
  plain = {'image': np.zeros(2), 'id': np.array([b'a', b'b'])}
  actual = loader.drop_host_only_keys({'labeled': plain, 'unlabeled': plain})
  assert {name: set(value) for name, value in actual.items()} == {
    'labeled': {'image'},
    'unlabeled': {'image'},
  }
  assert actual['labeled']['image'] is plain['image']


@pytest.mark.parametrize('hosts', [1, 2])
def test_element_spec_by_hand(hosts):
  batches = loader_of(shard=loader.ProcessShard(hosts - 1, hosts))
  actual = {
    name: (spec.shape, str(spec.dtype))
    for name, spec in batches.element_spec().items()
  }
  assert actual == {
    'image': ((4, 4, 4, 3), 'uint8'),
    'label': ((4, 4, 4), 'int16'),
    'tags': ((4, 3), 'bool'),
    'size': ((4, 2), 'int32'),
    'mask': ((4,), 'bool'),
  }


def test_element_spec_matches_the_batches():
  streams = two_streams((3, 5))
  hosts = [
    loader_of(streams=streams, shard=loader.ProcessShard(i, 2))
    for i in range(2)
  ]
  arrived = beside([take(host, 1)[0] for host in hosts])
  for host in hosts:
    spec = host.element_spec()
    assert set(spec) == {'labeled', 'unlabeled'}
    for name, stream in spec.items():
      assert set(stream) == set(arrived[name]) - {'id'}
      for key, leaf in stream.items():
        assert leaf.shape == arrived[name][key].shape
        assert leaf.dtype == arrived[name][key].dtype
  assert spec['unlabeled']['views_small'].shape == (4, 2, 3, 5, 3)


def test_a_batch_that_does_not_divide_among_hosts_is_refused():
  batches = loader_of(batch_size=6, shard=loader.ProcessShard(0, 4))
  with pytest.raises(errors.UserError) as caught:
    batches.batches()
  assert str(caught.value) == (
    'batch_size: expected a multiple of the 4 hosts, got 6'
  )


def test_an_empty_stream_is_refused():
  with pytest.raises(errors.UserError) as caught:
    loader.Stream([], AUGMENT)
  assert str(caught.value) == (
    'expected a stream of images, got none: check the split and the number of '
    'labels'
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'threads': 0}, 'threads: expected >= 1, got 0'),
    ({'buffered': 0}, 'buffered: expected >= 1, got 0'),
    ({'workers': -1}, 'workers: expected >= 0, got -1'),
  ],
)
def test_invalid_read_options_are_refused(arguments, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    loader.ReadOptions(**arguments)


@pytest.mark.parametrize('ahead', [0, 1, 2, 3])
def test_prefetch_keeps_order_and_stays_ahead(ahead):
  put = []

  def remember(actual):
    put.append(actual)
    return actual['step']

  source = ({'step': i, 'id': b'stays'} for i in itertools.count())
  batches = loader.prefetch_batches(source, remember, ahead)
  for step in range(6):
    assert next(batches) == step
    assert put == [{'step': i} for i in range(step + 1 + ahead)]


@pytest.mark.parametrize('count', [0, 1, 2, 5])
def test_prefetch_yields_every_batch_of_a_finite_stream(count):
  source = iter([{'step': i} for i in range(count)])
  actual = loader.prefetch_batches(source, lambda batch: batch['step'], ahead=2)
  assert list(actual) == list(range(count))


class Seven(base.Builder):
  """A data set of the seven records."""

  VERSION = tfds.core.Version('1.0.0')

  def schema(self):
    return records.Schema(tuple('abc'), ((0, 0, 0),) * 3, tags=True)

  def sources(self):
    return {'train': range(7)}

  def read_sample(self, source):
    record = SEVEN[source]
    return records.Sample(
      id=record['id'].decode(),
      image=record['image'],
      pixels=records.decode_record_image(record['image']),
      label=records.decode_record_label(record['label']),
      tags=record['tags'],
    )


@pytest.fixture
def split(tmp_path):
  made = Seven(data_dir=tmp_path)
  made.download_and_prepare()
  decoders = {
    'image': tfds.decode.SkipDecoding(),
    'label': tfds.decode.SkipDecoding(),
  }
  source = made.as_data_source('train', decoders=decoders)
  return datasets.Split(
    name='seven train',
    version='seven/1.0.0',
    classes=tuple('abc'),
    palette=((0, 0, 0),) * 3,
    label_kinds=('label', 'tags'),
    records=source,
    index=fingerprints.ImageIndex.read(
      shards.shard_index_path(pathlib.Path(made.data_dir), 'train')
    ),
  )


def test_records_on_disk_make_the_same_batches(split):
  expected = take(loader_of(), 4)
  streams = {'': loader.Stream(split.records, AUGMENT)}
  assert_same(take(loader_of(streams=streams), 4), expected)


def test_a_selection_is_read_in_its_order(split):
  assert split.ids() == list('0123456')
  chosen = split.select(np.array([5, 0, 2]))
  assert chosen.ids() == ['5', '0', '2']
  assert chosen.name == 'seven train (3 of 7 images)'
  assert (len(chosen), len(split)) == (3, 7)
  assert chosen.classes == ('a', 'b', 'c')
  assert chosen.select(np.array([2, 1])).ids() == ['2', '0']
  turned = split.select(np.arange(7)[::-1])
  assert turned.ids() == list('6543210')
  assert split.select(np.arange(7)) is split


def test_a_selection_makes_the_batches_of_its_records(split):
  expected = {'': loader.Stream([SEVEN[1], SEVEN[4], SEVEN[6]], AUGMENT)}
  chosen = split.select(np.array([1, 4, 6]))
  actual = {'': loader.Stream(chosen.records, AUGMENT)}
  assert_same(
    take(loader_of(streams=actual), 4), take(loader_of(streams=expected), 4)
  )
