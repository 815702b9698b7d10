"""CutMix, ClassMix and Cutout against the transcription."""

import jax
import numpy as np
import pytest

from tests.transcriptions import u2pl as reference
from tests.u2pl import inputs
from u2pl import mixing


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


mix = jax.jit(mixing.mix_unlabeled_images, static_argnums=3)


@pytest.mark.parametrize('size', [(8, 12), (64, 64), (513, 513)])
def test_boxes(size):
  uniforms = np.random.default_rng(0).random((500, 3))
  uniforms[0], uniforms[1] = 0.0, 1 - 1e-12
  boxes = jax.jit(mixing.cutmix_boxes, static_argnums=(1, 2))
  actual = np.asarray(boxes(uniforms, *size))
  expected = [reference.box_from_uniform(u, size) for u in uniforms]
  np.testing.assert_array_equal(actual, expected)
  top, left, height, width = actual.T
  assert (top >= 0).all() and (top + height <= size[0]).all()
  assert (left >= 0).all() and (left + width <= size[1]).all()
  # Half of the area, up to the rounding of the height.
  area = height * width / (size[0] * size[1])
  assert np.abs(area - 0.5).max() <= 0.5 / size[0] + 1e-9
  # The law: every width from ⌊W/2 + 1⌋ to W - 1 occurs.
  if size[1] == 12:
    assert set(width) == set(range(7, 12))


def pair(seed=0):
  return inputs.draw(4, 6, 8, 3, seed=seed), inputs.draw_labels(
    4, 6, 8, seed=seed + 1
  )


def draws_of(boxes, mixed=True, classes=None):
  if classes is None:
    classes = np.zeros((4, inputs.CLASSES))
  return mixing.MixDraws(np.full(1, mixed), boxes, classes)


@pytest.mark.parametrize('kind', ['cutmix', 'cutout'])
def test_boxes_are_mixed(kind):
  images, labels = pair()
  boxes = np.array([(0, 0, 4, 6), (1, 2, 5, 5), (2, 1, 3, 7), (0, 3, 6, 4)])
  actual = mix(
    images,
    labels,
    draws_of(boxes),
    mixing.MixingOptions(kind=kind),
  )
  expected = getattr(reference, kind)(images, labels, boxes)
  np.testing.assert_array_equal(actual[1], expected[1])
  if kind == 'cutmix':
    np.testing.assert_array_equal(actual[0], expected[0])
  else:
    # The reference writes 0, which is the mean color after normalization.
    mean = np.array([124, 116, 104]) / 127.5 - 1
    cut = (expected[0] == 0).all(-1, keepdims=True)
    inputs.assert_close(actual[0], np.where(cut, mean, expected[0]))


def test_classes_are_mixed():
  images, labels = pair()
  priorities = np.random.default_rng(2).random((4, inputs.CLASSES))
  chosen = []
  for label, priority in zip(labels, priorities, strict=True):
    present = np.unique(label[label >= 0])
    kept = present[np.argsort(-priority[present])][: len(present) // 2]
    chosen.append(kept)
    assert len(kept) == reference.classmix_count(label)
  actual = mix(
    images,
    labels,
    draws_of(np.zeros((4, 4), int), classes=priorities),
    mixing.MixingOptions(kind='classmix'),
  )
  expected = reference.classmix(images, labels, chosen)
  np.testing.assert_array_equal(actual[0], expected[0])
  np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize('kind', ['cutmix', 'cutout', 'classmix'])
def test_a_group_that_is_not_mixed_does_not_change(kind):
  images, labels = pair()
  boxes = np.tile([1, 1, 4, 6], (4, 1))
  actual = mix(
    images,
    labels,
    draws_of(boxes, mixed=False),
    mixing.MixingOptions(kind=kind),
  )
  np.testing.assert_array_equal(actual[0], images)
  np.testing.assert_array_equal(actual[1], labels)


def test_partners_are_neighbors_in_the_group():
  images = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 4, 4, 3))
  labels = np.zeros((6, 4, 4), int)
  draws = mixing.MixDraws(
    np.array([True, False]),
    np.tile(np.array([0, 0, 4, 4]), (6, 1)),
    np.zeros((6, 2)),
  )
  actual, _ = mix(images, labels, draws, mixing.MixingOptions(group=3))
  assert actual[:, 0, 0, 0].tolist() == [1, 2, 0, 3, 4, 5]


def test_half_of_the_groups_are_mixed_and_widths_are_uniform():
  keys = jax.random.split(jax.random.PRNGKey(0), 4000)
  sample = jax.jit(mixing.sample_mixing_draws, static_argnums=(2, 3, 4))
  draws = jax.device_get(
    sample(
      jax.random.PRNGKey(1), keys, mixing.MixingOptions(), (4000, 64, 64), 3
    )
  )
  share = float(draws.mixed.mean())
  # 1,000 coin flips: 4 standard deviations are 0.063.
  assert draws.mixed.shape == (1000,) and abs(share - 0.5) < 0.063
  widths = np.asarray(draws.boxes[:, 3])
  assert set(widths) == set(range(33, 64))
  # Uniform: 31 widths, each expected 129 times; 5 standard deviations.
  assert np.abs(np.bincount(widths)[33:] - 4000 / 31).max() < 57


@pytest.mark.parametrize('kind', ['cutmix', 'classmix', 'none'])
def test_further_maps_are_mixed_as_the_labels(kind):
  images, labels = pair()
  draws = draws_of(
    np.array([(0, 0, 4, 6), (1, 2, 5, 5), (2, 1, 3, 7), (0, 3, 6, 4)]),
    classes=np.random.default_rng(2).random((4, inputs.CLASSES)),
  )
  options = mixing.MixingOptions(kind=kind)
  alone = mix(images, labels, draws, options)
  *mixed, copy, even = mix(
    images, labels, draws, options, labels, labels % 2 == 0
  )
  jax.tree.map(np.testing.assert_array_equal, tuple(mixed), tuple(alone))
  np.testing.assert_array_equal(copy, alone[1])
  np.testing.assert_array_equal(even, alone[1] % 2 == 0)
