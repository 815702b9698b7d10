import dataclasses
import pickle

import numpy as np
import pytest

from input_pipeline import transforms, views
from tests.support import fake_data

HEIGHT, WIDTH = 150, 200
LARGE = views.ViewGroup('large', 2, (64, 48), area=(0.14, 1.0))
SMALL = views.ViewGroup('small', 6, (32, 40), area=(0.05, 0.14))


@pytest.fixture
def ramp():
  """Red is x, green is y."""
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  image[..., 0] = np.arange(WIDTH)
  image[..., 1] = np.arange(HEIGHT)[:, None]
  return {
    'image': image,
    'label': np.zeros((HEIGHT, WIDTH), np.int16),
    'size': np.array([HEIGHT, WIDTH], np.int32),
    'id': np.bytes_(b'ramp'),
  }


def sample_positions(start, length, count):
  """Returns `count` half-pixel positions in [start, start + length)."""
  at = [(i + 0.5) * length / count - 0.5 for i in range(count)]
  return start + np.clip(at, 0, length - 1)


def test_views_match_their_boxes_and_flips(ramp):
  crop = views.MultiCrop((LARGE, SMALL))
  shown = {True: 0, False: 0}
  for seed in range(10):
    actual = crop(ramp, np.random.default_rng(seed))
    for group in (LARGE, SMALL):
      height, width = group.size
      pixels = actual[f'views_{group.name}']
      assert pixels.shape == (group.count, height, width, 3)
      assert pixels.dtype == np.uint8
      boxes, flips = actual[f'box_{group.name}'], actual[f'flip_{group.name}']
      assert boxes.shape == (group.count, 4) and boxes.dtype == np.float32
      assert flips.shape == (group.count,) and flips.dtype == bool
      for view, (t, left, h, w), flip in zip(pixels, boxes, flips, strict=True):
        assert t >= 0 and t + h <= HEIGHT and left >= 0 and left + w <= WIDTH
        x, y = sample_positions(left, w, width), sample_positions(t, h, height)
        x = x[::-1] if flip else x
        expected = np.zeros(view.shape)
        expected[..., 0] = x
        expected[..., 1] = y[:, None]
        np.testing.assert_allclose(view, expected, atol=1)
        shown[bool(flip)] += 1
  # Of 80 views half are mirrored; four standard deviations are 18.
  assert abs(shown[True] - shown[False]) <= 36


@pytest.mark.parametrize('rules', ['simclr', 'byol'])
def test_bicubic_views_match_their_boxes_and_flips(rules, ramp):
  group = dataclasses.replace(LARGE, rules=rules, area=(0.3, 1.0))
  shown = set()
  for seed in range(10):
    actual = views.MultiCrop((group,))(ramp, np.random.default_rng(seed))
    for view, (t, left, h, w), flip in zip(
      actual['views_large'],
      actual['box_large'],
      actual['flip_large'],
      strict=True,
    ):
      assert t >= 0 and t + h <= HEIGHT and left >= 0 and left + w <= WIDTH
      shift = 0.0 if rules == 'simclr' else 0.5
      x, y = (
        start + (np.arange(count) + shift) * length / count - shift
        for start, length, count in ((left, w, 48), (t, h, 64))
      )
      expected = np.zeros(view.shape)
      expected[..., 0] = x[::-1] if flip else x
      expected[..., 1] = y[:, None]
      # Bytes are rounded, and the kernel of SimCLR bends a ramp by 0.05; its
      # outermost pixels are at the border of the crop.
      np.testing.assert_allclose(
        view[2:-2, 2:-2], expected[2:-2, 2:-2], atol=0.56
      )
      shown.add(bool(flip))
  assert shown == {True, False}


def test_boxes_have_the_given_area_and_aspect(ramp):
  crop = views.MultiCrop((LARGE, SMALL))
  for seed in range(50):
    actual = crop(ramp, np.random.default_rng(seed))
    for group in (LARGE, SMALL):
      for _, _, h, w in actual[f'box_{group.name}'].astype(float):
        # Sides are rounded to pixels.
        assert (h + 0.5) * (w + 0.5) >= group.area[0] * HEIGHT * WIDTH
        assert (h - 0.5) * (w - 0.5) <= group.area[1] * HEIGHT * WIDTH
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        assert (w - 0.5) / (h + 0.5) <= 4 / 3


def test_views_replace_image_and_label(ramp):
  actual = views.MultiCrop((LARGE,))(ramp, np.random.default_rng(0))
  assert set(actual) == {'views_large', 'box_large', 'flip_large', 'size', 'id'}
  assert actual['size'].tolist() == [HEIGHT, WIDTH]
  assert actual['id'] == b'ramp'


def test_views_of_an_image_differ_from_each_other(ramp):
  crop = views.MultiCrop((LARGE, SMALL))
  actual = crop(ramp, np.random.default_rng(0))
  boxes = np.concatenate([actual['box_large'], actual['box_small']])
  assert len(np.unique(boxes, axis=0)) == 8


def test_a_view_of_the_whole_image_is_the_image(ramp):
  whole = views.ViewGroup(
    'whole', 2, (HEIGHT, WIDTH), (1.0, 1.0), (4 / 3, 4 / 3), flip=0.0
  )
  actual = views.MultiCrop((whole,))(ramp, np.random.default_rng(0))
  np.testing.assert_array_equal(actual['views_whole'], [ramp['image']] * 2)
  assert actual['box_whole'].tolist() == [[0, 0, HEIGHT, WIDTH]] * 2
  assert actual['flip_whole'].tolist() == [False, False]


def test_a_flip_probability_of_1_always_flips(ramp):
  whole = views.ViewGroup(
    'whole', 1, (HEIGHT, WIDTH), (1.0, 1.0), (4 / 3, 4 / 3), flip=1.0
  )
  actual = views.MultiCrop((whole,))(ramp, np.random.default_rng(0))
  assert actual['flip_whole'].tolist() == [True]
  # 199 is the rightmost column.
  assert actual['views_whole'][0, 0, :3, 0].tolist() == [199, 198, 197]


def test_the_generator_determines_the_result_also_after_pickling(ramp):
  crop = views.MultiCrop((LARGE, SMALL))
  sent = pickle.loads(pickle.dumps(crop))
  first = crop(ramp, np.random.default_rng(5))
  second = sent(ramp, np.random.default_rng(5))
  other = crop(ramp, np.random.default_rng(6))
  for name, value in first.items():
    np.testing.assert_array_equal(second[name], value)
  assert not np.array_equal(first['box_large'], other['box_large'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'count': 0}, 'views large: expected count >= 1, got 0'),
    ({'size': (0, 8)}, r'size: expected .* got \(0, 8\)'),
    ({'area': (0.0, 1.0)}, r'area: expected .* got \(0\.0, 1\.0\)'),
    ({'area': (0.5, 0.2)}, r'area: expected .* got \(0\.5, 0\.2\)'),
    ({'aspect': (-1.0, 1.0)}, r'aspect: expected .* got \(-1\.0, 1\.0\)'),
    ({'flip': 2.0}, r'flip: expected 0 to 1, got 2\.0'),
    (
      {'rules': 'byol', 'antialias': True},
      'views large: expected antialias=False with rules=byol',
    ),
  ],
)
def test_invalid_views_are_refused(changes, message):
  arguments = {'name': 'large', 'count': 2, 'size': (8, 8), 'area': (0.5, 1.0)}
  with pytest.raises(ValueError, match=f'^{message}'):
    views.ViewGroup(**(arguments | changes))


def test_groups_of_the_same_name_are_refused():
  with pytest.raises(
    ValueError,
    match=r"groups: expected one or more .* got \('large', 'large'\)",
  ):
    views.MultiCrop((LARGE, LARGE))


def test_bicubic_views_with_label_maps_are_refused():
  group = dataclasses.replace(LARGE, rules='simclr')
  with pytest.raises(ValueError, match="rules='torchvision' with label maps"):
    views.MultiCrop((group,), with_labels=True)


def test_views_compose_with_other_transforms(ramp):
  # The box is in pixels of the image that the views are cut from.
  crop = transforms.Compose(
    (transforms.RandomFlip(1.0), views.MultiCrop((LARGE,)))
  )
  actual = crop(ramp, np.random.default_rng(1))
  for view, (_, left, _, w), flip in zip(
    actual['views_large'],
    actual['box_large'],
    actual['flip_large'],
    strict=True,
  ):
    x = WIDTH - 1 - sample_positions(left, w, 48)
    expected = x[::-1] if flip else x
    np.testing.assert_allclose(view[0, :, 0], expected, atol=1)


def test_views_show_their_boxes():
  source = fake_data.multi_view_loader()
  with source.start(1) as batches:
    batch = next(batches)
  flips = []
  for group, size in (('large', 24), ('small', 16)):
    for row, name in enumerate(batch['id']):
      for view, (top, left, height, width), flip in zip(
        batch[f'views_{group}'][row],
        batch[f'box_{group}'][row],
        batch[f'flip_{group}'][row],
        strict=True,
      ):
        # Where the middle of each pixel of the view lies in the image.
        along = (np.arange(size) + 0.5) / size
        x = left + np.clip(along * width - 0.5, 0, width - 1)
        y = top + np.clip(along * height - 0.5, 0, height - 1)
        x = x[::-1] if flip else x
        expected = np.stack(
          np.broadcast_arrays(5 * x, 6 * y[:, None], 10 * int(name[-2:])), -1
        )
        # Half a unit is a tenth of a pixel; the resize rounds to units.
        assert np.abs(view - expected).max() <= 1
        flips.append(bool(flip))
  assert len(flips) == fake_data.BATCH_SIZE * (2 + 3)
  assert 5 < sum(flips) < 35
  spec = source.element_spec()
  assert spec['views_large'].shape == (8, 2, 24, 24, 3)
  assert spec['box_small'].dtype == np.float32
