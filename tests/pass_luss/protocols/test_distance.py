"""Distance matching against the transcription."""

import functools

import jax
import numpy as np

from pass_luss.pretrain import heads
from pass_luss.protocols import (
  distance,
  frozen_encoder,
  protocol_options,
  segment,
)
from segcore.distributed import sharding
from tests.pass_luss import support
from tests.support import fake_data
from tests.transcriptions import pass_benchmark, pass_labels, pass_pretraining


def test_cells_are_classified_by_the_vote_of_regions():
  split = fake_data.labeled_split([(32, 32)] * 4)
  net = support.build_network({'logits': heads.Classifier(2)})
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  options = protocol_options.DistanceOptions(
    neighbors=3, short_side=32, batch_size=2, temperature=0.07
  )
  state = jax.device_put(
    jax.device_get(support.random_state(net)),
    sharding.replicated_sharding(mesh),
  )
  matcher = distance.DistanceMatcher(net, state, options, mesh, support.READING)
  bank = matcher.build_bank(split)
  maps, entries, ids = {}, [], []
  for i in range(4):
    record = split.records[i]
    image = segment.records.decode_record_image(record['image'])
    deep = support.deepest_features(net, jax.device_get(state), image[None])[0]
    upsampled = pass_labels.upsample(deep, 4)
    maps[record['id']] = upsampled
    label = segment.records.decode_record_label(record['label']).astype(int)
    rows, classes = pass_benchmark.bank_entries(
      upsampled, np.where(label < 0, pass_labels.IGNORE, label)
    )
    entries.append(rows)
    ids.append(classes)
  expected = pass_pretraining.normalize(np.concatenate(entries))
  np.testing.assert_array_equal(bank.labels, np.concatenate(ids))
  np.testing.assert_allclose(bank.features, expected, atol=1e-4)
  for labels, example in matcher.grid_label_function(bank)(split):
    expected_labels = pass_benchmark.knn_label_map(
      maps[example['id'].item()],
      expected,
      np.concatenate(ids),
      3,
      0.07,
      len(split.classes),
    )
    assert np.mean(labels != expected_labels) < 0.02


def test_maps_of_a_frozen_encoder_enlarged_four_times_are_the_default():
  split = fake_data.labeled_split([(32, 32)] * 4)
  net = support.build_network({})
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = jax.device_put(
    jax.device_get(support.random_state(net)),
    sharding.replicated_sharding(mesh),
  )
  options = protocol_options.DistanceOptions(short_side=32, batch_size=4)
  encoder = frozen_encoder.FrozenEncoder.build(net, state, short_side=32)
  maps = encoder.feature_maps(
    functools.partial(encoder.enlarged_features, factor=4)
  )
  banks = [
    distance.DistanceMatcher(
      net, state, options, mesh, support.READING, maps
    ).build_bank(split)
    for maps in (None, maps)
  ]
  np.testing.assert_array_equal(banks[0].labels, banks[1].labels)
  np.testing.assert_allclose(banks[0].features, banks[1].features, atol=1e-6)
