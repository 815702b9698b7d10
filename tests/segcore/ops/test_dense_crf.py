"""The dense CRF against all pairs of pixels, and without its package."""

import importlib.util

import numpy as np
import pytest

from runtime import errors
from segcore.ops import dense_crf
from tests.transcriptions import afa as reference

IS_INSTALLED = importlib.util.find_spec('pydensecrf') is not None


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install pydensecrf2==1.1'):
    dense_crf.refine_by_crf(np.ones((2, 2, 1)), np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_iterations': 0}, 'num_iterations: expected >= 1'),
    ({'appearance_color': 0.0}, 'appearance_color: expected above 0'),
  ],
)
def test_options_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    dense_crf.CrfOptions(**fields)


@pytest.mark.skipif(not IS_INSTALLED, reason='pydensecrf2 is not installed')
def test_labels_equal_those_of_all_pairs():
  """The package approximates kernels: a percent of the labels may differ."""
  rng = np.random.default_rng(0)
  smooth, coarse = rng.random((2, 4, 4, 3)).repeat(6, 1).repeat(5, 2)
  noise = 4 * rng.normal(size=(24, 20, 3))
  image = (200 * smooth + noise + 20).astype(np.uint8)
  probs = reference.softmax(3 * coarse + rng.normal(size=(24, 20, 3)))
  refined = dense_crf.refine_by_crf(probs, image)
  np.testing.assert_allclose(refined.sum(-1), 1, atol=1e-5)
  expected = reference.crf(probs, image).argmax(-1)
  assert np.mean(refined.argmax(-1) == expected) >= 0.99
  assert np.mean(probs.argmax(-1) == expected) < 0.8
