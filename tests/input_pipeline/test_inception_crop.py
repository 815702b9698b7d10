import numpy as np
import pytest

from input_pipeline import crop_boxes, transforms
from tests.support import images
from tests.transcriptions import luss_comparators


def test_inception_box_is_within_its_ranges():
  for rng in images.draws(2000):
    top, left, h, w = crop_boxes.sample_inception_box(
      rng, (400, 600), (0.3, 1.0), (3 / 4, 4 / 3)
    )
    assert 0 <= top <= 400 - h and 0 <= left <= 600 - w
    # Sides are rounded to pixels.
    assert (h + 0.5) * (w + 0.5) >= 0.3 * 400 * 600
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    assert (w - 0.5) / (h + 0.5) <= 4 / 3


def test_inception_box_is_uniform_over_places():
  # A third of the area is a box of 2x2.
  counts = {(top, left): 0 for top in range(2) for left in range(3)}
  for rng in images.draws(600):
    top, left, h, w = crop_boxes.sample_inception_box(
      rng, (3, 4), (1 / 3, 1 / 3), (1.0, 1.0)
    )
    assert (h, w) == (2, 2)
    counts[top, left] += 1
  # 100 each; a standard deviation is 9.1.
  np.testing.assert_allclose(list(counts.values()), 100, atol=42)


def test_inception_box_is_uniform_in_area_and_log_aspect():
  # The largest side is sqrt(0.5 * 4 / 3) = 0.82 of the image: all draws fit.
  boxes = np.array(
    [
      crop_boxes.sample_inception_box(
        rng, (500, 500), (0.1, 0.5), (3 / 4, 4 / 3)
      )
      for rng in images.draws(2000)
    ]
  )
  top, left, h, w = boxes.T
  # Means and standard deviations of the uniform distributions; the tolerances
  # are four standard errors.
  area = h * w / 500**2
  assert area.mean() == pytest.approx(0.3, abs=0.0104)
  assert area.std() == pytest.approx(0.4 / np.sqrt(12), abs=0.005)
  log_aspect = np.log(w / h)
  width = 2 * np.log(4 / 3)
  assert log_aspect.mean() == pytest.approx(0, abs=0.015)
  assert log_aspect.std() == pytest.approx(width / np.sqrt(12), abs=0.007)
  for place in (top / (500 - h), left / (500 - w)):
    assert place.mean() == pytest.approx(0.5, abs=0.026)
    assert place.min() < 0.01 and place.max() > 0.99


@pytest.mark.parametrize(
  ('image', 'aspect', 'expected'),
  [
    ((10, 100), (3 / 4, 4 / 3), (0, 43, 10, 13)),  # 10 · 4/3 wide
    ((100, 10), (3 / 4, 4 / 3), (43, 0, 13, 10)),
    ((60, 60), (5.0, 6.0), (24, 0, 12, 60)),
    ((61, 60), (1 / 6, 1 / 5), (0, 24, 61, 12)),
    ((2, 2), (9.0, 9.0), (0, 0, 1, 2)),  # At least a pixel high.
  ],
)
def test_inception_box_of_an_impossible_aspect_is_centered(
  image, aspect, expected
):
  # No box of the whole area has such an aspect.
  for rng in images.draws(5):
    box = crop_boxes.sample_inception_box(rng, image, (1.0, 1.0), aspect)
    assert box == expected


def test_inception_crop_of_the_whole_area_is_the_image(example):
  crop = transforms.InceptionCrop((2, 3), area=(1.0, 1.0), aspect=(1.5, 1.5))
  actual = crop(example, np.random.default_rng(0))
  assert images.gray_and_label(actual) == images.gray_and_label(example)


def test_inception_crop_shows_its_box():
  row = np.arange(40)
  label = np.tile(row, (40, 1)).astype(np.int16)
  example = {'image': images.rgb(label * 6), 'label': label}
  crop = transforms.InceptionCrop((16, 24), area=(0.2, 0.5))
  for seed in range(20):
    top, left, h, w = crop_boxes.sample_inception_box(
      np.random.default_rng(seed), (40, 40), (0.2, 0.5), (3 / 4, 4 / 3)
    )
    assert top + h <= 40
    actual = crop(example, np.random.default_rng(seed))
    assert actual['image'].shape == (16, 24, 3)
    at = np.clip((np.arange(24) + 0.5) * w / 24 - 0.5, 0, w - 1) + left
    expected = np.tile(6 * at, (16, 1))
    np.testing.assert_allclose(actual['image'][..., 2], expected, atol=1)
    columns = [left + (2 * j + 1) * w // 48 for j in range(24)]
    assert actual['label'].tolist() == [columns] * 16


def test_clipped_box_is_drawn_once():
  """A side beyond the image is clipped, and the other one is kept."""
  places = set()
  for rng in images.draws(200):
    box = crop_boxes.sample_clipped_box(rng, (100, 400), (1.0, 1.0), (1.0, 1.0))
    assert (box.top, box.height, box.width) == (0, 100, 200)
    places.add(box.left)
  assert min(places) >= 0 and max(places) <= 200 and len(places) > 100
  for shape in ((1, 1), (1, 9), (30, 20)):
    for rng in images.draws(50):
      t, left, h, w = crop_boxes.sample_clipped_box(
        rng, shape, (0.08, 1.0), (3 / 4, 4 / 3)
      )
      assert h > 0 and w > 0 and t >= 0 and left >= 0
      assert t + h <= shape[0] and left + w <= shape[1]


def test_clipped_boxes_that_fit_are_inception_boxes():
  arguments = ((400, 400), (0.1, 0.5), (3 / 4, 4 / 3))
  for clipped, retried in zip(images.draws(50), images.draws(50), strict=True):
    assert crop_boxes.sample_clipped_box(
      clipped, *arguments
    ) == crop_boxes.sample_inception_box(retried, *arguments)


@pytest.mark.parametrize(
  'shape', [(375, 500), (500, 333), (20, 240), (7, 5), (1, 1)]
)
@pytest.mark.parametrize('area', [(0.08, 1.0), (0.02, 0.15), (0.9, 1.0)])
def test_tensorflow_box_equals_the_transcription(shape, area):
  aspect = (3 / 4, 4 / 3)
  boxes = []
  for rng, other in zip(images.draws(60), images.draws(60), strict=True):
    box = crop_boxes.sample_tensorflow_box(rng, shape, area, aspect)
    expected = luss_comparators.tensorflow_box(other, shape, area, aspect)
    assert tuple(box) == expected
    boxes.append(box)
  shares = [h * w / (shape[0] * shape[1]) for _, _, h, w in boxes]
  assert min(shares) >= 0.1
  if shape == (20, 240):  # The largest box has a ninth of the area.
    whole = area == (0.9, 1.0)
    assert (min(shares) == 1) == whole
