import doctest
import io
import math

import jax
import numpy as np
import PIL.Image
import pytest

from pass_luss import main
from pass_luss.pseudo_labels import saliency
from runtime import errors
from segcore.experiment import config_file, input_checks
from tests.pass_luss import all_stages


def disc(height=60, width=80, radius=15, color=(250, 220, 30)):
  y, x = np.mgrid[:height, :width]
  apart = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
  image = np.full((height, width, 3), 128, np.uint8)
  image[apart <= radius] = color
  return image, apart


def slow_lab(color):
  """Converts sRGB to Lab color by color, after IEC 61966-2-1 and CIE 15."""
  r, g, b = (
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    for c in (channel / 255 for channel in color)
  )
  x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
  y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
  z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
  x, y, z = (
    t ** (1 / 3) if t > (6 / 29) ** 3 else t * 841 / 108 + 4 / 29
    for t in (x, y, z)
  )
  return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def slow_saliency(regions, colors, palette):
  """Computes the paper's equations in loops over regions and colors."""
  height, width = regions.shape
  pixels = {}
  for row in range(height):
    for column in range(width):
      pixels.setdefault(int(regions[row, column]), []).append(
        ((column + 0.5) / width, (row + 0.5) / height, colors[row, column])
      )
  frequency, centroid, to_center = {}, {}, {}
  for region, members in pixels.items():
    frequency[region] = {}
    for _, _, color in members:
      frequency[region].setdefault(color, 0)
      frequency[region][color] += 1 / len(members)
    centroid[region] = [
      sum(m[i] for m in members) / len(members) for i in (0, 1)
    ]
    to_center[region] = sum(
      math.dist(m[:2], (0.5, 0.5)) for m in members
    ) / len(members)
  expected = []
  for k in sorted(pixels):
    total = 0.0
    for i in pixels:
      if i == k:
        continue
      contrast = 0.0
      for one, f_one in frequency[k].items():
        for other, f_other in frequency[i].items():
          contrast += f_one * f_other * math.dist(palette[one], palette[other])
      near = math.exp(-math.dist(centroid[k], centroid[i]) / 0.4)
      total += near * len(pixels[i]) * contrast
    expected.append(math.exp(-9 * to_center[k] ** 2) * total)
  return np.array(expected)


def blobs(seed=0, height=36, width=48):
  """Draws an image of a few noisy rectangles."""
  rng = np.random.default_rng(seed)
  image = np.full((height, width, 3), 90, np.int64)
  for _ in range(5):
    top, left = rng.integers(0, (height - 10, width - 10))
    image[top : top + 14, left : left + 18] = rng.integers(0, 256, 3)
  image += rng.integers(-6, 7, image.shape)
  return image.clip(0, 255).astype(np.uint8)


def test_doctests():
  assert doctest.testmod(saliency).failed == 0


def test_saliency_of_two_regions_by_hand():
  # Halves of an image, one of 30 pixels of black, one of 10 pixels that are
  # half black and half a color at a distance of 8: D_r = 4.
  actual = saliency.region_saliency(
    np.array([[1.0, 0.0], [0.5, 0.5]]),
    np.array([[0.0, 8.0], [8.0, 0.0]]),
    np.array([[0.25, 0.5], [0.65, 0.5]]),
    np.array([30, 10]),
    np.array([0.0, 1 / 3]),
  )
  near = math.exp(-0.4 / 0.4)
  expected = [near * 10 * 4, math.exp(-1) * near * 30 * 4]
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_region_has_no_contrast_to_itself():
  actual = saliency.region_saliency(
    np.array([[0.5, 0.5]]),
    np.array([[0.0, 8.0], [8.0, 0.0]]),
    np.array([[0.5, 0.5]]),
    np.array([7]),
    np.array([0.3]),
  )
  assert actual.tolist() == [0]


@pytest.mark.parametrize('seed', range(3))
def test_region_saliency_equals_loops(seed):
  rng = np.random.default_rng(seed)
  regions = rng.permutation(np.arange(11 * 7) % 6).reshape(11, 7)
  colors = rng.integers(0, 5, (11, 7))
  palette = rng.normal(size=(5, 3))
  actual = saliency.saliency_region_statistics(regions, colors, 5)
  apart = np.linalg.norm(palette[:, None] - palette, axis=-1)
  np.testing.assert_allclose(
    saliency.region_saliency(
      actual.histograms,
      apart,
      actual.centroids,
      actual.sizes,
      actual.center_distances,
    ),
    slow_saliency(regions, colors, palette),
    rtol=1e-9,
  )


def test_region_statistics_by_hand():
  actual = saliency.saliency_region_statistics(
    np.array([[0, 0, 0, 1], [0, 0, 0, 1]]),
    np.array([[2, 0, 0, 2], [2, 0, 0, 2]]),
    4,
  )
  np.testing.assert_allclose(
    actual.histograms, [[2 / 3, 0, 1 / 3, 0], [0, 0, 1, 0]]
  )
  assert actual.sizes.tolist() == [6, 2]
  np.testing.assert_allclose(actual.centroids, [[0.375, 0.5], [0.875, 0.5]])
  # Pixels are 1/4 wide and 1/2 high, so they lie 1/4 above or below.
  near, far = math.hypot(1 / 8, 1 / 4), math.hypot(3 / 8, 1 / 4)
  np.testing.assert_allclose(
    actual.center_distances, [(near + near + far) / 3, far]
  )


@pytest.mark.parametrize('seed', range(3))
def test_region_contrast_equals_loops(seed):
  image = blobs(seed)
  regions = saliency.segment_saliency_regions(image)
  assert regions.max() >= 3
  palette, colors = saliency.quantize_saliency_colors(image)
  slow = slow_saliency(regions, colors, palette.astype(np.float64))
  slow = (slow - slow.min()) / (slow.max() - slow.min())
  actual = saliency.region_contrast(image)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, slow[regions], atol=1e-5)


def test_disc_is_salient():
  image, apart = disc()
  actual = saliency.region_contrast(image)
  assert (actual[apart <= 13] == 1).all()
  assert (actual[apart > 17] == 0).all()


def test_disc_is_salient_at_any_scale():
  for factor in (0.5, 4):
    image, apart = disc(int(60 * factor), int(80 * factor), 15 * factor)
    actual = saliency.region_contrast(image)
    assert (actual[apart <= 15 * factor - 2] == 1).all()
    assert (actual[apart > 15 * factor + 2] < 0.1).all()


def test_object_at_the_center_is_more_salient_than_at_the_corner():
  image = np.full((60, 80, 3), 128, np.uint8)
  image[20:40, 30:50] = (200, 40, 40)
  image[:20, :20] = (200, 40, 40)
  actual = saliency.region_contrast(image)
  assert actual[30, 40] == 1
  assert actual[5, 5] < 0.05
  assert actual[50, 70] < 0.05


def test_values_that_differ_by_rounding_become_0():
  assert saliency.min_max_normalize_saliency(
    np.array([0.1 + 0.2, 0.3])
  ).tolist() == [
    0,
    0,
  ]
  assert saliency.min_max_normalize_saliency(np.array([0.0, 0.0])).tolist() == [
    0,
    0,
  ]
  assert saliency.min_max_normalize_saliency(
    np.array([1e-9, 2e-9])
  ).tolist() == [0, 1]


@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (40, 1), (20, 30)])
@pytest.mark.parametrize('value', [0, 77, 255])
def test_uniform_image_has_saliency_0(shape, value):
  image = np.full((*shape, 3), value, np.uint8)
  actual = saliency.region_contrast(image)
  assert actual.shape == shape
  assert not actual.any() and np.isfinite(actual).all()


@pytest.mark.parametrize('shape', [(1, 60), (60, 1)])
def test_image_of_one_row_or_column(shape):
  line = np.full((60, 3), 20, np.uint8)
  line[22:38] = (240, 240, 60)
  actual = saliency.region_contrast(line.reshape(*shape, 3))
  assert actual.shape == shape
  actual = actual.ravel()
  np.testing.assert_allclose(actual[24:36], 1, atol=1e-6)
  assert max(actual[:20].max(), actual[40:].max()) < 0.1


def test_rgb_to_lab_equals_the_standard():
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (50, 3))
  colors[:5] = [[0] * 3, [255] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]
  actual = saliency.rgb_to_lab(colors[None].astype(np.float32))[0]
  np.testing.assert_allclose(
    actual, [slow_lab(color) for color in colors], atol=0.02
  )
  np.testing.assert_allclose(actual[2], [53.24, 80.09, 67.20], atol=0.02)


def test_rare_colors_become_the_nearest_kept_color():
  # Of 100 pixels 60 are dark and 35 bright, which is 95 %; 3 and 2 remain.
  row = [10] * 60 + [225] * 20 + [230] * 15 + [40] * 3 + [180] * 2
  image = np.repeat(np.array([row], np.uint8)[..., None], 3, axis=-1)
  palette, colors = saliency.quantize_saliency_colors(image)
  assert colors.tolist() == [[0] * 60 + [1] * 35 + [0] * 3 + [1] * 2]
  # 225 and 230 share a level; their mean is the color.
  mean = (225 * 20 + 230 * 15) / 35
  np.testing.assert_allclose(
    palette, [slow_lab([10] * 3), slow_lab([mean] * 3)], atol=0.02
  )


def test_one_color_more_is_kept_below_95_percent():
  row = [10] * 60 + [225] * 34 + [40] * 4 + [180] * 2
  image = np.repeat(np.array([row], np.uint8)[..., None], 3, axis=-1)
  palette, colors = saliency.quantize_saliency_colors(image)
  assert len(palette) == 3
  assert colors.tolist() == [[0] * 60 + [1] * 34 + [2] * 4 + [1] * 2]


def test_each_channel_has_12_levels():
  # 21 is the last value of the first of 12 levels, 22 the first of the second.
  image = np.zeros((1, 8, 3), np.uint8)
  image[0, :4] = 21
  image[0, 5, 0] = image[0, 6, 1] = image[0, 7, 2] = 22
  palette, colors = saliency.quantize_saliency_colors(image)
  assert colors[0, :5].tolist() == [0] * 5
  assert sorted(colors[0, 5:].tolist()) == [1, 2, 3]
  assert len(palette) == 4


def write(path, pixels, mode=None):
  image = PIL.Image.fromarray(np.asarray(pixels))
  path.parent.mkdir(parents=True, exist_ok=True)
  (image.convert(mode) if mode else image).save(path)
  return path


def test_read_map_of_the_size_of_its_image(tmp_path):
  pixels = np.array([[0, 51, 255], [102, 204, 1]], np.uint8)
  expected = np.float32([[0, 0.2, 1], [0.4, 0.8, 1 / 255]])
  for mode in ('L', 'RGB'):
    actual = saliency.read_saliency_map(
      write(tmp_path / 'a.png', pixels, mode), (2, 3)
    )
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_read_map_of_one_bit(tmp_path):
  pixels = np.array([[0, 255, 255]], np.uint8)
  path = write(tmp_path / 'a.png', pixels, '1')
  assert saliency.read_saliency_map(path, (1, 3)).tolist() == [[0, 1, 1]]


def test_maps_are_resized_bilinearly(tmp_path):
  path = write(tmp_path / 'a.png', np.uint8([[0, 255], [0, 255]]))
  actual = saliency.read_saliency_map(path, (4, 4))
  # Half-pixel centers: targets lie at -1/4, 1/4, 3/4 and 5/4 of the source.
  np.testing.assert_allclose(actual, [[0, 0.25, 0.75, 1]] * 4, atol=1e-6)


@pytest.mark.parametrize('size', [(256, 341), (188, 250), (750, 1000)])
def test_rounded_sizes_have_the_same_aspect_ratio(tmp_path, size):
  path = write(tmp_path / 'a.png', np.full(size, 255, np.uint8))
  actual = saliency.read_saliency_map(path, (375, 500))
  assert actual.shape == (375, 500)
  assert (actual == 1).all()


def message_of(error_type, read, path, *args):
  """Returns the error's message without the path, which is its first part."""
  with pytest.raises(error_type) as error:
    read(path, *args)
  message = str(error.value)
  assert message.startswith(f'{path}: ') and '\n' not in message
  return message.removeprefix(f'{path}: ')


def refused(path, size=(2, 2)):
  return message_of(errors.BadFile, saliency.read_saliency_map, path, size)


def test_maps_of_another_aspect_ratio_are_refused(tmp_path):
  path = write(tmp_path / 'a.png', np.zeros((224, 224), np.uint8))
  assert refused(path, (375, 500)) == (
    'expected the aspect ratio of its image, 500x375, got 224x224: compute it '
    'on the whole image'
  )
  path = write(tmp_path / 'a.png', np.zeros((500, 375), np.uint8))
  assert refused(path, (375, 500)).startswith(
    'expected the aspect ratio of its image, 500x375, got 375x500: '
  )


def test_unreadable_maps_are_refused(tmp_path):
  path = tmp_path / 'a.png'
  assert refused(path) == (
    'expected a saliency map, got: No such file or directory: restore the file '
    'or check its permissions'
  )
  path.write_bytes(b'no image')
  assert refused(path) == 'is no PNG file, or its header is damaged'
  data = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
  PIL.Image.fromarray(noise).save(data, 'PNG')
  path.write_bytes(data.getvalue()[:500])
  assert refused(path, (40, 40)).startswith('cannot be decoded: ')


def test_other_pixel_formats_are_refused(tmp_path):
  path = write(tmp_path / 'a.png', np.uint8([[[9, 9, 9], [9, 8, 9]]]))
  assert refused(path, (1, 2)).endswith('got colors')
  path = write(tmp_path / 'a.png', np.full((2, 2), 700, np.uint16))
  assert refused(path) == (
    "expected 8-bit gray, got PIL mode 'I;16' with 16 bits"
  )
  path = write(tmp_path / 'a.png', np.zeros((2, 2), np.uint8), 'P')
  assert "PIL mode 'P'" in refused(path)


def test_masks_of_zeros_and_ones_are_refused(tmp_path):
  path = write(tmp_path / 'a.png', np.uint8([[0, 1], [1, 0]]))
  assert refused(path) == (
    'expected values 0 to 255, got at most 1: multiply a mask of 0 and 1 by 255'
  )
  path = write(tmp_path / 'a.png', np.zeros((2, 2), np.uint8))
  assert not saliency.read_saliency_map(path, (2, 2)).any()


def test_find_maps_in_the_order_of_ids(tmp_path):
  for name in ('n01/b', 'n02/a.x', 'n01/c', 'top'):
    write(tmp_path / f'{name}.png', np.zeros((1, 1), np.uint8))
  ids = ['n02/a.x', 'n01/b', 'top']
  assert saliency.find_saliency_maps(tmp_path, ids) == [
    tmp_path / 'n02' / 'a.x.png',
    tmp_path / 'n01' / 'b.png',
    tmp_path / 'top.png',
  ]


def missing(folder, ids):
  return message_of(errors.UserError, saliency.find_saliency_maps, folder, ids)


def test_missing_maps_are_counted_and_named(tmp_path):
  write(tmp_path / 'n01' / 'a.png', np.zeros((1, 1), np.uint8))
  write(tmp_path / 'b.png', np.zeros((1, 1), np.uint8))
  (tmp_path / 'n01' / 'd.jpg').write_bytes(b'')
  advice = 'add one for each image, or choose the folder that has them'
  assert missing(tmp_path, ['n01/a', 'n01/d', 'b']) == (
    f'expected 3 saliency maps, got 2 (n01/d.png missing): {advice}'
  )
  assert missing(tmp_path, ['n02/a', 'b/x', 'b', *'cde']) == (
    'expected 6 saliency maps, got 1 (n02/a.png, b/x.png, c.png, … missing): '
    f'{advice}'
  )


def test_missing_folder_and_file_are_refused(tmp_path):
  expected = (
    'expected a folder with the saliency map of each image as ID.png, got'
  )
  assert missing(tmp_path / 'no', ['a']) == f'{expected} no such folder'
  file = tmp_path / 'file'
  file.write_bytes(b'')
  assert missing(file, ['a']) == f'{expected} a file'


def test_missing_saliency_maps_are_refused_before_training(tmp_path):
  config = config_file.load_config(str(all_stages.write_config(tmp_path)))
  config.label.saliency = f'{tmp_path}/maps'
  config.stages = ('represent', 'attend', 'cluster', 'label')
  stages = main.PROGRAM.build(config, jax.devices()[:1])
  with pytest.raises(errors.UserError, match='expected a folder with the sal'):
    input_checks.check_stage_inputs(tuple(stages.values()), tmp_path)
