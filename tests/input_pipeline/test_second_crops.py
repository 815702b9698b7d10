"""Two crops of an image: a pixel's value tells where it comes from."""

import numpy as np

from input_pipeline import batch as batch_lib
from input_pipeline import second_crops, transforms

SIZE = (4, 4)


def decode(record, rng):
  del rng
  image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1).repeat(3, 2)
  return {'image': image, 'valid': np.ones((10, 10), bool), 'id': record['id']}


def test_both_crops_are_of_the_same_image_with_draws_of_their_own():
  transform = second_crops.SecondCrops(decode, transforms.RandomCrop(SIZE))
  example = transform({'id': b'a'}, np.random.default_rng(0))
  assert {*example} == {'image', 'valid', 'id', 'second_image', 'second_valid'}
  corners = [int(example[name][0, 0, 0]) for name in ('image', 'second_image')]
  assert corners[0] != corners[1]
  for name, corner in zip(('image', 'second_image'), corners, strict=True):
    rows = corner + 10 * np.arange(4)[:, None] + np.arange(4)
    np.testing.assert_array_equal(example[name][..., 0], rows)
  second = second_crops.second_crop(example)
  assert second['image'] is example['second_image']
  assert {*second} == {'image', 'valid'}


def test_the_spec_of_a_batch_has_the_maps_of_both_crops():
  spec = batch_lib.batch_spec(2, SIZE, label=True, valid=True, two_crops=True)
  assert spec['second_image'] == spec['image']
  assert spec['second_valid'] == spec['valid']
  assert 'second_label' not in spec
