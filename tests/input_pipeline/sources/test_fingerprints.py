import io
import os
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline.builders import shapes
from input_pipeline.sources import fingerprints, records
from runtime import errors

needs_photographs = pytest.mark.skipif(
  'SEG_DATA_DIR' not in os.environ,
  reason='SEG_DATA_DIR, the folder with camvid in it, is not set',
)


def encoded(pixels, kind='PNG', **options):
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def sample(name, image):
  return records.Sample(name, image, records.decode_record_image(image))


def noise(seed, size=(40, 60)):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
  return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def index_of(names, first=0):
  return fingerprints.ImageIndex.from_samples(
    [sample(name, encoded(noise(first + i))) for i, name in enumerate(names)]
  )


def test_an_index_is_written_and_read_back(tmp_path):
  made = index_of(['a', 'bb/c'])
  made.write(tmp_path / 'index.npz')
  actual = fingerprints.ImageIndex.read(tmp_path / 'index.npz')
  assert actual.names() == ['a', 'bb/c']
  assert actual.sizes.tolist() == [[40, 60], [40, 60]]
  np.testing.assert_array_equal(actual.digests, made.digests)
  np.testing.assert_array_equal(
    actual.perceptual_hashes, made.perceptual_hashes
  )
  assert len(actual) == 2
  assert actual.select(np.array([1])).names() == ['bb/c']
  assert len(fingerprints.ImageIndex.from_samples([])) == 0


def test_digests_differ_with_a_bit():
  data = encoded(noise(0))
  other = data[:-1] + bytes([data[-1] ^ 1])
  assert fingerprints.image_digest(data) == fingerprints.image_digest(
    bytes(data)
  )
  assert fingerprints.image_digest(data) != fingerprints.image_digest(other)


@pytest.mark.parametrize(
  'size',
  [(375, 500), (33, 35), (334, 250), (32, 50), (31, 70), (480, 640), (100, 64)],
)
def test_thumbnails_are_those_of_opencv_to_the_bit(size):
  for seed in range(5):
    gray = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    expected = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA)
    actual = fingerprints.shrink_gray_image(gray)
    np.testing.assert_array_equal(actual, expected)


def test_splits_without_common_images_pass():
  train, val = index_of(['a', 'b']), index_of(['c', 'd'], first=2)
  fingerprints.check_splits_disjoint(train, val, ('train', 'val'))


def test_an_image_of_the_same_name_is_refused():
  train, val = index_of(['a', 'b']), index_of(['c', 'b'], first=2)
  with pytest.raises(errors.UserError) as caught:
    fingerprints.check_splits_disjoint(train, val, ('x train', 'x val'))
  assert str(caught.value) == (
    'x train and x val share images by their name: b is b; take them out of '
    'one of the two'
  )


def test_an_image_of_the_same_bytes_is_refused():
  train, val = index_of(['a', 'b', 'c']), index_of(['d', 'e'], first=1)
  with pytest.raises(errors.UserError) as caught:
    fingerprints.check_splits_disjoint(train, val, ('x train', 'x val'))
  message = str(caught.value)
  assert message.startswith('x train and x val share images by their content: ')
  assert ' and 1 more; ' in message
  assert 'b is d' in message or 'c is e' in message


def test_only_images_shared_with_held_out_splits_are_described():
  image = encoded(noise(7))
  again = encoded(noise(7), 'JPEG', quality=60)
  indices = {
    'train': fingerprints.ImageIndex.from_samples([sample('t', image)]),
    'train_aug': fingerprints.ImageIndex.from_samples([sample('t', image)]),
    'val': fingerprints.ImageIndex.from_samples([sample('v', again)]),
  }
  assert fingerprints.describe_shared_images(indices) == [
    f'{split} and val share images by appearance, 1 pair: t = v; scores on '
    'val may be too good'
    for split in ('train', 'train_aug')
  ]


def planted(images):
  """100 images, encoded or scaled again."""
  rng = np.random.default_rng(0)
  leaks = []
  for i in range(100):
    pixels = records.decode_record_image(images[i])
    match i % 4:
      case 0 | 1:
        quality = int(rng.integers(30, 96))
        again = encoded(pixels, 'JPEG', quality=quality)
      case 2:
        again = encoded(pixels)
      case 3:
        size = (np.array(pixels.shape[1::-1]) * rng.uniform(0.5, 2)).astype(int)
        small = cv2.resize(pixels, size.tolist(), interpolation=cv2.INTER_AREA)
        again = encoded(small, 'JPEG', quality=80)
    leaks.append(again)
  return leaks


def check_planted(images):
  """Plants 100 leaks each by name, bytes and appearance.

  Returns:
    Numbers of leaks by appearance that are found, and of false alarms.
  """
  train = fingerprints.ImageIndex.from_samples(
    [sample(f'train/{i}', image) for i, image in enumerate(images[:200])]
  )
  others = images[200:]
  similar = planted(images)
  val = fingerprints.ImageIndex.from_samples(
    [
      *(sample(f'train/{i}', others[i]) for i in range(100)),
      *(sample(f'val/bytes{i}', images[i]) for i in range(100)),
      *(sample(f'val/similar{i}', again) for i, again in enumerate(similar)),
    ]
  )
  assert len(np.intersect1d(train.ids, val.ids)) == 100
  assert len(np.intersect1d(train.digests, val.digests)) == 100
  pairs = fingerprints.near_duplicate_images(
    train.perceptual_hashes, val.perceptual_hashes[200:]
  )
  return sum(i == j for i, j in pairs), sum(i != j for i, j in pairs)


def test_planted_leaks_among_drawings_are_found():
  config = shapes.Shapes.BUILDER_CONFIGS[0]
  images = [
    shapes.draw_labeled_scene(config, 'train', i).image for i in range(300)
  ]
  actual, wrong = check_planted(images)
  assert actual >= 95
  assert wrong == 0  # Of 19,900 pairs of different images.


@pytest.mark.slow
@needs_photographs
def test_planted_leaks_among_photographs_are_found():
  folder = pathlib.Path(os.environ['SEG_DATA_DIR'], 'camvid', 'train', 'images')
  files = sorted(folder.glob('*.jpg'))[:300]
  actual, _ = check_planted([file.read_bytes() for file in files])
  # False alarms are expected: neighboring frames of a film are similar.
  assert actual >= 95


@needs_photographs
def test_different_photographs_have_distant_hashes():
  folder = pathlib.Path(os.environ['SEG_DATA_DIR'], 'camvid', 'train', 'images')
  # Every tenth frame: ten seconds lie between two of them.
  files = sorted(folder.glob('*.jpg'))[::10]
  hashes = fingerprints.ImageIndex.from_samples(
    [sample(file.stem, file.read_bytes()) for file in files]
  ).perceptual_hashes
  pairs = fingerprints.near_duplicate_images(hashes, hashes)
  assert sum(i < j for i, j in pairs) <= 1


def test_near_duplicates_differ_in_few_bits():
  hashes = np.array([0, 0b111, 2**64 - 1], np.uint64)
  assert fingerprints.near_duplicate_images(
    hashes[:1], hashes, max_distance=2
  ) == [(0, 0)]
  assert fingerprints.near_duplicate_images(
    hashes[:1], hashes, max_distance=3
  ) == [
    (0, 0),
    (0, 1),
  ]
  assert fingerprints.near_duplicate_images(
    hashes[:1], hashes, max_distance=64
  ) == [
    (0, 0),
    (0, 1),
    (0, 2),
  ]
