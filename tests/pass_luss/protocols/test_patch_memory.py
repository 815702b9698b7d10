"""Soft labels of patches and their choice, against slow transcriptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.protocols import patch_memory
from segcore.ops import color_augment
from tests.pass_luss import support


def label_with_ignored_pixels():
  rng = np.random.default_rng(0)
  label = rng.integers(-1, 3, (12, 8)).astype(np.int16)
  label[:4, :4] = -1
  return label


@pytest.mark.parametrize('unlabeled', ['class_0', 'left_out'])
def test_labels_are_shares_of_pixels(unlabeled):
  label = label_with_ignored_pixels()
  expected = np.zeros((3, 2, 3))
  for i in range(12):
    for j in range(8):
      if label[i, j] >= 0:
        expected[i // 4, j // 4, label[i, j]] += 1
      elif unlabeled == 'class_0':
        expected[i // 4, j // 4, 0] += 1
  totals = expected.sum(-1, keepdims=True)
  expected = np.divide(
    expected, totals, out=np.zeros_like(expected), where=totals > 0
  )
  actual = patch_memory.compute_patch_labels(label, 4, 3, unlabeled)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  first = [1, 0, 0] if unlabeled == 'class_0' else [0, 0, 0]
  assert actual[0, 0].tolist() == first


def test_patches_of_the_rarest_classes_come_first():
  # Patches of class 0 (three), of class 1 (two), of both, and of class 2.
  labels = np.eye(3)[[0, 0, 0, 1, 1, 0, 2]]
  labels[5] = 0.5, 0.5, 0
  draws = np.array([0.3, 0.1, 0.2, 0.9, 0.8, 0.0, 1.0])
  # Frequencies 3.5, 2.5, 1: the mixed patch has both, and comes last.
  order = patch_memory.rank_rarest_patches(labels, draws)
  assert order.tolist() == [6, 4, 3, 1, 2, 0, 5]


def rank_slowly(labels, draws):
  scores = []
  for row in labels:
    classes = [c for c in range(len(row)) if row[c] > 0]
    scores.append(sum(sum(x[c] for x in labels) for c in classes))
  return sorted(
    range(len(labels)), key=lambda i: (round(scores[i], 6), draws[i])
  )


def test_rank_and_choice_equal_the_transcription():
  rng = np.random.default_rng(2)
  labels = patch_memory.compute_patch_labels(
    rng.choice([0, 0, 0, 0, 1, 2], (24, 32)), 2, 3
  ).reshape(-1, 3)
  draws = rng.random(len(labels))
  expected = rank_slowly(labels.astype(np.float64), draws)
  order = patch_memory.rank_rarest_patches(labels, draws)
  assert order.tolist() == expected
  chosen = patch_memory.choose_patches(labels, 20, draws)
  assert chosen.tolist() == sorted(expected[:20])


def test_patches_without_a_class_are_never_chosen():
  labels = np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.float32)
  draws = np.zeros(4)
  for limit, expected in ((0, [1, 2]), (1, [1]), (9, [1, 2])):
    chosen = patch_memory.choose_patches(labels, limit, draws)
    assert chosen.tolist() == expected


def test_ties_depend_on_the_draws_only():
  labels = np.ones((50, 1), np.float32)
  draws = [np.random.default_rng(seed).random(50) for seed in (0, 0, 1)]
  chosen = [patch_memory.choose_patches(labels, 5, x).tolist() for x in draws]
  assert chosen[0] == chosen[1] == sorted(np.argsort(draws[0])[:5])
  assert chosen[0] != chosen[2]


def test_crops_of_image_and_label_fit():
  values = np.repeat(np.repeat(np.arange(20), 4)[None], 60, axis=0)
  image = np.repeat(10 * values[..., None], 3, -1).astype(np.uint8)
  example = {'image': image, 'label': values.astype(np.int16)}
  widths = set()
  for seed in range(4):
    crop = patch_memory.PatchMemoryCrop(32)(
      example, np.random.default_rng(seed)
    )
    assert crop['image'].shape == (32, 32, 3)
    assert crop['label'].shape == (32, 32)
    difference = crop['image'][..., 0] - 10.0 * crop['label']
    assert np.abs(difference).max() <= 10
    widths.add(np.ptp(crop['label']))
  assert len(widths) > 1


def test_jitter_does_not_depend_on_the_place_in_the_batch():
  images = support.to_symmetric(support.random_images(3, (8, 8)))
  jitter = jax.jit(
    functools.partial(patch_memory.jitter_patch_memory_images, seed=0)
  )
  jittered = np.asarray(jitter(images))
  np.testing.assert_allclose(jitter(images[::-1])[::-1], jittered, atol=1e-6)
  assert np.abs(jittered - images).max() > 0.01


def test_only_what_is_drawn_changes():
  draws = color_augment.sample_color_draws(
    jax.random.key(0), patch_memory.JITTER
  )
  kept = patch_memory.keep_patch_memory_factors(
    draws, jnp.array([False, True, False, False])
  )
  expected = [1, float(draws.factors[1]), 1, 0]
  np.testing.assert_allclose(kept.factors, expected)
  assert 0.9 <= draws.factors[1] <= 1.1 and abs(draws.factors[3]) <= 0.1
