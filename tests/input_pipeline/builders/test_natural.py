"""The data sets shapes/natural: their images, which must never change."""

import dataclasses
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders import (
  natural,
  natural_classes,
  natural_outlines,
  natural_scene,
  natural_waves,
  scene_sampling,
  shapes,
)
from input_pipeline.sources import records

CONFIGS = {
  config.name: config
  for config in shapes.Shapes.BUILDER_CONFIGS
  if isinstance(config, natural.NaturalConfig)
}
SCENES = {'train': 2000, 'unlabeled': 4000, 'val': 400, 'test': 400}
SINGLE = {'train': 4000, 'train_semi': 100, 'val': 400, 'test': 400}
NO_WAVES = natural_waves.TextureWaves(
  np.zeros((1, 2)), np.zeros(1), np.zeros(1)
)


@pytest.fixture(scope='module')
def scenes():
  """Draws 40 scenes of several objects."""
  config = CONFIGS['natural']
  return [
    (natural.make_natural_scene(config, rng, i), config.draw_sample('val', i))
    for i in range(40)
    for _, rng in [scene_sampling.seed_scene(config.name, 'val', i)]
  ]


@pytest.fixture(scope='module')
def single():
  """Draws 160 images of one object, 16 of each class."""
  return [CONFIGS['natural_single'].draw_sample('train', i) for i in range(160)]


def plain_object(outline, class_id=3, center=(31.3, 32.8), angle=0.4):
  """Builds a white object of radius 20, without shadow, texture and shading."""
  return natural_scene.NaturalObject(
    class_id=class_id,
    center=center,
    radius=20.0,
    angle=angle,
    outline=natural_outlines.natural_outline_radii(outline),
    tones=np.ones((2, 3)),
    texture=NO_WAVES,
    sharpness=1.0,
    mottling=NO_WAVES,
    relief=0.0,
    shadow=0.0,
  )


def draw_alone(item, size=64):
  """Draws one object on black; returns the image over its largest value."""
  image, label = np.zeros((size, size, 3)), np.zeros((size, size), np.int16)
  natural.draw_natural_object(image, label, item, (1.0, 0.0))
  return image[..., 0] / image.max(), label


def ellipse(x, y, item, aspect):
  """Computes (u/a)^2 + (v/b)^2 - 1 with a = 20 and b = 20 / aspect."""
  x, y = x - item.center[0], y - item.center[1]
  cos, sin = np.cos(item.angle), np.sin(item.angle)
  along, across = cos * x + sin * y, cos * y - sin * x
  return (along / 20) ** 2 + (across / (20 / aspect)) ** 2 - 1


@pytest.mark.parametrize('aspect', [1.0, 1.3, 1.8])
def test_mask_and_edge_of_an_ellipse(aspect):
  item = plain_object(natural_classes.NaturalOutline(0, aspect=aspect))
  image, label = draw_alone(item)
  assert set(np.unique(label)) == {0, 3}

  # 8 x 8 points a pixel, evaluated by the formula of an ellipse.
  fine = (np.arange(64 * 8) + 0.5) / 8
  inside = ellipse(fine, fine[:, None], item, aspect) < 0
  covered = inside.reshape(64, 8, 64, 8).mean((1, 3))
  np.testing.assert_allclose(image, covered, atol=0.13)
  assert np.abs(image - covered).mean() < 0.003
  # The mask is where the pixel's center is inside: half covered, about.
  centers = np.arange(64) + 0.5
  center_inside = ellipse(centers, centers[:, None], item, aspect) < 0
  np.testing.assert_array_equal(label == 3, center_inside)
  area = np.pi * 20 * 20 / aspect
  assert image.sum() == pytest.approx(area, rel=0.005)
  assert natural_outlines.natural_outline_area(
    item.outline
  ) * 400 == pytest.approx(area, rel=1e-4)


def test_outlines_match_their_formula():
  t = natural_outlines.natural_outline_directions()
  star = natural_outlines.natural_outline_radii(
    natural_classes.NaturalOutline(5, 0.6, 0.8)
  )
  # Tips where sin(5 t / 2) = 0, notches halfway between.
  np.testing.assert_allclose(star[::144], 1)
  np.testing.assert_allclose(star[72::144], 0.4)
  one_tip = natural_outlines.natural_outline_radii(
    natural_classes.NaturalOutline(1, 0.5)
  )
  np.testing.assert_allclose(one_tip, 1 - 0.5 * np.abs(np.sin(t / 2)))
  # Stretched to 2 : 1, a circle is an ellipse.
  flat = natural_outlines.natural_outline_radii(
    natural_classes.NaturalOutline(0, aspect=2.0)
  )
  expected = 0.5 / np.hypot(0.5 * np.cos(t), np.sin(t))
  np.testing.assert_allclose(flat, expected, atol=1e-4)


def test_variants_of_an_outline_differ_but_keep_its_tips():
  rng = np.random.default_rng(0)
  star = natural_classes.KINDS['starfish'].outline
  mean = natural_outlines.natural_outline_radii(star)
  variants = [
    natural_outlines.sample_natural_outline_radii(rng, star) for _ in '12345'
  ]
  for radii in variants:
    assert 0.01 < np.abs(radii - mean).mean() < 0.2
    assert radii.max() == 1 and radii.min() > 0
    is_tip = (radii > np.roll(radii, 1)) & (radii > np.roll(radii, -1))
    assert is_tip.sum() == 5


def test_waves_are_summed():
  rng = np.random.default_rng(0)
  texture = natural_classes.NaturalTexture((2.0, 20.0), decay=1.0)
  waves = natural_waves.sample_texture_waves(rng, texture, 100.0, 0.3)
  x, y = np.arange(5) + 0.5, np.arange(3) + 2.5
  expected = np.zeros((3, 5))
  parts = zip(waves.frequencies, waves.phases, waves.amplitudes, strict=True)
  for (fx, fy), phase, amplitude in parts:
    angle = 2 * np.pi * (fx * x + fy * y[:, None]) + phase
    expected += amplitude * np.cos(angle)
  np.testing.assert_allclose(
    natural_waves.draw_texture_waves(waves, x, y), expected, atol=1e-12
  )
  assert np.sum(waves.amplitudes**2) / 2 == pytest.approx(1)
  cycles = 100 * np.hypot(*waves.frequencies.T)
  assert 2 <= cycles.min() < 4 and 10 < cycles.max() <= 20
  # Amplitudes fall as 1 / frequency.
  np.testing.assert_allclose(np.ptp(waves.amplitudes * cycles), 0, atol=1e-9)
  # With 5 pixels for 2 to 20 cycles, those above 0.45 x 5 would alias.
  dense = dataclasses.replace(waves, frequencies=20 * waves.frequencies)
  shown = 20 * np.hypot(*waves.frequencies.T) < 0.45
  assert 0 < shown.sum() < len(shown)
  kept = natural_waves.TextureWaves(
    dense.frequencies[shown], waves.phases[shown], waves.amplitudes[shown]
  )
  np.testing.assert_allclose(
    natural_waves.draw_texture_waves(dense, x, y),
    natural_waves.draw_texture_waves(kept, x, y),
  )


def test_textures_have_their_direction():
  rng = np.random.default_rng(0)
  texture = natural_classes.NaturalTexture((2.0, 3.0), axis=0.5, spread=0.1)
  waves = natural_waves.sample_texture_waves(rng, texture, 10.0, 1.0)
  angles = np.arctan2(*waves.frequencies.T[::-1])
  assert np.all(np.abs(angles - 1.5) <= 0.1)


def test_later_objects_hide_earlier_ones(scenes):
  outline = natural_classes.NaturalOutline(0)
  back = plain_object(outline, 1, (25.0, 32.0))
  front = plain_object(outline, 4, (40.0, 32.0))
  clutter = plain_object(outline, 0, (32.0, 15.0))
  scene = dataclasses.replace(
    scenes[0][0], clutter=(clutter,), objects=(back, front)
  )
  _, label = natural.draw_natural_scene(scene)
  x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
  in_back = (x - 25) ** 2 + (y - 32) ** 2 < 20**2
  in_front = (x - 40) ** 2 + (y - 32) ** 2 < 20**2
  expected = np.where(in_front, 4, np.where(in_back, 1, 0))
  np.testing.assert_array_equal(label, expected)


def test_shadows_fall_away_from_the_light():
  item = plain_object(natural_classes.NaturalOutline(0), center=(32.0, 32.0))
  item = dataclasses.replace(item, shadow=0.4)
  image, label = np.ones((64, 64, 3)), np.zeros((64, 64), np.int16)
  natural.draw_natural_object(
    image, label, item, (1.0, 0.0)
  )  # light from the right
  # The rim of the object is at 12 and 52, that of the shadow 3 pixels left.
  assert image[32, 10, 0] < 0.8
  np.testing.assert_allclose(image[32, 54:, 0], 1)


def test_tags_are_the_classes_of_the_mask(scenes):
  for scene, sample in scenes:
    assert sample.tags == [c for c in np.unique(sample.label).tolist() if c > 0]
    assert 1 <= len(scene.objects) <= 5
    assert sample.label.dtype == np.int16
  assert {len(scene.objects) for scene, _ in scenes} == {1, 2, 3, 4, 5}


def test_objects_hide_each_other_but_remain_visible(scenes):
  covered = 0
  for scene, sample in scenes:
    areas = np.zeros(11)
    for item in scene.objects:
      areas[item.class_id] += np.pi * np.mean(item.outline**2) * item.radius**2
    shown = np.bincount(sample.label.ravel(), minlength=11)[1:]
    assert np.all(shown >= 0.35 * areas[1:])
    masks = [
      natural_scene.natural_object_mask(item, 64) for item in scene.objects
    ]
    covered += np.sum(masks, axis=0).max() > 1
  assert covered > 10


def test_single_has_one_object_of_balanced_classes(single):
  classes = [np.unique(sample.label).tolist() for sample in single]
  assert classes == [[0, 1 + i % 10] for i in range(160)]
  assert all(sample.tags == [1 + i % 10] for i, sample in enumerate(single))


def test_contexts_fit_the_class_in_70_percent():
  rng = np.random.default_rng(0)
  names = list(natural_classes.CONTEXTS)
  for class_id, name in ((1, 'soil'), (10, 'water')):
    counts = np.bincount(
      [natural_scene.sample_natural_context(rng, class_id) for _ in range(1000)]
    )
    # Standard deviations of 14 and 8 images.
    home = names.index(name)
    assert counts[home] == pytest.approx(700, abs=60)
    np.testing.assert_allclose(np.delete(counts, home), 75, atol=35)


def test_classes_are_long_tailed_and_share_contexts():
  rng = np.random.default_rng(0)
  counts = np.zeros((2, 11))
  for _ in range(3000):
    first = 1 + rng.choice(10, p=natural_classes.FREQUENCIES)
    context = natural_scene.sample_natural_context(rng, int(first))
    counts[0, first] += 1
    counts[1, natural_scene.sample_natural_companions(rng, context, 1)[0]] += 1
  # 1 / rank; five standard deviations are 130 objects or fewer.
  expected = 3000 / np.arange(1, 11) / sum(1 / n for n in range(1, 11))
  np.testing.assert_allclose(counts[:, 1:], [expected] * 2, atol=130)
  homes = [kind.context for kind in natural_classes.KINDS.values()]
  assert sorted(homes) == sorted(2 * list(natural_classes.CONTEXTS))


def test_color_predicts_the_class_in_part(single):
  def accuracy(features):
    """Scores the nearest class mean of the first half on the second one."""
    classes = np.arange(160) % 10
    means = features[:80].reshape(8, 10, 3).mean(0)
    distances = np.linalg.norm(features[80:, None] - means, axis=2)
    return np.mean(distances.argmin(1) == classes[80:])

  pairs = [(sample.pixels, sample.label) for sample in single]
  objects = accuracy(np.stack([p[label > 0].mean(0) for p, label in pairs]))
  contexts = accuracy(np.stack([p[label == 0].mean(0) for p, label in pairs]))
  # Chance is 0.1, with a standard deviation of 0.03.
  assert 0.2 < objects < 0.7
  assert 0.2 < contexts < 0.5


def test_images_never_change():
  actual = {}
  for name, config in CONFIGS.items():
    sample = config.draw_sample('train', 0)
    content = sample.pixels.tobytes() + sample.label.astype('<i2').tobytes()
    actual[name] = zlib.crc32(content)
  # Change the version of the variants with these.
  assert actual == {
    'natural': 1046188208,
    'natural_single': 2435679847,
    'natural_128': 3722448305,
    'natural_single_128': 4165936465,
  }


def test_an_image_does_not_depend_on_the_others(single):
  again = CONFIGS['natural_single'].draw_sample('train', 7)
  assert (again.id, again.image) == (single[7].id, single[7].image)
  np.testing.assert_array_equal(again.label, single[7].label)
  decoded = records.decode_record_image(again.image)
  np.testing.assert_array_equal(decoded, again.pixels)


def test_splits_and_variants_share_no_image():
  images = {
    config.draw_sample(split, i).image
    for config in CONFIGS.values()
    if config.size == 64
    for split in config.num_images
    for i in range(2)
  }
  assert len(images) == 2 * 2 * 4


def test_number_of_images():
  assert {n: dict(config.num_images) for n, config in CONFIGS.items()} == {
    'natural': SCENES,
    'natural_single': SINGLE,
    'natural_128': SCENES,
    'natural_single_128': SINGLE,
  }


def test_prepared_records_are_read_back(monkeypatch, tmp_path):
  monkeypatch.setattr(CONFIGS['natural'], 'num_images', {'val': 2})
  builder = shapes.Shapes(config='natural', data_dir=tmp_path)
  builder.download_and_prepare()
  assert builder.info.metadata['classes'] == list(natural_classes.CLASSES)
  assert len(set(natural_classes.PALETTE)) == 11
  assert builder.info.full_name == 'shapes/natural/1.0.0'
  skip = tfds.decode.SkipDecoding()
  source = builder.as_data_source(
    split='val', decoders={'image': skip, 'label': skip}
  )
  for index, actual in enumerate(source):
    expected = CONFIGS['natural'].draw_sample('val', index)
    assert actual['image'] == expected.image
    label = records.decode_record_label(actual['label'])
    np.testing.assert_array_equal(label, expected.label)
    assert list(actual['tags']) == expected.tags
    assert actual['id'].decode() == f'natural/val/0000{index}'
