"""Crops that are redrawn: by the share of a class, or until one is shown."""

import numpy as np
import pytest

from input_pipeline import crop_content, transforms

ONE = transforms.RandomCrop((4, 4), max_class_share=0.75)


def example(label):
  label = np.asarray(label, np.int16)
  # The color of a pixel is its label.
  image = np.repeat(label[..., None] + 1, 3, axis=2).astype(np.uint8)
  return {'image': image, 'label': label}


class Script:
  """A crop that returns given labels in turn, and counts its calls."""

  def __init__(self, *counts):
    self.counts = counts
    self.calls = 0

  def __call__(self, given, rng):
    del rng
    assert crop_content.REQUIRED not in given
    label = np.zeros(2000, np.int16)
    label[: self.counts[self.calls]] = 7
    self.calls += 1
    return {'label': label[None], 'number': self.calls}


@pytest.mark.parametrize(
  ('label', 'share', 'expected'),
  [
    ([0, 0, 0, 1], 0.75, False),  # The share has to be less.
    ([0, 0, 0, 1], 0.76, True),
    ([0, 0, 1, -1, -1, -1], 0.75, True),  # Ignored pixels do not count,
    ([0, 0, 0, -1, -1, -1], 1.0, False),  # nor are they a class.
    ([-1, -1], 0.75, False),
    ([5, 18], 0.75, True),
  ],
)
def test_several_classes(label, share, expected):
  assert crop_content.has_mixed_classes(np.array([label]), share) == expected


@pytest.mark.parametrize(
  ('counts', 'calls'),
  [
    ([1501], 1),  # More than 1500.
    ([1500, 0, 1502], 3),
    ([0] * 10 + [1600], 11),
    ([0] * 12, 11),  # The tenth redraw is kept unchecked.
  ],
)
def test_a_required_class_redraws_up_to_ten_times(counts, calls):
  crop = Script(*counts)
  given = {crop_content.REQUIRED: crop_content.RequiredClass(7, 1500)}
  out = crop_content.RequiredClassCrop(crop)(given, np.random.default_rng(0))
  assert crop.calls == out['number'] == calls
  assert given.keys() == {crop_content.REQUIRED}  # It is not changed.


def test_without_a_required_class_it_is_the_crop():
  crop = Script(0)
  crop_content.RequiredClassCrop(crop)({}, np.random.default_rng(0))
  assert crop.calls == 1


def test_crops_that_one_class_dominates_are_redrawn():
  label = np.zeros((4, 80))
  label[:, 40:44] = 1
  given, rng = example(label), np.random.default_rng(0)

  def shares(crop, count=200):
    labels = [crop(given, rng)['label'] for _ in range(count)]
    return np.array([np.mean(label == 1) for label in labels])

  plain, redrawn = shares(transforms.RandomCrop((4, 4))), shares(ONE)
  # At two of 77 places a crop shows two columns of each class; at the others
  # that show both, one of them has three columns, a share that is not below
  # 3/4.
  accepted = redrawn == 0.5
  fraction = 2 / 77
  np.testing.assert_allclose(np.mean(plain == 0.5), fraction, atol=0.04)
  # Ten checks, eleven draws.
  expected = 1 - (1 - fraction) ** 11
  np.testing.assert_allclose(accepted.mean(), expected, atol=0.12)


def test_redrawn_crops_of_image_and_label_agree():
  rng = np.random.default_rng(1)
  given = example(rng.integers(-1, 3, (3, 9)))  # Lower than the crop: padded.
  for _ in range(20):
    out = ONE(given, rng)
    inside = out['label'] >= 0
    np.testing.assert_array_equal(
      out['image'][inside][:, 0], out['label'][inside] + 1
    )


def test_unlabeled_images_are_not_redrawn():
  given = {'image': np.zeros((8, 8, 3), np.uint8)}
  used, plain = np.random.default_rng(0), np.random.default_rng(0)
  ONE(given, used)
  transforms.RandomCrop((4, 4))(given, plain)
  assert used.random() == plain.random()


@pytest.mark.parametrize('share', [0.0, 1.1])
def test_shares_out_of_range_are_refused(share):
  with pytest.raises(ValueError, match='max_class_share: expected'):
    transforms.RandomCrop((4, 4), max_class_share=share)
