"""Panels of the teacher: each column against what the method computes."""

import jax
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.eval import panels as panels_lib
from tests.u2pl.semi import tiny
from u2pl import panels

PALETTE = tuple((40 * c, 200 - 40 * c, 90) for c in range(tiny.CLASSES))


@pytest.fixture(scope='module')
def rows(trained, late):
  """Returns the pictures of a panel of 3 rows, before they are arranged."""
  captured = []

  def capture(rows, titles):
    captured.append(rows)
    return np.zeros((4, 4, len(titles)), np.uint8)

  panel = panels.TeacherPanels(
    trained, tiny.draw_batch(3), PALETTE, 3, sharding.make_mesh()
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(panels_lib, 'draw_picture_grid', capture)
    for _ in range(2):
      summaries = panel(late)
  assert set(summaries.images) == {'teacher/panels'}
  # A fixed key: the mixing is the same at every call.
  jax.tree.map(np.testing.assert_array_equal, *captured)
  return captured[0]


def test_each_column_shows_its_map(trained, late, rows):
  batch = tiny.draw_batch(3)
  _, output = jax.device_get(
    jax.jit(trained.teacher_output)(late, batch, jax.random.PRNGKey(0))
  )
  assert len(rows) == 3
  for i, row in enumerate(rows):
    image, weak_labels, _, mixed, entropy, reliable = row
    np.testing.assert_array_equal(image, batch['unlabeled']['image'][i])
    expected = panels_lib.colorize_label_map(output.weak_labels[i], PALETTE)
    np.testing.assert_array_equal(weak_labels, expected)
    np.testing.assert_array_equal(
      mixed, batch_lib.batch_images_to_uint8(output.images[i])
    )
    # White is log C, the largest entropy.
    expected = 255 * output.entropy[i] / np.log(tiny.CLASSES)
    assert np.abs(entropy.astype(float) - expected[..., None]).max() < 0.51
    gray = (reliable == panels_lib.IGNORED).all(-1)
    np.testing.assert_array_equal(gray, ~output.kept[i])
    colored = panels_lib.colorize_label_map(output.labels[i], PALETTE)
    np.testing.assert_array_equal(reliable[~gray], colored[~gray])
    assert 0 < gray.mean() < 1


def test_the_student_is_shown_on_images_before_mixing(trained, late, rows):
  alone = late.replace(step=0 * late.step)  # The student is reported.

  @jax.jit
  def predict(state, images):
    symmetric = batch_lib.batch_images_to_symmetric(images)
    return trained.predict(state, symmetric)

  images = tiny.draw_batch(3)['unlabeled']['image']
  logits = np.asarray(predict(alone, images), np.float64)
  labels = logits.argmax(-1)
  for i, row in enumerate(rows):
    # At the corners of the cells, which upsampling with aligned corners keeps.
    expected = panels_lib.colorize_label_map(labels[i], PALETTE)
    np.testing.assert_array_equal(row[2][::4, ::4], expected)
