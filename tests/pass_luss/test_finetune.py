"""Losses and predictions of fine-tuning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from pass_luss import finetune
from pass_luss.pretrain import heads
from pass_luss.pseudo_labels import labeler
from segcore.ops import losses
from segcore.train import optimizers, update
from tests.pass_luss import support
from tests.transcriptions import pass_benchmark, pass_labels


@functools.cache
def build_method():
  """Returns a method and a state of its network."""
  net = support.build_network({'logits': heads.Classifier(support.CLASSES + 1)})
  tx = optimizers.OptimizerOptions(name='sgd', learning_rate=0.1)
  method = finetune.Finetune(net, update.Update(('encoder', 'heads'), tx, 4))
  return method, support.random_state(net)


def loss_and_logits(method, label):
  """Returns the loss on two images of 32x32, and the logits of training."""
  _, state = build_method()
  images = support.random_images(size=(32, 32))
  batch = {
    'image': images,
    'label': label.astype(np.int16),
    'mask': np.ones(2, bool),
  }

  @jax.jit
  def compute(state, batch):
    keys = update.ForwardKeys(
      update.row_prng_keys(jax.random.PRNGKey(0), 2), jax.random.PRNGKey(1)
    )
    logits, _ = method.forward(
      state.params,
      state.batch_stats,
      batch_lib.batch_images_to_symmetric(batch['image']),
      'logits',
      keys,
    )
    return method.loss(state.params, state.batch_stats, batch, keys), logits

  outcome, logits = compute(state, batch)
  return outcome, np.asarray(logits, np.float64)


@pytest.mark.parametrize('ignored', [False, True])
def test_pixel_level_loss(ignored):
  method, _ = build_method()
  rng = np.random.default_rng(0)
  label = rng.integers(-1 if ignored else 0, support.CLASSES + 1, (2, 32, 32))
  outcome, logits = loss_and_logits(method, label)
  assert logits.shape == (2, 4, 4, support.CLASSES + 1)
  expected = pass_labels.finetune_loss(
    logits, label, (16, 16), -1 if ignored else None
  )
  np.testing.assert_allclose(outcome.total / outcome.count, expected, rtol=1e-5)


def test_repeated_upsampling_of_the_loss():
  """From 4 over 8 to 16 differs from 4 to 16 at once."""
  method = dataclasses.replace(build_method()[0], repeated_upsampling=True)
  label = np.random.default_rng(0).integers(0, support.CLASSES + 1, (2, 32, 32))
  outcome, logits = loss_and_logits(method, label)
  upsampled = pass_labels.bilinear(logits, (8, 8))
  expected = pass_labels.finetune_loss(upsampled, label, (16, 16))
  np.testing.assert_allclose(outcome.total / outcome.count, expected, rtol=1e-5)


def test_repeated_upsampling_upsamples_predictions_once():
  method, state = build_method()
  images = support.to_symmetric(support.random_images(size=(32, 32)))
  plain = np.asarray(jax.jit(method.predict)(state, images), np.float64)
  repeated = dataclasses.replace(method, repeated_upsampling=True)
  assert plain.shape[1:3] == (4, 4)
  np.testing.assert_allclose(
    jax.jit(repeated.predict)(state, images),
    pass_labels.bilinear(plain, (8, 8)),
    atol=1e-5,
  )


def test_image_level_loss():
  method = dataclasses.replace(build_method()[0], level='images')
  label = np.broadcast_to(np.array([3, 1])[:, None, None], (2, 32, 32))
  outcome, logits = loss_and_logits(method, label)
  loss = losses.cross_entropy(
    jnp.asarray(logits, jnp.float32).mean((1, 2)), jnp.array([3, 1])
  )
  np.testing.assert_allclose(outcome.total, jnp.sum(loss), rtol=1e-5)
  assert outcome.count == 2


def test_activation_maps():
  method, state = build_method()
  images = support.to_symmetric(support.random_images(count=4))
  activations = np.asarray(jax.jit(method.activation)(state, images))
  logits = np.asarray(jax.jit(method.predict)(state, images), np.float64)
  for activation, scores in zip(activations, logits, strict=True):
    for threshold in (0.2, 0.5):
      labels = labeler.category_label_map(
        activation[..., 0].astype(int),
        labeler.resize_attention(activation[..., 1], (32, 40)),
        threshold,
      )
      expected = pass_benchmark.cam_labels(scores[..., 1:], (32, 40), threshold)
      assert np.mean(labels != expected) < 0.01
