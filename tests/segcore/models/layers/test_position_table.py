"""Position tables by each rule, against loops over cells, scipy and jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from segcore.models.layers import position_table
from tests.transcriptions import position_tables

_RULES = {
  'dino': position_tables.dino,
  'timm': position_tables.timm,
  'huggingface': position_tables.huggingface,
}


resize_table = jax.jit(
  position_table.resize_position_table, static_argnums=(1, 2, 3)
)
resize_by_jax = jax.jit(
  jax.image.resize, static_argnums=(1, 2), static_argnames='antialias'
)


def _random(*shape):
  rng = np.random.default_rng(sum(shape))
  return rng.normal(scale=0.2, size=shape).astype(np.float32)


@pytest.mark.parametrize('num_extra', [0, 1])
@pytest.mark.parametrize('new', [(6, 6), (7, 10), (3, 8), (5, 4)])
def test_google_tables_equal_scipys(num_extra, new):
  old = (4, 5)
  table = _random(1, num_extra + 20, 3)
  resized = np.asarray(resize_table(table, old, new))
  cells = table[0, num_extra:].reshape(4, 5, 3)
  zoomed = scipy.ndimage.zoom(
    cells, (new[0] / old[0], new[1] / old[1], 1), order=1
  )
  assert zoomed.shape == (*new, 3)
  np.testing.assert_array_equal(resized[:, :num_extra], table[:, :num_extra])
  np.testing.assert_allclose(
    resized[0, num_extra:], zoomed.reshape(-1, 3), atol=1e-6
  )


@pytest.mark.parametrize('rule', _RULES)
@pytest.mark.parametrize(
  ('old', 'new'),
  [(14, (14, 14)), (14, (7, 20)), (14, (14, 9)), (28, (1, 2)), (37, (32, 46))],
)
def test_cubic_tables_equal_the_transcription(rule, old, new):
  table = _random(1, 1 + old * old, 2)
  resized = np.asarray(resize_table(table, (old, old), new, rule))
  expected = _RULES[rule](table[0, 1:].reshape(old, old, 2).astype(float), new)
  np.testing.assert_array_equal(resized[:, 0], table[:, 0])
  np.testing.assert_allclose(
    resized[0, 1:], expected.reshape(-1, 2), atol=1e-6, rtol=0
  )


@pytest.mark.parametrize('new', [16, 36, 46])
def test_the_rule_of_timm_is_that_of_jax(new):
  table = _random(1, 37 * 37, 3)
  resized = np.asarray(resize_table(table, (37, 37), (new, new), 'timm'))
  expected = resize_by_jax(
    table.reshape(37, 37, 3), (new, new, 3), 'cubic', antialias=True
  )
  # jax's weights are computed in float32, and differ from float64 by this much.
  np.testing.assert_allclose(
    resized[0], expected.reshape(-1, 3), atol=3e-6, rtol=0
  )


def test_the_rules_differ_and_keep_a_constant():
  table = _random(1, 37 * 37, 4)
  constant = np.full((1, 37 * 37, 4), 3.0, np.float32)
  results = {}
  for rule in _RULES:
    results[rule], kept = (
      np.asarray(resize_table(x, (37, 37), (16, 16), rule))
      for x in (table, constant)
    )
    np.testing.assert_allclose(kept, 3.0, rtol=1e-6)
  # Relative to the table by the rule of DINO, as in the specification.
  base = np.sqrt(np.mean(results['dino'] ** 2))
  for rule, expected in (('huggingface', 0.28), ('timm', 0.81)):
    difference = results[rule] - results['dino']
    ratio = np.sqrt(np.mean(difference**2)) / base
    assert abs(ratio - expected) < 0.06, (rule, ratio)


@pytest.mark.parametrize('rule', _RULES)
def test_symbolic_sizes_give_the_same_weights(rule):
  def resize(table, image):
    return position_table.resize_position_table(
      table, (6, 6), image.shape[:2], rule
    )

  height, width = jax.export.symbolic_shape('h, w')
  table = _random(1, 37, 2)
  exported = jax.export.export(jax.jit(resize))(
    jax.ShapeDtypeStruct((1, 37, 2), jnp.float32),
    jax.ShapeDtypeStruct((height, width), jnp.float32),
  )
  for new in ((6, 6), (9, 4)):
    image = np.zeros(new, np.float32)
    np.testing.assert_allclose(
      exported.call(table, image), jax.jit(resize)(table, image), atol=1e-6
    )


def test_position_table_of_another_grid_is_refused():
  with pytest.raises(ValueError, match='20 rows for a grid of 4x5, .* got 22'):
    position_table.resize_position_table(jnp.zeros((1, 22, 3)), (4, 5), (8, 8))
