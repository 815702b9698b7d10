"""PseudoSeg: its views and fusion, and a whole step with its gradient."""

import jax
import numpy as np
import pytest

from segcore.train import update as update_lib
from tests.transcriptions import semi_pseudoseg as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import pointwise
from u2pl.semi import cutout_views, grad_cam, pseudoseg_options

SIDE, CELLS = 24, (6, 6)
# The mean color of ImageNet, in [-1, 1].
MEAN = np.array([124, 116, 104]) / 127.5 - 1
OPTIONS = pseudoseg_options.PseudoSegOptions(
  attention_width=4, views=pseudoseg_options.CutoutViewOptions(cutout=0.34)
)


def sample_draws(rng):
  """Draws the strong views by the key of a step."""
  view_rng = jax.random.split(rng, 4)[0]
  keys = update_lib.row_prng_keys(view_rng, pointwise.BATCH)
  return cutout_views.sample_view_draws(keys, OPTIONS.views)


def strong_views(weak, draws, valid):
  """Returns the strong views of images in [-1, 1], and where pixels stay.

  Colors change before images are padded, here by whole rows.
  """
  images, stay = [], []
  for i, image in enumerate(weak):
    color = np.broadcast_to((MEAN + 1) / 2, image.shape).copy()
    rows = valid[i].all(1)
    color[rows] = reference.jittered(
      (image[rows] + 1) / 2, draws.color.order[i], draws.color.factors[i]
    )
    kept = reference.cut_out(image.shape[:2], draws.centers[i], 8)
    images.append(np.where(kept[..., None], 2 * color - 1, MEAN))
    stay.append(kept)
  return np.stack(images), np.stack(stay)


def center_tag_scores(state, batch):
  """Moves the bias of the tags so that each image has some of them."""
  _, weak = pointwise.images_of(batch)
  maps = pointwise.encode(state.params, weak, state.batch_stats)
  state.params['heads']['tags']['dense']['bias'] -= tag_logits(
    state.params, maps
  ).mean(0)


@pytest.fixture(scope='module')
def stepped():
  _, *results = pointwise.run_first_step(
    OPTIONS, SIDE, sample_draws, center_tag_scores
  )
  return results


def attention_of(heads, maps, kernel, tags, valid):
  own = heads['attention']
  params = {
    name: own[name]['kernel'][0, 0] for name in ('query', 'key', 'scores')
  }
  return reference.attention(
    np.concatenate([maps[2], maps[1]], -1),
    params | own['bn'],
    reference.cams(maps[2], kernel, tags),
    u2pl_reference.nearest(valid, maps[2].shape[1:3]),
  )


def tag_logits(params, maps):
  return pointwise.dense(params['heads']['tags']['dense'], maps[2].mean((1, 2)))


def pseudo_labels_of(state, batch):
  """Computes the soft targets; classifier and features in evaluation mode."""
  params, stats = jax.device_get((state.params, state.batch_stats))
  _, weak = pointwise.images_of(batch)
  maps = pointwise.encode(params, weak, stats)
  tags = 1 / (1 + np.exp(-tag_logits(params, maps))) >= 0.5
  assert tags.any() and not tags.all()
  other = attention_of(
    *(params['heads'], maps, params['heads']['tags']['dense']['kernel']),
    *(tags, batch['unlabeled']['valid']),
  )
  decoder = pointwise.classify(
    params, pointwise.decode(params, pointwise.encode(params, weak))
  )
  return reference.fused(decoder, pointwise.upsample(other, CELLS))


def losses_of(params, fixed, batch, strong, targets, counted):
  """Computes all losses; Grad-CAM and its features are those of `fixed`."""
  labeled, _ = pointwise.images_of(batch)
  labels = batch['labeled']['label'].astype(int)
  tags = reference.tags(labels, 3)
  maps = pointwise.encode(params, labeled)
  logits = pointwise.classify(params, pointwise.decode(params, maps))
  kernel = fixed['heads']['tags']['dense']['kernel']
  other = attention_of(
    *(params['heads'], pointwise.encode(fixed, labeled), kernel),
    *(tags, labels >= 0),
  )
  strong_logits = pointwise.classify(
    params, pointwise.decode(params, pointwise.encode(params, strong))
  )
  size = labels.shape[1:]
  return {
    'loss_supervised': u2pl_reference.cross_entropy(
      pointwise.upsample(logits, size), labels
    ),
    'loss_attention': u2pl_reference.cross_entropy(
      pointwise.upsample(other, size), labels
    ),
    'loss_tags': reference.tag_loss(tag_logits(params, maps), tags),
    'loss_unsupervised': reference.soft_cross_entropy(
      strong_logits, targets, counted
    ),
  }


def test_a_whole_step_and_its_gradient_equal_the_reference(stepped):
  state, batch, after, scalars, draws = stepped
  params = jax.device_get(state.params)
  targets = pseudo_labels_of(state, batch)
  _, weak = pointwise.images_of(batch)
  strong, stay = strong_views(weak, draws, batch['unlabeled']['valid'])
  counted = u2pl_reference.nearest(stay & batch['unlabeled']['valid'], CELLS)
  assert not counted.all() and np.abs(strong - weak).mean() > 0.05

  def losses(moved):
    return losses_of(moved, params, batch, strong, targets, counted)

  expected = losses(params)
  np.testing.assert_allclose(scalars['loss'], sum(expected.values()), rtol=1e-5)
  pointwise.check_step(losses, params, after.params, scalars)


def test_fusion_and_views_equal_the_reference():
  rng = np.random.default_rng(0)
  logits = np.float32(rng.normal(size=(2, 3, 4, 5, 6)) * 3)
  images = np.float32(rng.random((6, 9, 8, 3)) * 2 - 1)
  options = pseudoseg_options.CutoutViewOptions(cutout=0.5)

  @jax.jit
  def compute(logits, images):
    draws = cutout_views.sample_view_draws(
      update_lib.row_prng_keys(jax.random.PRNGKey(3), len(images)), options
    )
    fused = [
      grad_cam.fuse_predictions(*logits, 0.5, scale)
      for scale in ('batch', 'pixel')
    ]
    return fused, draws, cutout_views.strong_views(images, draws, options)

  fused, draws, (strong, seen) = jax.device_get(compute(logits, images))
  for scale, each in zip(('batch', 'pixel'), fused, strict=True):
    np.testing.assert_allclose(
      each, reference.fused(*logits, 0.5, scale), rtol=2e-4
    )
  for i, image in enumerate(images):
    color = reference.jittered(
      (image + 1) / 2, draws.color.order[i], draws.color.factors[i]
    )
    kept = reference.cut_out((9, 8), draws.centers[i], 4)
    np.testing.assert_array_equal(seen[i], kept)
    np.testing.assert_allclose(
      strong[i][kept], (2 * color - 1)[kept], atol=2e-5
    )
    np.testing.assert_allclose(strong[i][~kept] - MEAN, 0, atol=1e-6)
  # Each is near the border of some image, where it is cut off.
  assert len({(~kept).sum() for kept in seen}) > 1


def test_the_cutout_of_the_paper_has_100_pixels():
  boxes = cutout_views.cutout_boxes(
    np.float32([[0.5, 0.5], [0.0, 0.999]]) @ jax.numpy.eye(2),
    *((513, 513), 100 / 513),
  )
  np.testing.assert_array_equal(boxes[0], [206, 206, 100, 100])
  np.testing.assert_array_equal(boxes[1], [0, 462, 50, 51])


def test_one_class_is_refused():
  with pytest.raises(ValueError, match='expected 2 classes or more'):
    OPTIONS.check_num_classes(1)
