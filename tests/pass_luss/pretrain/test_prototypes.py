"""Normalization, freezing and usage of the prototypes (spec §2.5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import embedding_ops
from pass_luss.pretrain import prototypes as prototypes_lib
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import PROTOTYPES, SIZE
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_normalized_prototypes():
  prototypes = arrays.normal(SIZE, PROTOTYPES)
  encoder = jnp.ones(3)
  params = {
    'encoder': encoder,
    'heads': {'clusters': {'prototypes': jnp.asarray(prototypes)}},
  }
  normalized = prototypes_lib.l2_normalize_prototypes(params)
  arrays.assert_close(
    prototypes_lib.select_prototype_parameters(normalized),
    pass_pretraining.normalize_prototypes(prototypes),
  )
  assert normalized['encoder'] is encoder


def test_normalization_of_zeros_has_a_finite_gradient():
  gradient = jax.jit(
    jax.grad(lambda x: embedding_ops.l2_normalize_embeddings(x).sum())
  )(np.zeros(3))
  assert np.isfinite(gradient).all()


def test_usage_is_1_for_even_and_0_for_a_single_prototype():
  usage = jax.jit(prototypes_lib.prototype_usage)
  single = np.eye(8)[[2, 2, 2, 2]]
  np.testing.assert_allclose(usage(np.full((4, 8), 1 / 8)), 1.0)
  np.testing.assert_allclose(usage(single), 0.0, atol=1e-9)
  # Half of 4 prototypes, evenly: log 2 / log 4.
  half = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
  np.testing.assert_allclose(usage(half), 0.5)
