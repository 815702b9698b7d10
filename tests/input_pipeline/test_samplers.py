"""Rare class sampling, against a transcription of the specification."""

import collections
import dataclasses
import math
import pickle

import numpy as np
import pytest

from input_pipeline import crop_content, loader, samplers, transforms
from runtime import errors

# Pixels of five classes in eight images; the last class never occurs.
PIXELS = np.array(
  [
    [9000, 100, 0, 0, 0],
    [9000, 200, 0, 0, 0],
    [8000, 400, 0, 30, 0],
    [8000, 300, 0, 0, 0],
    [7000, 900, 31, 60, 0],
    [9000, 31, 60, 0, 0],
    [9000, 0, 0, 31, 0],
    [9000, 0, 30, 0, 0],
  ]
)
CLASSES = ('road', 'car', 'train', 'bus', 'truck')
OPTIONS = samplers.RareClassOptions(0.1, min_pixels=30, min_crop_pixels=9)


def probabilities_by_hand(pixels, temperature):
  """P(c) of the specification, class by class in Python's floats."""
  occurring = {c: int(n) for c, n in enumerate(pixels) if n}
  total = sum(occurring.values())
  weights = {
    c: math.exp((1 - n / total) / temperature) for c, n in occurring.items()
  }
  whole = sum(weights.values())
  return [weights.get(c, 0.0) / whole for c in range(len(pixels))]


def make_sampler(pixels=PIXELS, options=OPTIONS):
  return samplers.RareClassSampler.from_pixels(pixels, options, CLASSES)


@pytest.mark.parametrize('temperature', [0.01, 0.1, 3.0])
def test_probabilities_equal_those_by_hand(temperature):
  for pixels in (PIXELS.sum(0), np.array([3, 0, 10**12, 1])):
    actual = samplers.rare_class_probabilities(pixels, temperature)
    expected = probabilities_by_hand(pixels, temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert (actual[pixels == 0] == 0).all()


def test_a_low_temperature_does_not_overflow():
  actual = samplers.rare_class_probabilities(np.array([1, 10**6]), 1e-6)
  assert actual.tolist() == [1.0, 0.0]


def test_draws_have_the_stated_frequencies():
  sampler, rng = make_sampler(), np.random.default_rng(0)
  count = 6000
  draws = [sampler.sample(rng) for _ in range(count)]
  classes = collections.Counter(draw.required.class_id for draw in draws)
  for c, p in enumerate(probabilities_by_hand(PIXELS.sum(0), 0.1)):
    sigma = math.sqrt(count * p * (1 - p))
    assert abs(classes[c] - count * p) <= 4 * sigma
  # Images of a class are uniform among those with more than 30 of its pixels.
  pairs = collections.Counter(
    (draw.required.class_id, draw.index) for draw in draws
  )
  allowed = {1: range(6), 2: (4, 5), 3: (4, 6)}
  for c, images in allowed.items():
    assert {i for k, i in pairs if k == c} == {*images}
    p = 1 / len(images)
    for i in images:
      sigma = math.sqrt(classes[c] * p * (1 - p))
      assert abs(pairs[c, i] - classes[c] * p) <= 4 * sigma
  assert {draw.required.min_pixels for draw in draws} == {9}


def test_uniform_draws():
  sampler, rng = samplers.UniformSampler(5), np.random.default_rng(0)
  draws = [sampler.sample(rng) for _ in range(2000)]
  counts = np.bincount([draw.index for draw in draws])
  assert len(counts) == 5
  assert np.abs(counts - 400).max() <= 4 * math.sqrt(2000 * 0.2 * 0.8)
  assert {draw.required for draw in draws} == {None}


def test_classes_that_no_image_shows_enough_of_are_named():
  options = samplers.RareClassOptions(min_pixels=60)
  with pytest.raises(errors.UserError) as caught:
    make_sampler(options=options)
  assert str(caught.value).splitlines() == [
    'rare_classes.min_pixels: expected less than 60, the most pixels that an '
    'image shows of train, got 60',
    'rare_classes.min_pixels: expected less than 60, the most pixels that an '
    'image shows of bus, got 60',
  ]
  with pytest.raises(errors.UserError, match='expected images with classes'):
    make_sampler(np.zeros((3, 5), int))


@pytest.mark.parametrize(
  ('field', 'value'),
  [('temperature', 0.0), ('min_pixels', -1), ('min_crop_pixels', -1)],
)
def test_options_out_of_range_are_refused(field, value):
  with pytest.raises(ValueError, match=f'{field}: expected'):
    samplers.RareClassOptions(**{field: value})


# Records of 16 pixels: record i shows class i % 3 in its last i + 1 columns.
def make_records():
  made = []
  for i in range(9):
    label = np.full((16, 16), 3)
    label[:, 15 - i :] = i % 3
    made.append(
      {
        'image': np.full((16, 16, 3), i, np.uint8),
        'label': label.astype(np.int16),
        'id': str(i).encode(),
      }
    )
  return made


RECORDS = make_records()


def decode(record, rng):
  del rng
  return dict(record)


def rare_loader(batch_size=4, shard=None):
  pixels = np.array(
    [np.bincount(r['label'].ravel(), minlength=4) for r in RECORDS]
  )
  sampler = samplers.RareClassSampler.from_pixels(
    pixels, samplers.RareClassOptions(0.1, 50, 20), CLASSES
  )
  crop = crop_content.RequiredClassCrop(transforms.RandomCrop((8, 8)))
  steps = (decode, crop, transforms.RandomFlip())
  transform = transforms.Compose(steps)
  return loader.Loader(
    {
      'source': loader.Stream(RECORDS, transform, sampler),
      'target': loader.Stream(RECORDS, transform, samplers.UniformSampler(9)),
    },
    batch_size,
    seed=5,
    reading=loader.ReadOptions(threads=1, buffered=1),
    shard=shard or loader.ProcessShard(0, 1),
  )


def take(batches, count, step=0):
  with batches.start(step) as iterator:
    return [next(iterator) for _ in range(count)]


def assert_same(actual, expected):
  for one, other in zip(actual, expected, strict=True):
    for stream in ('source', 'target'):
      for name, value in other[stream].items():
        np.testing.assert_array_equal(one[stream][name], value)


def test_starting_at_a_step_is_a_seek():
  whole = take(rare_loader(), 9)
  for step in (1, 4, 8):
    assert_same(take(rare_loader(), 9 - step, step), whole[step:])
  far = take(rare_loader(), 2, 10**9)
  assert_same(take(rare_loader(), 1, 10**9 + 1), far[1:])


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_read_parts_of_the_same_batches(hosts):
  parts = [
    take(rare_loader(shard=loader.ProcessShard(i, hosts)), 3, 2)
    for i in range(hosts)
  ]
  together = [
    {
      stream: {
        name: np.concatenate([part[stream][name] for part in of_hosts])
        for name in of_hosts[0][stream]
      }
      for stream in of_hosts[0]
    }
    for of_hosts in zip(*parts, strict=True)
  ]
  assert_same(together, take(rare_loader(), 3, 2))


def test_batch_sizes_divide_one_stream():
  single = take(rare_loader(batch_size=1), 8)
  ids = [batch['source']['id'][0] for batch in single]
  batches = take(rare_loader(batch_size=4), 2)
  assert [i for b in batches for i in b['source']['id']] == ids


def test_worker_processes_can_receive_the_stream():
  whole = rare_loader()
  streams = pickle.loads(pickle.dumps(whole.streams))
  sent = dataclasses.replace(whole, streams=streams)
  assert_same(take(sent, 3, 1), take(whole, 3, 1))


def test_crops_show_the_class_that_was_drawn():
  batches = take(rare_loader(), 40)
  sources = np.concatenate([b['source']['id'] for b in batches]).astype(int)
  labels = np.concatenate([b['source']['label'] for b in batches])
  # Class 3 fills most pixels and is next to never drawn; an image is drawn for
  # its other class if more than 50 of its 16(i + 1) pixels show it.
  assert {*sources} == {3, 4, 5, 6, 7, 8}
  shown = (labels == (sources % 3)[:, None, None]).sum((1, 2))
  # A crop shows more than 20 of them at 9 of 9·9 places at least: without
  # redraws a third of the crops would show less.
  assert np.mean(shown > 20) > 0.9
  targets = np.concatenate([b['target']['id'] for b in batches]).astype(int)
  assert {*targets} == {*range(9)}
  assert not any(crop_content.REQUIRED in b['source'] for b in batches)
