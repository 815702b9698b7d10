"""Labels from CAMs against the transcription, in float64."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.ops import pixel_adaptive_refinement
from segcore.train import train_state
from tests.transcriptions import afa as reference
from u2pl.weak import cam_contrast, cam_labels, cam_scores, losses
from u2pl.weak import options as options_lib

SIZE, CLASSES, GRID, RADIUS = (12, 14), 4, (3, 4), 1
DILATIONS = (1, 2)
OPTIONS = options_lib.CamOptions(
  refinement=pixel_adaptive_refinement.PixelAdaptiveOptions(dilations=DILATIONS)
)
# Of an odd height, of a single row, and without padding.
BOXES = ((2, 9, 0, 13), (4, 5, 3, 14), (0, 12, 0, 14))


@pytest.fixture(scope='module')
def inputs():
  """Returns CAMs, affinities, tags and images, with padding."""
  rng = np.random.default_rng(0)
  coarse = rng.random((3, 4, 5, CLASSES))
  cams = np.stack([reference.resize(each, SIZE) for each in coarse])
  inside = np.zeros((3, *SIZE), bool)
  for mask, (top, bottom, left, right) in zip(inside, BOXES, strict=True):
    mask[top:bottom, left:right] = True
  tags = np.array([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]], bool)
  pixels = rng.integers(0, 256, (3, *SIZE, 3)).astype(float)
  return (
    cams,
    rng.random((3, 12, 12)),
    cam_labels.TaggedImages(pixels, tags, inside),
  )


@pytest.fixture(scope='module')
def labels(inputs):
  """Returns the kinds of labels by the tested functions."""
  whole = dataclasses.replace(OPTIONS, walked_crop='whole')

  @jax.jit
  def compute(cams, affinities, images):
    images = cam_labels.TaggedImages(*images)
    grid = cam_labels.Affinities(affinities, GRID)
    return (
      cam_labels.threshold_cams(cams, images, 0.35, 0.55),
      cam_labels.refine_cam_labels(cams, images, OPTIONS),
      cam_labels.propagate_cam_labels(cams, images, grid, RADIUS, OPTIONS),
      cam_labels.propagate_cam_labels(cams, images, grid, RADIUS, whole),
      cam_labels.propagate_cams(cams, grid, RADIUS),
    )

  with jax.enable_x64():
    return jax.device_get(compute(*inputs))


def test_thresholded_labels(inputs, labels):
  cams, _, images = inputs
  for b, box in enumerate(BOXES):
    expected = reference.threshold_labels(cams[b], images.tags[b], box)
    np.testing.assert_array_equal(labels[0][b], expected)
  assert {*np.unique(labels[0])} == {-1, 0, 1, 2, 3, 4}


def test_refined_labels(inputs, labels):
  cams, _, images = inputs
  for b, box in enumerate(BOXES):
    expected = reference.refined_labels(
      cams[b], images.tags[b], images.pixels[b], box, 0.35, 0.55, DILATIONS
    )
    np.testing.assert_array_equal(labels[1][b], expected)
  assert {*np.unique(labels[1])} > {-1, 0, 1}


@pytest.mark.parametrize('reads', ['box', 'whole'])
def test_propagated_labels(inputs, labels, reads):
  """The refinement reads the box, whose size differs by image, or all."""
  cams, affinities, images = inputs
  actual = labels[2 if reads == 'box' else 3]
  for b, box in enumerate(BOXES):
    expected = reference.propagated_labels(
      cams[b],
      images.tags[b],
      affinities[b],
      GRID,
      images.pixels[b],
      box if reads == 'box' else (0, SIZE[0], 0, SIZE[1]),
      0.35,
      0.55,
      RADIUS,
      DILATIONS,
    )
    expected = np.where(images.inside[b], expected, -1)
    np.testing.assert_array_equal(actual[b], expected)
  assert len(np.unique(actual)) > 2


def test_refined_cams_are_evaluated(inputs, monkeypatch):
  """Compares classes that are predicted; all pixels have one."""
  cams, _, images = inputs
  logits = np.where(images.tags, 0.5, -0.5)
  outputs = {'tags': heads_lib.TagScores(logits, cams)}
  monkeypatch.setattr(segmenter.Segmenter, 'apply', lambda *_, **__: outputs)
  network = segmenter.Segmenter(nn.Module(), None, {})
  scores = cam_scores.CamScores(network, 0.45, OPTIONS.refinement)
  state = train_state.TrainState(0, {}, {}, (), None)
  with jax.enable_x64():
    symmetric = images.pixels / 127.5 - 1
    actual = jax.jit(lambda x: scores.predict(state, x))(symmetric)
  normalized = np.stack(
    [reference.multi_scale_cam([(x, x[:, ::-1])], SIZE) for x in cams]
  )
  for b, scored in enumerate(np.argmax(actual, axis=-1)):
    whole = (0, SIZE[0], 0, SIZE[1])
    expected = reference.refined_labels(
      normalized[b],
      *(images.tags[b], images.pixels[b], whole, 0.45, 0.45, DILATIONS),
    )
    np.testing.assert_array_equal(scored, expected)


def test_propagated_cams(inputs, labels):
  cams, affinities, _ = inputs
  for b in range(3):
    expected = reference.propagated_cam(cams[b], affinities[b], GRID, RADIUS)
    np.testing.assert_allclose(labels[4][b], expected, rtol=1e-12)


def test_balanced_cross_entropy_and_its_gradient():
  rng = np.random.default_rng(1)
  logits, labels = rng.normal(size=(2, 4, 3, 5)), rng.integers(-1, 5, (2, 4, 3))
  compute = jax.jit(jax.value_and_grad(losses.balanced_cross_entropy))
  with jax.enable_x64():
    for each in (labels, np.where(labels == 0, -1, labels)):
      loss, gradient = compute(logits, each)
      expected, slope = reference.segmentation_loss(logits, each)
      np.testing.assert_allclose(loss, expected, rtol=1e-12)
      np.testing.assert_allclose(gradient, slope, atol=1e-15)


def test_candidates_of_the_contrastive_loss():
  """Eqs. 29 and 31; absent classes have no anchors, as their maps span 0…1."""
  rng = np.random.default_rng(2)
  cams, inside = rng.random((2, 5, 6, 3)), rng.random((2, 5, 6)) > 0.2
  tags = np.array([[True, False, True], [False, True, False]])
  options = options_lib.CamContrastOptions(keys_per_image=4)
  literal = options_lib.CamContrastOptions(absent_anchors=True)

  @jax.jit
  def compute(cams, tags, inside, rng):
    candidates = cam_contrast.cam_candidates(cams, tags, inside, options)
    return (
      candidates,
      cam_contrast.sample_negatives_per_image(candidates, rng, options),
      cam_contrast.cam_candidates(cams, tags, inside, literal).anchors,
    )

  candidates, sampled, anchors = compute(
    cams, tags, inside, jax.random.PRNGKey(0)
  )
  for b in range(2):
    expected = reference.candidates(cams[b], tags[b], inside[b], 0.45)
    np.testing.assert_array_equal(candidates.anchors[b], expected[0])
    np.testing.assert_array_equal(candidates.positives[b], expected[0])
    np.testing.assert_array_equal(candidates.negatives[b], expected[1])
  np.testing.assert_array_equal(anchors, (cams > 0.45) & inside[..., None])
  kept = np.asarray(sampled.negatives)
  assert not np.any(kept & ~np.asarray(candidates.negatives))
  counts = np.asarray(candidates.negatives).sum((1, 2))
  assert counts.min() > 4
  np.testing.assert_array_equal(kept.sum((1, 2)), 4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'refined_steps': 3}, 'refined_steps: expected at least class_steps'),
    (
      {'supervision': 'masks', 'affinity': None, 'segmentation': False},
      "segmentation: expected True with supervision='masks'",
    ),
    (
      {
        'affinity': None,
        'contrast': options_lib.CamContrastOptions(maps='propagated'),
      },
      "contrast.maps: expected 'cam' without affinity",
    ),
    (
      {'supervision': 'masks'},
      'affinity: expected None without segmentation by labels of CAMs',
    ),
    (
      {
        'segmentation': False,
        'affinity': None,
        'contrast': options_lib.CamContrastOptions(),
      },
      'contrast: expected None without segmentation',
    ),
  ],
)
def test_contradicting_options_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    options_lib.LearnOptions(**fields)
  with pytest.raises(ValueError, match='low and high: expected low <= high'):
    options_lib.CamOptions(low=0.6)
  with pytest.raises(ValueError, match='teacher_decay: expected less than 1'):
    options_lib.CamContrastOptions(teacher_decay=1.0)
