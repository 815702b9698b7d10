"""Heads of weak supervision against the transcription, in float64."""

import jax
import numpy as np
import pytest

from segcore.models import features, heads, segmenter
from segcore.models.encoders import mit, resnet_gn
from tests.transcriptions import afa as reference


def _init(head, *inputs):
  return jax.jit(head.init)(jax.random.key(0), *inputs)


def test_class_logits_and_maps():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 64))
  head = heads.TagHead(5)
  with jax.enable_x64():
    variables = jax.tree.map(np.float64, _init(head, x))
    scores, mean = jax.device_get(
      jax.jit(
        lambda v, x: (
          head.apply(v, x),
          head.clone(pooling='mean').apply(v, x),
        )
      )(variables, x)
    )
  kernel = variables['params']['kernel']
  # Torch's initial values.
  assert 0.11 < np.abs(kernel).max() <= 0.125
  for b in range(2):
    expected = reference.classify(x[b], kernel)
    np.testing.assert_allclose(scores.logits[b], expected, rtol=1e-12)
    np.testing.assert_allclose(scores.maps[b], x[b] @ kernel, rtol=1e-9)
  # Pooling by the mean is linear.
  np.testing.assert_allclose(mean.logits, scores.maps.mean((1, 2)), rtol=1e-9)


def test_the_gradient_of_the_maximum_is_that_of_one_cell():
  """Even of several equal ones, as torch's; never 0/0."""
  x = np.zeros((1, 2, 2, 3), np.float32)
  x[0, 1, 0] = 2.0
  x[0, 0, 1, 2] = 2.0
  head = heads.TagHead(1)
  kernel = np.ones((3, 1), np.float32)
  gradient = jax.jit(
    jax.grad(lambda x, w: head.apply({'params': {'kernel': w}}, x).logits[0, 0])
  )(x, kernel)
  expected = np.zeros_like(x)
  expected[0, 1, 0, :2] = expected[0, 0, 1, 2] = 1.0
  np.testing.assert_array_equal(gradient, expected)


def test_affinities():
  rng = np.random.default_rng(1)
  attention = [
    features.Attention(*rng.normal(size=(2, 2, 6, heads_, 3)))
    for heads_ in (2, 3)
  ]
  head = heads.AffinityHead()
  with jax.enable_x64():
    variables = jax.tree.map(np.float64, _init(head, attention))
    affinities = np.asarray(jax.jit(head.apply)(variables, attention))
  params = variables['params']
  for b in range(2):
    scores = np.concatenate(
      [
        np.einsum('qhd,khd->hqk', each.query[b], each.key[b])
        for each in attention
      ]
    )
    expected = reference.affinities(scores, params['weight'], params['bias'])
    np.testing.assert_allclose(affinities[b], expected, atol=1e-12)


def test_affinities_need_attention():
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  net_heads = {'affinity': heads.AffinityHead()}
  encoder = mit.MiT(strides=(4, 2, 2, 1))
  net = segmenter.Segmenter(encoder, None, net_heads)
  outputs, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), images
  )
  assert outputs['affinity'].shape == (1, 16, 16)
  # Two blocks of eight heads.
  assert variables['params']['heads']['affinity']['weight'].shape == (16,)
  without = segmenter.Segmenter(resnet_gn.ResNet(), None, net_heads)
  with pytest.raises(features.MissingMapError, match='choose an encoder mit'):
    jax.eval_shape(without.init, jax.random.key(0), images)
