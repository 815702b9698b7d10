"""The PC2Seg-like system: a whole step with its gradient, in numpy."""

import jax
import numpy as np
import pytest

from segcore.train import update as update_lib
from tests.transcriptions import semi_pseudoseg as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import pointwise, test_pseudoseg
from u2pl.semi import cutout_views, pc2seg, pseudoseg_options

SIDE, CELLS, NUM_CELLS = 24, (6, 6), 5
OPTIONS = pseudoseg_options.Pc2SegOptions(
  num_cells=NUM_CELLS,
  num_negatives=3,
  contrast=1.0,
  views=pseudoseg_options.CutoutViewOptions(cutout=0.34),
)


def sample_draws(rng):
  """Draws views, cells and negatives by the key of a step."""
  view_rng, cell_rng, *_ = jax.random.split(rng, 5)
  row_keys = update_lib.row_prng_keys
  draws = cutout_views.sample_view_draws(
    row_keys(view_rng, pointwise.BATCH), OPTIONS.views
  )
  keys = row_keys(cell_rng, pointwise.BATCH)
  shape = NUM_CELLS, pointwise.BATCH * NUM_CELLS
  uniforms = [
    (
      jax.random.uniform(key, CELLS),
      jax.random.uniform(jax.random.fold_in(key, 1), shape),
    )
    for key in keys
  ]
  return draws, uniforms


@pytest.fixture(scope='module')
def stepped():
  _, *results, draws = pointwise.run_first_step(OPTIONS, SIDE, sample_draws)
  return *results, *draws


def outputs_of(params, images):
  x = pointwise.decode(params, pointwise.encode(params, images))
  return pointwise.classify(params, x), pointwise.classify(params, x, 'rep')


def contrast(weak, strong, labels, counted, uniforms):
  """Averages InfoNCE over the anchors of all images."""
  cells = []  # (image, cell) of the pool, in order.
  for image, (numbers, _) in enumerate(uniforms):
    chosen = reference.largest(numbers, counted[image], NUM_CELLS)
    assert len(chosen) == NUM_CELLS
    cells += [(image, cell) for cell in chosen]
  normalized = [
    (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-12)).reshape(len(x), -1, 4)
    for x in (weak, strong)
  ]
  flat = labels.reshape(len(labels), -1)
  losses = []
  for i, (image, cell) in enumerate(cells):
    possible = [
      other != image and flat[other, c] != flat[image, cell]
      for other, c in cells
    ]
    numbers = uniforms[image][1][i % NUM_CELLS]
    negatives = [
      normalized[0][cells[j]] for j in reference.largest(numbers, possible, 3)
    ]
    if negatives:
      losses.append(
        reference.info_nce(
          normalized[1][image, cell], normalized[0][image, cell], negatives, 0.1
        )
      )
  assert len(losses) > 3
  return np.mean(losses)


def test_a_whole_step_and_its_gradient_equal_the_reference(stepped):
  state, batch, after, scalars, draws, uniforms = stepped
  params = jax.device_get(state.params)
  labeled, weak = pointwise.images_of(batch)
  valid = batch['unlabeled']['valid']
  strong, stay = test_pseudoseg.strong_views(weak, draws, valid)
  counted = u2pl_reference.nearest(stay & batch['unlabeled']['valid'], CELLS)
  fixed = outputs_of(params, weak)[0]
  labels = batch['labeled']['label'].astype(int)

  def losses(moved):
    logits, _ = outputs_of(moved, labeled)
    _, weak_rep = outputs_of(moved, weak)
    strong_logits, strong_rep = outputs_of(moved, strong)
    return {
      'loss_supervised': u2pl_reference.cross_entropy(
        pointwise.upsample(logits, (SIDE, SIDE)), labels
      ),
      'loss_unsupervised': reference.squared_error(
        fixed, strong_logits, counted
      ),
      'loss_contrast': contrast(
        weak_rep, strong_rep, fixed.argmax(-1), counted, uniforms
      ),
    }

  pointwise.check_step(losses, params, after.params, scalars)


def test_negatives_are_of_other_images_and_labels():
  rng = np.random.default_rng(0)
  labels = np.int32(rng.integers(0, 3, (4, 5)))
  usable = rng.random((4, 5)) < 0.8
  uniforms = np.float32(rng.random((4, 5, 20)))
  indices, kept = jax.jit(pc2seg.choose_negatives, static_argnums=3)(
    uniforms, labels, usable, 8
  )
  for b, n in np.ndindex(4, 5):
    possible = [
      other != b and labels[other, m] != labels[b, n] and usable[other, m]
      for other, m in np.ndindex(4, 5)
    ]
    expected = reference.largest(uniforms[b, n], np.array(possible), 8)
    assert indices[b, n][kept[b, n]].tolist() == expected


def test_an_anchor_without_negatives_has_the_loss_0():
  anchors = np.float32([[[0.6, 0.8]]])
  loss = jax.jit(pc2seg.info_nce, static_argnums=4)(
    *(anchors, anchors, np.int32([[[0]]]), np.zeros((1, 1, 1), bool)), 0.1
  )
  np.testing.assert_allclose(loss, 0, atol=1e-6)
