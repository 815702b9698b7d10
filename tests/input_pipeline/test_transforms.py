import pickle

import numpy as np
import PIL.Image
import pytest

from input_pipeline import crop_boxes, transforms
from input_pipeline.sources import records
from runtime import errors
from tests.support import images


def test_resize_of_an_example(example):
  actual = transforms.resize_example(example, (4, 3))
  # Rows at -0.25, 0.25, 0.75 and 1.25: 10 + 0, 7.5, 22.5, 30.
  np.testing.assert_allclose(
    actual['image'][:, 0, 0].astype(int), [10, 17.5, 32.5, 40], atol=1
  )
  assert actual['label'].tolist() == [[1, 2, 3]] * 2 + [[4, 5, 6]] * 2
  assert actual['id'] == b'a'
  unchanged = transforms.resize_example(example, (2, 3))
  assert images.gray_and_label(unchanged) == images.gray_and_label(example)


def test_crop_inside(example):
  actual = transforms.crop_example(example, crop_boxes.Box(1, 1, 1, 2))
  assert images.gray_and_label(actual) == ([[50, 60]], [[5, 6]])
  assert actual['id'] == b'a'


@pytest.mark.parametrize(
  ('box', 'image', 'label'),
  [
    (  # Beyond the top left.
      (-1, -2, 2, 3),
      [[127, 127, 127], [127, 127, 10]],
      [[-1, -1, -1], [-1, -1, 1]],
    ),
    (  # Beyond the bottom right.
      (1, 2, 2, 2),
      [[60, 127], [127, 127]],
      [[6, -1], [-1, -1]],
    ),
    (  # On all sides.
      (-1, -1, 4, 5),
      [
        [127, 127, 127, 127, 127],
        [127, 10, 20, 30, 127],
        [127, 40, 50, 60, 127],
        [127, 127, 127, 127, 127],
      ],
      [
        [-1, -1, -1, -1, -1],
        [-1, 1, 2, 3, -1],
        [-1, 4, 5, 6, -1],
        [-1, -1, -1, -1, -1],
      ],
    ),
    ((5, 0, 1, 2), [[127, 127]], [[-1, -1]]),  # Outside: below,
    ((0, 4, 2, 1), [[127], [127]], [[-1], [-1]]),  # to the right,
    ((-9, 0, 1, 2), [[127, 127]], [[-1, -1]]),  # above,
    ((1, -8, 1, 2), [[127, 127]], [[-1, -1]]),  # and to the left.
  ],
)
def test_crop_outside_is_padding(example, box, image, label):
  actual = transforms.crop_example(example, crop_boxes.Box(*box))
  assert images.gray_and_label(actual) == (image, label)


def test_crop_without_a_label(example):
  actual = transforms.crop_example(
    {'image': example['image']}, crop_boxes.Box(0, 2, 1, 2)
  )
  assert set(actual) == {'image'}
  np.testing.assert_array_equal(actual['image'], images.rgb([[30, 127]]))


@pytest.mark.parametrize(('fill', 'padding'), [('mean', 0), ('paper', 1)])
def test_valid_is_false_on_ignored_padding(fill, padding):
  record = {'image': images.png(images.rgb([[1, 2, 3], [4, 5, 6]])), 'id': b'a'}
  crop = transforms.RandomCrop((3, 8), (2.0, 2.0), fill=fill)
  assert crop.ignores_padding == (padding == 0)
  decode = transforms.Decode(2, ('valid',))
  for rng in images.draws(10):
    example = transforms.RandomFlip()(crop(decode(record, rng), rng), rng)
    valid = example['valid']
    assert valid.dtype == bool
    # Of two rows and three columns, doubled, three rows and all columns.
    inside = (example['image'] != transforms.MEAN_COLOR).any(-1)
    assert inside.sum() == 18
    np.testing.assert_array_equal(valid, inside | (padding == 1))


def test_valid_is_asked_for():
  record = {'image': images.png(images.rgb([[1, 2, 3]])), 'id': b'a'}
  assert 'valid' not in transforms.Decode(2, ('label',))(record)
  for name, ignores in (
    ('inception', False),
    ('resize', False),
    ('random', True),
    ('center', True),
  ):
    assert transforms.CROPS[name]((4, 4)).ignores_padding == ignores


def test_horizontal_flips_reverse_the_columns(example):
  actual = transforms.flip_example(example)
  assert images.gray_and_label(actual) == (
    [[30, 20, 10], [60, 50, 40]],
    [[3, 2, 1], [6, 5, 4]],
  )
  assert actual['id'] == b'a'


def test_vertical_flips_reverse_the_rows(example):
  image, label = images.gray_and_label(
    transforms.flip_example(example, 'vertical')
  )
  before_image, before_label = images.gray_and_label(example)
  assert image == before_image[::-1]
  assert label == before_label[::-1]
  always = transforms.RandomFlip(1.0, ('horizontal', 'vertical'))
  image, _ = images.gray_and_label(always(example, np.random.default_rng(0)))
  assert image == [row[::-1] for row in before_image[::-1]]
  with pytest.raises(ValueError, match='kinds: expected some of .* got'):
    transforms.RandomFlip(0.5, ('sideways',))


def test_random_flip_has_the_given_probability(example):
  for probability in (0.0, 0.3, 1.0):
    flip = transforms.RandomFlip(probability)
    flipped = 0
    for rng in images.draws(500):
      image, label = images.gray_and_label(flip(example, rng))
      assert (image[0][0], label[0][0]) in ((10, 1), (30, 3))
      flipped += label[0][0] == 3
    # Four standard deviations of 500 draws at 0.3 are 0.08.
    tolerance = 0.08 if 0 < probability < 1 else 0
    assert flipped / 500 == pytest.approx(probability, abs=tolerance)


def test_sample_crop_is_uniform_over_places():
  # Three rows to spare; two columns too few.
  actual = [
    crop_boxes.sample_crop_box(rng, (8, 5), (5, 7))
    for rng in images.draws(1200)
  ]
  places = {(top, left) for top in range(4) for left in (-2, -1, 0)}
  counts = {place: 0 for place in places}
  for box in actual:
    assert (box.height, box.width) == (5, 7)
    counts[box.top, box.left] += 1
  # 100 each; a standard deviation is 9.6.
  np.testing.assert_allclose(list(counts.values()), 100, atol=45)


def test_random_crop_of_a_larger_image_is_a_part_of_it(example):
  crop = transforms.RandomCrop((1, 2))
  expected = {(10, 20), (20, 30), (40, 50), (50, 60)}
  actual = set()
  for rng in images.draws(60):
    (image,), (label,) = images.gray_and_label(crop(example, rng))
    assert image == [10 * i for i in label]
    actual.add(tuple(image))
  assert actual == expected


def test_random_crop_of_a_small_image_contains_all_of_it(example):
  crop = transforms.RandomCrop((4, 4))
  places = set()
  for rng in images.draws(100):
    image, label = map(np.array, images.gray_and_label(crop(example, rng)))
    rows, columns = np.nonzero(label >= 0)
    top, left = rows.min(), columns.min()
    expected = np.full((4, 4), -1)
    expected[top : top + 2, left : left + 3] = [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(image, np.where(label < 0, 127, label * 10))
    places.add((int(top), int(left)))
  assert places == {(t, x) for t in (0, 1, 2) for x in (0, 1)}


def test_fill_paper_pads_with_the_mean_color_and_class_0(example):
  crop = transforms.RandomCrop((3, 6), centered=True, fill='paper')
  actual = crop(example, np.random.default_rng(0))
  # A row is missing and three columns: 0 before and 1 after, 1 and 2.
  assert actual['label'].tolist() == [
    [0, 1, 2, 3, 0, 0],
    [0, 4, 5, 6, 0, 0],
    [0, 0, 0, 0, 0, 0],
  ]
  assert actual['image'][0, 0].tolist() == [124, 116, 104]
  assert actual['image'][2].tolist() == [[124, 116, 104]] * 6
  assert actual['image'][1, 1:4, 0].tolist() == [40, 50, 60]


def test_centered_crops_of_large_images_are_at_random_places(example):
  crop = transforms.RandomCrop((1, 2), centered=True)
  actual = {tuple(crop(example, rng)['label'][0]) for rng in images.draws(60)}
  assert actual == {(1, 2), (2, 3), (4, 5), (5, 6)}


def test_random_scales_are_uniform_or_balanced():
  uniform, balanced = (
    np.array(
      [
        crop_boxes.sample_image_scale(rng, (0.5, 2.0), kind)
        for rng in images.draws(3000)
      ]
    )
    for kind in (False, True)
  )
  for actual in (uniform, balanced):
    assert 0.5 <= actual.min() < 0.51 and 1.99 < actual.max() <= 2.0
  # A third of [0.5, 2] is below 1; a standard deviation is 0.009.
  assert abs(np.mean(uniform < 1) - 1 / 3) < 0.03
  assert abs(np.mean(balanced < 1) - 1 / 2) < 0.03
  assert abs(np.mean(balanced[balanced < 1]) - 0.75) < 0.02
  assert abs(np.mean(balanced[balanced > 1]) - 1.5) < 0.03


def test_listed_scales_are_equally_frequent():
  scales = (0.5, 0.75, 1.0, 1.5)
  drawn = [
    crop_boxes.sample_image_scale(rng, scales, False)
    for rng in images.draws(2000)
  ]
  values, counts = np.unique(drawn, return_counts=True)
  assert tuple(values) == scales
  # A standard deviation is 20.
  assert np.abs(counts - 500).max() < 80
  with pytest.raises(ValueError, match='no more than these two'):
    transforms.RandomCrop((4, 6), scales, balanced=True)


def test_a_scaled_crop_resizes_then_cuts(example):
  crop = transforms.RandomCrop((4, 6), scales=(2.0, 2.0))
  actual = crop(example, np.random.default_rng(0))
  assert actual['label'].tolist() == [
    [1, 1, 2, 2, 3, 3],
    [1, 1, 2, 2, 3, 3],
    [4, 4, 5, 5, 6, 6],
    [4, 4, 5, 5, 6, 6],
  ]
  # int(s · side): half of three columns is one, whose center is in the second.
  small = transforms.RandomCrop((1, 1), scales=(0.5, 0.5))
  assert small(example, np.random.default_rng(0))['label'].tolist() == [[5]]
  released = transforms.RandomCrop(
    (1, 1), scales=(0.5, 0.5), label_resize='released'
  )
  assert released(example, np.random.default_rng(0))['label'].tolist() == [[1]]


def test_a_scaled_crop_is_antialiased_as_by_pillow():
  image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
  crop = transforms.RandomCrop((4, 6), scales=(0.5, 0.5), antialias=True)
  actual = crop({'image': image}, np.random.default_rng(0))['image']
  expected = PIL.Image.fromarray(image).resize(
    (6, 4), PIL.Image.Resampling.BILINEAR
  )
  # The package that resizes crops, if it is installed, rounds otherwise.
  np.testing.assert_allclose(actual.astype(int), np.asarray(expected), atol=1)


def test_short_side_keeps_the_aspect(example):
  resized = transforms.ShortSide(4)(example, np.random.default_rng(0))
  assert resized['image'].shape == (4, 6, 3)
  assert resized['label'][0].tolist() == [1, 1, 2, 2, 3, 3]
  turned = {
    name: np.swapaxes(example[name], 0, 1) for name in ('image', 'label')
  }
  resized = transforms.ShortSide(1)(turned, np.random.default_rng(0))
  assert resized['label'].tolist() == [[5]]  # 3 · 1 // 2 rows.


def test_center_crop_cuts_or_pads(example):
  rng = np.random.default_rng(0)
  cut = transforms.CenterCrop((1, 1))(example, rng)
  assert images.gray_and_label(cut) == ([[20]], [[2]])
  filled = transforms.CenterCrop((3, 4))(example, rng)
  assert filled['label'].tolist() == [
    [1, 2, 3, -1],
    [4, 5, 6, -1],
    [-1, -1, -1, -1],
  ]
  wide = transforms.CenterCrop((1, 5))(example, rng)
  assert wide['label'].tolist() == [[-1, 1, 2, 3, -1]]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: transforms.RandomCrop((4, 4), scales=(2.0, 1.0)),
      r'scales: expected 0 < low <= high, got \(2.0, 1.0\)',
    ),
    (
      lambda: transforms.RandomCrop((4, 4), scales=(1.5, 2.0), balanced=True),
      r'scales: expected .* with balanced=True, got \(1.5, 2.0\)',
    ),
    (
      lambda: transforms.RandomCrop((4, 4), fill='white'),
      "fill: expected one of .* got 'white'",
    ),
    (
      lambda: transforms.RandomCrop((4, 4), label_resize='floor'),
      "label_resize: expected one of .*'released'.* got 'floor'",
    ),
    (lambda: transforms.ShortSide(0), 'length: expected >= 1, got 0'),
    (lambda: transforms.CenterCrop((0, 4)), r'size: expected .* got \(0, 4\)'),
    (
      lambda: transforms.Fill((0, 0, 256)),
      r'image: expected .* got \(0, 0, 256\)',
    ),
  ],
)
def test_invalid_crops_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.fixture
def blocks():
  """Blocks of 16x16 pixels of the classes 0 to 11, whose red is 20 a class."""
  classes = np.arange(12).reshape(3, 4)
  label = np.kron(classes, np.ones((16, 16), int)).astype(np.int16)
  image = np.zeros((48, 64, 3), np.uint8)
  image[..., 0] = 20 * label
  image[..., 1] = 255
  return {
    'image': images.png(image),
    'label': records.encode_record_label(label, 12),
    'id': b'blocks',
  }


def test_image_and_label_stay_aligned_without_scaling(blocks):
  transform = transforms.Compose(
    (
      transforms.Decode(12),
      transforms.RandomFlip(),
      transforms.RandomCrop((56, 40)),
      transforms.RandomFlip(),
    )
  )
  for rng in images.draws(20):
    example = transform(blocks, rng)
    label, (red, green, _) = example['label'], example['image'].T
    np.testing.assert_array_equal(red.T, np.where(label < 0, 127, 20 * label))
    np.testing.assert_array_equal(green.T == 255, label >= 0)
    assert (label < 0).sum() == 8 * 40


def test_image_and_label_stay_aligned_when_scaled(blocks):
  transform = transforms.Compose(
    (
      transforms.Decode(12),
      transforms.RandomFlip(),
      transforms.InceptionCrop((48, 48)),
    )
  )
  for rng in images.draws(20):
    example = transform(blocks, rng)
    label, red = example['label'], example['image'][..., 0]
    # A pixel of the source is at most 1.9 of the output's: further than two
    # from another class nothing is mixed.
    around = np.lib.stride_tricks.sliding_window_view(label, (5, 5))
    inside = around.min((2, 3)) == around.max((2, 3))
    assert inside.mean() > 0.3
    expected = 20 * label[2:-2, 2:-2]
    np.testing.assert_array_equal(red[2:-2, 2:-2][inside], expected[inside])


def test_decode_returns_image_labels_tags_size_and_id():
  image = np.array([[[255, 0, 7], [1, 2, 3]]], np.uint8)
  record = {
    'image': images.png(image),
    'label': records.encode_record_label(np.array([[-1, 918]]), 919),
    'tags': np.array([918, 2], np.int32),
    'id': b'val/n0_1',
  }
  rng = np.random.default_rng(0)
  actual = transforms.Decode(919, ('label', 'tags'))(record, rng)
  assert set(actual) == {'image', 'label', 'tags', 'size', 'id'}
  np.testing.assert_array_equal(actual['image'], image)
  assert actual['label'].dtype == np.int16
  assert actual['label'].tolist() == [[-1, 918]]
  assert actual['tags'].dtype == bool
  assert actual['tags'].shape == (919,)
  assert np.flatnonzero(actual['tags']).tolist() == [2, 918]
  assert actual['size'].dtype == np.int32
  assert actual['size'].tolist() == [1, 2]
  assert actual['id'].dtype.kind == 'S'
  assert actual['id'] == b'val/n0_1'
  assert rng.random() == np.random.default_rng(0).random()


def test_decode_shifts_labels_back():
  # As a record's PNG has them: 0 is ignored, 1 is class 0.
  record = {
    'image': images.png(images.rgb([[0, 0, 0]])),
    'label': images.png(np.array([[0, 1, 254]], np.uint8)),
    'id': b'a',
  }
  actual = transforms.Decode(254)(record, np.random.default_rng(0))
  assert actual['label'].tolist() == [[-1, 0, 253]]


def test_decode_keeps_the_chosen_kinds_of_label():
  record = {
    'image': images.png(images.rgb([[0]])),
    'label': records.encode_record_label(np.array([[1]]), 2),
    'tags': [],
    'id': b'a',
  }
  rng = np.random.default_rng(0)
  assert set(transforms.Decode(2, ())(record, rng)) == {'image', 'size', 'id'}
  assert 'tags' not in transforms.Decode(2)(record, rng)
  tagged = transforms.Decode(2, ('tags',))(record, rng)
  assert 'label' not in tagged
  assert tagged['tags'].tolist() == [False, False]
  bare = {'image': record['image'], 'id': b'a'}
  actual = transforms.Decode(2, ('label', 'tags'))(bare, rng)
  assert set(actual) == {'image', 'size', 'id'}


def test_decode_refuses_a_damaged_image():
  record = {'image': images.png(images.rgb([[0]]))[:20], 'id': b'a'}
  with pytest.raises(errors.UserError, match='an image of 20 bytes cannot be'):
    transforms.Decode(2)(record, np.random.default_rng(0))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: transforms.Resize((0, 4)),
      r'size: expected \(height, width\) >= 1, got \(0, 4\)',
    ),
    (
      lambda: transforms.RandomCrop((4, -1)),
      r'size: expected .* got \(4, -1\)',
    ),
    (
      lambda: transforms.InceptionCrop((0, 0)),
      r'size: expected .* got \(0, 0\)',
    ),
    (
      lambda: transforms.InceptionCrop((4, 4), area=(0.0, 1.0)),
      r'area: expected 0 < low <= high <= 1, got \(0\.0, 1\.0\)',
    ),
    (
      lambda: transforms.InceptionCrop((4, 4), area=(0.9, 0.3)),
      r'area: expected .* got \(0\.9, 0\.3\)',
    ),
    (
      lambda: transforms.InceptionCrop((4, 4), area=(0.3, 1.1)),
      r'area: expected .* got \(0\.3, 1\.1\)',
    ),
    (
      lambda: transforms.InceptionCrop((4, 4), aspect=(2.0, 1.0)),
      r'aspect: expected 0 < low <= high, got \(2\.0, 1\.0\)',
    ),
    (
      lambda: transforms.RandomFlip(1.5),
      r'probability: expected 0 to 1, got 1\.5',
    ),
    (
      lambda: transforms.Decode(3, ('labels',)),
      r"keep: expected some of \('label', .*'index'\), got \('labels',\)",
    ),
  ],
)
def test_invalid_arguments_are_named(make, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    make()


@pytest.mark.parametrize('name', sorted(transforms.CROPS))
def test_the_generator_determines_the_result_also_after_pickling(blocks, name):
  transform = transforms.Compose(
    (
      transforms.Decode(12),
      transforms.RandomFlip(),
      transforms.CROPS[name]((24, 24)),
    )
  )
  sent = pickle.loads(pickle.dumps(transform))
  assert sent == transform

  def run(transform, seed):
    example = transform(blocks, np.random.default_rng(seed))
    assert example['image'].shape == (24, 24, 3)
    return example['image'].tobytes() + example['label'].tobytes()

  actual = [run(transform, seed) for seed in range(8)]
  assert [run(sent, seed) for seed in range(8)] == actual
  assert len(set(actual)) > (1 if name in ('resize', 'center') else 4)
