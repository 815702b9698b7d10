"""Groups of sources are read in order, and no larger than memory allows."""

import numpy as np
import pytest

from input_pipeline.builders import record_groups
from input_pipeline.sources import class_counts, fingerprints, records
from runtime import errors


def read_sample(source):
  """Reads a sample of as many rows as the source is; 3 is a bad file."""
  if source == 3:
    raise errors.BadFile('3', 'is bad')
  pixels = np.full((source, 40, 3), source, np.uint8)
  label = np.full((source, 40), source % 2, np.int16)
  return records.Sample(str(source), b'image', pixels, label, [source % 2])


def encode(sample):
  return sample.id.encode()


def test_results_are_in_the_order_of_the_sources():
  reader = record_groups.GroupReader(read_sample, encode, 2)
  first, bad, last = reader.read([1, 3, 4])
  assert isinstance(bad, errors.BadFile) and bad.reason == 'is bad'
  assert [first.record, last.record] == [b'1', b'4']
  sample = read_sample(4)
  assert last.id == '4' and last.traits is None
  assert last.counts == class_counts.count_sample(sample, 2)
  expected = fingerprints.ImageIndex.from_sample(sample)
  assert last.index.sizes.tolist() == expected.sizes.tolist() == [[4, 40]]
  assert last.index.digests == expected.digests


@pytest.mark.parametrize(('enough', 'read_before'), [(80, 2), (10**6, 4)])
def test_a_step_begins_before_samples_are_too_large(
  monkeypatch, enough, read_before
):
  monkeypatch.setattr(record_groups, '_ENOUGH_PIXELS', enough)
  events = []

  def record_event(name, function):
    def call(argument):
      events.append(name)
      return function(argument)

    return call

  reader = record_groups.GroupReader(
    record_event('read', read_sample), record_event('encode', encode), 2
  )
  assert len(reader.read([1, 1, 1, 1])) == 4
  assert events.index('encode') == read_before
  assert events.count('encode') == 4


def test_groups_are_parts_of_the_sources():
  groups = [*record_groups.divide_into_groups(range(20))]
  assert [len(group) for group in groups] == [8, 8, 4]
  assert [i for group in groups for i in group] == [*range(20)]
