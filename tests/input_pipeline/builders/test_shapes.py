"""The data set Shapes: contents of its images, which must never change."""

import dataclasses
import itertools
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders import shapes, shapes_scene
from input_pipeline.sources import records

CONFIGS = {
  config.name: config
  for config in shapes.Shapes.BUILDER_CONFIGS
  if isinstance(config, shapes.ShapesConfig)
}
SMALL = {'train': 5, 'val': 3}
SKIP_DECODING = {
  'image': tfds.decode.SkipDecoding(),
  'label': tfds.decode.SkipDecoding(),
}


def pixels_crc(sample):
  image = records.decode_record_image(sample.image)
  return zlib.crc32(image.tobytes() + sample.label.astype('<i2').tobytes())


def drawn(name, split, count):
  """Yields scene, image and label of the first images of a split."""
  config = CONFIGS[name]
  for index in range(count):
    _, scene = shapes.make_scene(config, split, index)
    yield scene, *shapes.render_scene(scene)[:2]


@pytest.fixture(scope='module')
def single():
  return list(drawn('single', 'train', 320))


@pytest.fixture(scope='module')
def scenes():
  return list(drawn('scenes', 'train', 100))


@pytest.fixture
def prepare(monkeypatch, tmp_path):
  monkeypatch.setattr(CONFIGS['scenes'], 'num_images', SMALL)

  def run(folder):
    builder = shapes.Shapes(config='scenes', data_dir=tmp_path / folder)
    builder.download_and_prepare()
    return builder

  return run


def a_thing(class_id=1, center=(32.0, 32.0), radius=20.0, angle=0.4):
  tones = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])
  return shapes_scene.SceneObject(
    class_id, center, radius, angle, 1.0, 2.0, tones
  )


def test_prepared_records_are_read_back(prepare):
  builder = prepare('once')
  assert builder.info.metadata['classes'] == list(shapes.CLASSES)
  for split, count in SMALL.items():
    source = builder.as_data_source(split=split, decoders=SKIP_DECODING)
    assert len(source) == count
    for index, actual in enumerate(source):
      expected = shapes.draw_labeled_scene(CONFIGS['scenes'], split, index)
      assert actual['image'] == expected.image
      label = records.decode_record_label(actual['label'])
      np.testing.assert_array_equal(label, expected.label)
      assert list(actual['tags']) == expected.tags
      assert actual['id'].decode() == f'scenes/{split}/0000{index}'


def test_two_builds_are_equal_byte_by_byte(prepare):
  def files(builder):
    return {
      file.name: file.read_bytes()
      for file in builder.data_path.iterdir()
      if 'array_record' in file.name
    }

  first, second = files(prepare('first')), files(prepare('second'))
  assert len(first) == len(SMALL)
  assert first == second


def test_preparing_shows_its_progress(prepare, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  prepare('once')
  assert 'preparing shapes: ' in capsys.readouterr().err


def test_images_never_change():
  actual = {
    name: pixels_crc(shapes.draw_labeled_scene(config, 'train', 0))
    for name, config in CONFIGS.items()
  }
  # Change VERSION with these: what was trained on older images is no longer
  # comparable.
  assert actual == {
    'scenes': 2502093583,
    'single': 668166123,
    'source': 1805072819,
    'target': 996563704,
    'scenes_128': 627859218,
    'single_128': 3318457173,
    'source_128': 2017021000,
    'target_128': 3176923863,
  }


def test_an_image_does_not_depend_on_the_others():
  config = CONFIGS['target']
  late = shapes.draw_labeled_scene(config, 'train', 7)
  for index in range(3):
    shapes.draw_labeled_scene(config, 'train', index)
  again = shapes.draw_labeled_scene(config, 'train', 7)
  assert (again.id, again.image, again.tags) == (
    late.id,
    late.image,
    late.tags,
  )
  np.testing.assert_array_equal(again.label, late.label)


def test_splits_and_configurations_share_no_image():
  actual = [
    pixels_crc(shapes.draw_labeled_scene(config, split, index))
    for name, config in CONFIGS.items()
    if config.size == 64
    for split in config.num_images
    for index in range(4)
  ]
  assert len(set(actual)) == len(actual) == 4 * (4 + 4 + 3 + 3)


def test_number_of_images():
  assert {
    name: dict(config.num_images) for name, config in CONFIGS.items()
  } == {
    f'{name}{suffix}': count
    for suffix in ('', '_128')
    for name, count in {
      'scenes': {'train': 2000, 'unlabeled': 4000, 'val': 400, 'test': 400},
      'single': {'train': 4000, 'train_semi': 80, 'val': 400, 'test': 400},
      'source': {'train': 2000, 'val': 400, 'test': 400},
      'target': {'train': 2000, 'val': 400, 'test': 400},
    }.items()
  }


def test_classes_are_outlines_times_patterns():
  names = {
    f'{thing.pattern} {thing.outline}'
    for thing in map(a_thing, range(1, len(shapes.CLASSES)))
  }
  assert names == set(shapes.CLASSES[1:])
  assert len(names) == 8
  for class_id in range(1, 9):
    thing = a_thing(class_id)
    name = f'{thing.pattern} {thing.outline}'
    assert shapes.CLASSES[class_id] == name
  assert len(set(shapes.PALETTE)) == len(shapes.CLASSES) == 9


# Radius 20: pi r^2, 2 r^2, pi (r^2 - 9^2), and two bars of 12 by
# 2 sqrt(20^2 - 6^2) = 38.158 that share a square.
@pytest.mark.parametrize(
  'class_id, area', [(1, 1256.6), (3, 800.0), (5, 1002.2), (7, 771.8)]
)
def test_mask_has_the_area_of_its_outline(class_id, area):
  for angle in (0.0, 0.3, 2.0):
    thing = a_thing(class_id, (31.3, 32.8), angle=angle)
    mask = shapes_scene.scene_object_coverage(thing, 64) > 0.5
    assert mask.sum() == pytest.approx(area, rel=0.03)
    middle = np.argwhere(mask).mean(0) + 0.5
    np.testing.assert_allclose(middle, (32.8, 31.3), atol=0.5)
    assert shapes_scene.scene_object_visibility(thing, mask) == pytest.approx(
      1, abs=0.03
    )


def test_outlines_match_their_formulas():
  # Radius 20: the corners of the square and of the cross's bars, 12 wide, are
  # 20 from the middle; the ring's hole has 0.45 of its radius.
  x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)
  square = (abs(x) < 14.142) & (abs(y) < 14.142)
  ring = (x**2 + y**2 < 400) & (x**2 + y**2 > 81)
  cross = (abs(x) < 6) & (abs(y) < 19.079)
  cross |= cross.T
  for class_id, expected in ((3, square), (5, ring), (7, cross)):
    mask = (
      shapes_scene.scene_object_coverage(a_thing(class_id, angle=0.0), 64) > 0.5
    )
    np.testing.assert_array_equal(mask, expected)


def test_later_objects_hide_earlier_ones(scenes):
  back, front = a_thing(1, (25.0, 32.0)), a_thing(4, (40.0, 32.0))
  scene = dataclasses.replace(scenes[0][0], objects=(back, front))
  _, label = shapes.draw_scene(scene)
  x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
  in_back = (x - 25) ** 2 + (y - 32) ** 2 < 20**2
  in_front = shapes_scene.scene_object_coverage(front, 64) > 0.5
  expected = np.where(in_front, 4, np.where(in_back, 1, 0))
  np.testing.assert_array_equal(label, expected)


def test_patterns_have_clearly_different_scales():
  # Tone changes along a line through a disc of radius 20: a period is 20 or
  # 8.4 pixels long and changes twice, so 40 pixels see 4, or 9 to 10.
  def changes(class_id):
    thing = dataclasses.replace(
      a_thing(class_id), pattern_angle=0.0, pattern_phase=1.0
    )
    return np.diff(
      shapes_scene.scene_object_pattern(thing, 64)[34, 12:52] > 0.5
    ).sum()

  assert changes(1) == 4
  assert changes(2) in (9, 10)
  periods = [
    np.multiply(shapes_scene.RADII, p) for p in shapes_scene.PERIODS.values()
  ]
  (wide, _), (_, small) = periods  # The narrowest stripes, the largest checks.
  assert wide > small


def test_tags_are_the_classes_of_the_mask(scenes):
  config = CONFIGS['scenes']
  for index, (scene, _, label) in enumerate(scenes):
    tags = shapes.draw_labeled_scene(config, 'train', index).tags
    assert tags == [c for c in np.unique(label).tolist() if c > 0]
    assert 1 <= len(tags) <= len(scene.objects) <= 4
    assert label.dtype == np.int16
  counts = {len(scene.objects) for scene, _, _ in scenes}
  assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize('split', ['train', 'train_semi', 'val', 'test'])
def test_single_has_balanced_classes(split):
  # The classes of the whole split; what is drawn is tested on a part below.
  count = CONFIGS['single'].num_images[split]
  rng = np.random.default_rng(0)
  classes = [shapes.sample_scene_classes(rng, i, 1) for i in range(count)]
  assert np.bincount(np.ravel(classes)).tolist() == [0] + [count // 8] * 8


def test_single_shows_one_object(single):
  classes = [label.max() for _, _, label in single]
  assert np.bincount(classes).tolist() == [0] + [40] * 8
  for scene, _, label in single:
    assert len(np.unique(label[label > 0])) == len(scene.objects) == 1


def test_classes_of_scenes_are_equally_frequent():
  config = CONFIGS['scenes']
  counts = np.zeros(9)
  for index in range(200):
    _, scene = shapes.make_scene(config, 'unlabeled', index)
    for thing in scene.objects:
      counts[thing.class_id] += 1
  # About 60 of each; five standard deviations of a count are 38.
  np.testing.assert_allclose(counts[1:], counts[1:].mean(), atol=38)


def test_two_classes_of_the_domains_are_rare():
  count = 4000
  rng = np.random.default_rng(0)
  classes = [
    shapes.sample_scene_classes(rng, i, 4, CONFIGS['target'].frequencies)
    for i in range(count)
  ]
  assert {len(each) for each in classes} == {1, 2, 3, 4}
  shown = np.array([[c in each for c in range(1, 9)] for each in classes])
  # Of 1 to 4 objects, each is of a rare class with 0.2 / 6.4 = 1 / 32.
  rare = np.mean([1 - (31 / 32) ** n for n in (1, 2, 3, 4)])
  common = np.mean([1 - (27 / 32) ** n for n in (1, 2, 3, 4)])
  expected = [common] * 4 + [rare] + [common] * 2 + [rare]
  np.testing.assert_allclose(shown.mean(0), expected, atol=0.03)
  assert CONFIGS['source'].frequencies == CONFIGS['target'].frequencies
  assert not CONFIGS['scenes'].frequencies


@pytest.mark.parametrize('name', ['scenes', 'single', 'target', 'single_128'])
def test_objects_are_large_and_visible(name):
  scale = CONFIGS[name].size / 64
  unit = {'disc': 3.1416, 'square': 2.0, 'ring': 2.5054, 'cross': 1.9295}
  radii = []
  for scene, _, label in drawn(name, 'val', 40):
    areas = np.zeros(9)
    for thing in scene.objects:
      radii.append(thing.radius / scale)
      areas[thing.class_id] += 0.6 * thing.radius**2 * unit[thing.outline]
    visible = np.bincount(label.ravel(), minlength=9)
    assert np.all(visible[1:] >= 0.99 * areas[1:])
  assert 13 <= min(radii) < 15
  assert 24 < max(radii) <= 26


def test_color_is_independent_of_the_class(single):
  colors = np.array([image[label > 0].mean(0) for _, image, label in single])
  classes = np.array([label.max() for _, _, label in single])
  # 4 standard errors of a class's mean: 24 comparisons of which, if nothing
  # differs, one in 650 sets of images would fail.
  error = colors.std(0) / np.sqrt(40)
  for class_id in range(1, 9):
    mean = colors[classes == class_id].mean(0)
    assert np.all(np.abs(mean - colors.mean(0)) < 4 * error)
  # Nor is there a common color: hues go all round.
  assert np.all(colors.std(0) > 20)


def test_tones_differ_in_luminance(scenes, single):
  # BT.601 written out, on sampled colors.
  def luma(color):
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue

  for scene, _, _ in itertools.chain(scenes, single):
    for thing in scene.objects:
      lumas = [luma(c) for c in (*thing.tones, scene.background)]
      assert np.diff(np.sort(lumas)).min() >= 0.25 - 1e-9
      assert np.all((thing.tones >= 0) & (thing.tones <= 1))


def test_drawn_objects_show_both_tones(single):
  shown = []
  for scene, _, _ in single[:80]:
    image, label = shapes.draw_scene(scene)
    dark, light = sorted(scene.objects[0].tones.tolist(), key=np.sum)
    inside = image[label > 0]
    shares = [np.mean(np.abs(inside - t).max(1) < 0.02) for t in (dark, light)]
    shown.append(min(shares))
  # The rest of the pixels are on edges. Few objects are cut off such that one
  # of their tones is hardly seen.
  assert np.mean(np.array(shown) > 0.1) > 0.9


def test_tint_keeps_luma_and_range():
  rng = np.random.default_rng(0)
  for _ in range(100):
    luma = rng.uniform(0.05, 0.95)
    color = shapes_scene.scene_tint(luma, rng.uniform(0, 7), rng.uniform(0, 1))
    assert color @ [0.299, 0.587, 0.114] == pytest.approx(luma)
    assert -1e-9 <= color.min() <= color.max() <= 1 + 1e-9


def test_target_is_darker_flatter_and_noisier_than_source():
  def measure(name):
    images = np.stack([image for _, image, _ in drawn(name, 'val', 40)]) / 255
    mean = images.mean((1, 2, 3))
    spread = images.std((1, 2)).mean(1)
    # The checkerboard frequency: noise, as blur leaves little else there.
    corners = images[:, ::2, ::2] + images[:, 1::2, 1::2]
    others = images[:, ::2, 1::2] + images[:, 1::2, ::2]
    noise = np.abs(corners - others).mean((1, 2, 3))
    return mean.mean(), spread.mean(), (noise / spread).mean()

  source, target = measure('source'), measure('target')
  assert target[0] < 0.8 * source[0]
  assert target[1] < 0.7 * source[1]
  assert target[2] > 1.2 * source[2]


def test_images_are_rgb():
  config = CONFIGS['scenes']
  _, scene = shapes.make_scene(config, 'train', 0)
  image, label, _ = shapes.render_scene(scene)
  drawn_again = shapes.draw_labeled_scene(config, 'train', 0)
  decoded = records.decode_record_image(drawn_again.image)
  np.testing.assert_array_equal(decoded, image)
  np.testing.assert_array_equal(drawn_again.pixels, image)
  np.testing.assert_array_equal(drawn_again.label, label)


def test_an_unknown_outline_is_refused():
  with pytest.raises(
    ValueError, match="outline: expected one of .* got 'moon'"
  ):
    shapes_scene.object_outline_distance(
      'moon', np.zeros((1, 1)), np.zeros((1, 1))
    )


def test_tensorflow_is_not_imported():
  code = (
    'import sys\n'
    'from input_pipeline.builders import shapes\n'
    'shapes.draw_labeled_scene(shapes.Shapes.BUILDER_CONFIGS[0], "train", 0)\n'
    'print("tensorflow" in sys.modules)\n'
  )
  actual = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  assert actual.stdout.strip() == 'False'
