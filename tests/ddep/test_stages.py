import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddep import noise
from ddep.stages import classify, denoise, finetune
from input_pipeline import batch as batch_lib
from segcore.cost import communication
from segcore.distributed import sharding
from segcore.models import heads, segmenter
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.support import tiny_networks

KEY = jax.random.PRNGKey(0)


ALL = ('encoder', 'decoder', 'heads')


def ddep(trained=('decoder', 'heads'), network=None, accumulate=1):
  # Without Adam, which turns rounding of tiny gradients into whole steps.
  sgd = optimizers.OptimizerOptions(
    name='sgd', learning_rate=0.01, schedule='constant'
  )
  return denoise.Denoise(
    network or tiny_networks.small_unet({'noise': heads.ConvHead(3)}),
    update_lib.Update(trained, sgd, 10, accumulate),
    noise.NoiseOptions(gamma=0.95),
  )


def transunet(dropout_rate):
  return tiny_networks.hybrid({'noise': heads.ConvHead(3)}, dropout_rate)


def run(trained, batches, devices=1):
  """Trains on a mesh of the given size, through jit as the loop does."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  rows = sharding.batch_sharding(mesh)
  whole = sharding.replicated_sharding(mesh)
  state = jax.device_put(
    tiny_networks.initial_state(trained, batches[0]), whole
  )
  step = jax.jit(trained.train_step, out_shardings=whole)
  losses = []
  for batch in batches:
    state, metrics = step(state, jax.device_put(batch, rows))
    losses.append(float(metrics['loss']))
  return jax.device_get(state), losses


def assert_close(a, b, atol):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_100_steps_of_denoising_leave_the_encoder_alone_to_the_bit():
  batches = [tiny_networks.images(2, 32, seed) for seed in range(4)] * 25
  adam = tiny_networks.adam(1e-3, weight_decay=0.1, clip_norm=1.0)
  trained = dataclasses.replace(
    ddep(), update=update_lib.Update(('decoder', 'heads'), adam, 100)
  )
  before = tiny_networks.initial_state(trained, batches[0])
  after, losses = run(trained, batches)
  jax.tree.map(
    np.testing.assert_array_equal,
    after.params['encoder'],
    jax.device_get(before.params['encoder']),
  )
  for part in ('decoder', 'heads'):
    moved = jax.tree.map(
      lambda x, y: not np.array_equal(x, y),
      after.params[part],
      jax.device_get(before.params[part]),
    )
    assert all(jax.tree.leaves(moved)), part
  assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_frozen_encoder_runs_without_dropout():
  """Else its features in pretraining would not be those of fine-tuning."""
  batch = tiny_networks.images(8, 64)
  plain = ddep(network=transunet(dropout_rate=0.0))
  dropping = ddep(network=transunet(dropout_rate=0.9))
  state = tiny_networks.initial_state(plain, batch)
  keys = update_lib.ForwardKeys(update_lib.row_prng_keys(KEY, 8), KEY)
  args = (state.params, state.batch_stats, batch, keys)
  assert float(plain.loss(*args).total) == float(dropping.loss(*args).total)
  whole = ddep(ALL, transunet(dropout_rate=0.9))
  assert float(plain.loss(*args).total) != float(whole.loss(*args).total)


def test_denoising_loss_is_the_mean_square_of_equation_6():
  batch = tiny_networks.images(4, 32)
  batch['mask'] = jnp.array([True, True, False, True])
  trained = ddep()
  state = tiny_networks.initial_state(trained, batch)
  keys = update_lib.ForwardKeys(update_lib.row_prng_keys(KEY, 4), KEY)
  outcome = jax.jit(trained.loss)(state.params, state.batch_stats, batch, keys)
  draw = jax.jit(
    lambda i: jax.random.normal(jax.random.fold_in(KEY, i), (32, 32, 3))
  )
  eps = np.stack([draw(i) for i in range(4)])
  images = np.asarray(batch['image'], np.float32) / 127.5 - 1
  noisy = np.sqrt(0.95) * images + np.sqrt(0.05) * eps
  result = jax.jit(trained.predict)(state, noisy.astype(np.float32))
  square = (np.asarray(result) - eps)[[0, 1, 3]] ** 2
  assert float(outcome.total / outcome.count) == pytest.approx(
    square.mean(), rel=1e-4
  )


def test_a_conditional_decoder_is_told_the_noise_of_each_image():
  head = {'noise': heads.ConvHead(3)}
  plain = tiny_networks.small_unet(head)
  conditional = segmenter.Segmenter(
    plain.encoder, plain.decoder.clone(conditional=True), head
  )
  trained = dataclasses.replace(
    ddep(network=conditional), noise=noise.NoiseOptions(gamma_range=(0.2, 0.9))
  )
  batch = tiny_networks.images(4, 32)
  keys = update_lib.ForwardKeys(update_lib.row_prng_keys(KEY, 4), KEY)
  gamma = noise.sample_noise_gamma(keys.rows, trained.noise)
  eps = np.asarray(noise.sample_noise(keys.rows, batch['image'].shape))
  kept, added = (np.sqrt(x)[:, None, None, None] for x in (gamma, 1 - gamma))
  images = np.asarray(batch['image'], np.float32) / 127.5 - 1
  noisy = jnp.asarray(kept * images + added * eps, jnp.float32)
  state = tiny_networks.initial_state(trained, batch)
  # The modulation starts as the identity; here it is not.
  state = state.replace(
    params=jax.tree_util.tree_map_with_path(
      lambda path, x: x + 0.1 * ('modulation' in str(path)), state.params
    )
  )

  @jax.jit
  def predict_all(state):
    outcome = trained.loss(state.params, state.batch_stats, batch, keys)
    results = [trained.predict(state, noisy, g) for g in (gamma, jnp.ones(4))]
    return (
      outcome.total / outcome.count,
      *results,
      trained.predict(state, noisy),
    )

  loss, conditioned, as_clean, unconditioned = map(
    np.asarray, predict_all(state)
  )
  assert float(loss) == pytest.approx(
    np.mean((conditioned - eps) ** 2), rel=1e-4
  )
  assert not np.allclose(conditioned, as_clean, atol=1e-3)
  np.testing.assert_array_equal(unconditioned, as_clean)


@pytest.mark.parametrize(
  ('weights', 'stride'), [(None, 1), ((0.2, 1.0, 3.0), 1), (None, 4)]
)
def test_finetuning_ignores_negative_labels_and_padding_rows(weights, stride):
  trained = finetune.Finetune(
    tiny_networks.small_unet({'logits': heads.ConvHead(3, stride=stride)}),
    update_lib.Update(ALL, tiny_networks.adam(), 10),
    weights,
  )
  batch = tiny_networks.images(4, 32)
  batch['mask'] = jnp.array([True, False, True, True])
  state = tiny_networks.initial_state(trained, batch)
  keys = update_lib.ForwardKeys(update_lib.row_prng_keys(KEY, 4), KEY)

  @jax.jit
  def loss_and_logits(state):
    images = batch_lib.batch_images_to_symmetric(batch['image'])
    return (
      trained.loss(state.params, state.batch_stats, batch, keys),
      trained.predict(state, images),
    )

  outcome, logits = loss_and_logits(state)
  assert logits.shape == (4, 32 // stride, 32 // stride, 3)
  # Coarser logits are upsampled to the labels.
  upsample = jax.jit(jax.image.resize, static_argnums=(1, 2))
  logits = np.float64(upsample(logits, (4, 32, 32, 3), 'bilinear'))
  logits -= logits.max(-1, keepdims=True)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total = count = 0
  for b in (0, 2, 3):
    for y in range(32):
      for x in range(32):
        label = int(batch['label'][b, y, x])
        if label >= 0:
          weight = weights[label] if weights else 1
          total -= weight * log_probs[b, y, x, label]
          count += weight
  assert float(outcome.count) == pytest.approx(
    count, rel=0 if not weights else 1e-5
  )
  assert float(outcome.total) == pytest.approx(total, rel=1e-5)


def test_classification_learns_two_colors():
  trained = classify.Classify(
    segmenter.Segmenter(
      tiny_networks.small_unet({}).encoder,
      None,
      {'tags': heads.PoolHead(2)},
    ),
    update_lib.Update(('encoder', 'heads'), tiny_networks.adam(), 20),
    'softmax',
  )
  red = np.zeros((8, 32, 32, 3), np.uint8)
  red[::2, ..., 0] = 255
  tags = np.arange(8)[:, None] % 2 == [0, 1]
  batch = {'image': red, 'tags': tags, 'mask': np.ones(8, bool)}
  batch = jax.tree.map(jnp.asarray, batch)
  state, losses = run(trained, [batch] * 20)
  assert losses[0] == pytest.approx(np.log(2), abs=0.7)
  assert losses[-1] < 0.1
  symmetric = batch_lib.batch_images_to_symmetric(batch['image'])
  scores = jax.jit(trained.predict)(state, symmetric)
  np.testing.assert_array_equal(scores.argmax(-1), np.arange(8) % 2)


@pytest.mark.slow
def test_8_devices_equal_1():
  batches = [tiny_networks.images(16, 32, seed) for seed in range(3)]
  one, losses_one = run(ddep(ALL), batches, devices=1)
  eight, losses_eight = run(ddep(ALL), batches, devices=8)
  np.testing.assert_allclose(losses_one, losses_eight, rtol=2e-5)
  assert_close(one.params, eight.params, atol=1e-5)


@pytest.mark.slow
def test_accumulating_4_times_8_equals_32():
  batches = [tiny_networks.images(32, 32, seed) for seed in range(2)]
  whole, losses_whole = run(ddep(), batches)
  parts, losses_parts = run(ddep(accumulate=4), batches)
  np.testing.assert_allclose(losses_whole, losses_parts, rtol=2e-5)
  assert_close(whole.params, parts.params, atol=1e-5)


@pytest.mark.slow
def test_a_data_parallel_step_only_reduces_gradients():
  mesh = sharding.make_mesh()
  batch = tiny_networks.images(16, 32)
  steps = noise.NoiseOptions(
    gamma_range=(0.5, 0.9), draw='linear', num_steps=50
  )
  trained = dataclasses.replace(ddep(accumulate=2), noise=steps)
  shapes = tiny_networks.initial_state(trained, batch)
  compiled = (
    jax.jit(
      trained.train_step,
      in_shardings=(
        sharding.replicated_sharding(mesh),
        sharding.batch_sharding(mesh),
      ),
      out_shardings=sharding.replicated_sharding(mesh),
    )
    .lower(shapes, tiny_networks.spec(batch))
    .compile()
  )
  result = communication.count_collectives(compiled)
  assert result['all-reduce'] > 0
  assert {name: n for name, n in result.items() if name != 'all-reduce'} == {
    'all-gather': 0,
    'all-to-all': 0,
    'reduce-scatter': 0,
    'collective-permute': 0,
  }


def test_options_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    noise.NoiseOptions(gamma=0.9).gamma = 0.5


def test_denoising_is_watched_on_the_same_noisy_images():
  trained = ddep()
  images = np.asarray(tiny_networks.images(6, 32)['image'])
  state = tiny_networks.initial_state(trained, tiny_networks.images(6, 32))
  # A head of zeros finds no noise: the loss is the noise's mean square.
  silent = jax.tree.map(jnp.zeros_like, state.params['heads'])
  state = state.replace(params={**state.params, 'heads': silent})
  evaluate = denoise.DenoisingPanels(
    trained, 'val', images, 4, sharding.make_mesh()
  )
  actual = evaluate(state)
  keys = update_lib.row_prng_keys(jax.random.PRNGKey(0), 6)
  eps = np.asarray(noise.sample_noise(keys, images.shape))
  np.testing.assert_allclose(
    actual.scalars['val/loss'], np.mean(eps**2), rtol=1e-5
  )
  panel = actual.images['val/panels']
  # Four rows of tiles of 96 pixels: clean, noisy, denoised.
  assert panel.shape == (14 + 4 * 100, 3 * 100 - 4, 3)

  def shown(column):
    tile = panel[14 : 14 + 96, 100 * column : 100 * column + 96]
    return tile[::3, ::3].astype(float)

  np.testing.assert_array_equal(shown(0), images[0])
  # What is shown of the noisy one is what was given: 0.95 of the power kept.
  noisy = np.sqrt(0.95) * (images[0] / 127.5 - 1) + np.sqrt(0.05) * eps[0]
  expected = np.clip(np.rint((noisy + 1) * 127.5), 0, 255)
  assert np.abs(shown(1) - expected).max() <= 1
  restored = np.clip(np.rint((noisy / np.sqrt(0.95) + 1) * 127.5), 0, 255)
  assert np.abs(shown(2) - restored).max() <= 1
  assert evaluate(state).scalars == actual.scalars


@pytest.mark.parametrize(('loss', 'warned'), [(0.998, True), (0.7, False)])
def test_a_denoising_loss_of_predicting_0_is_warned_of(loss, warned):
  lines = denoise.describe_trivial_denoising(loss, 1.0)
  assert len(lines) == warned
  assert all('nothing was learned' in line for line in lines)


def test_the_trivial_loss_is_that_of_a_network_that_predicts_0():
  trained = ddep()
  images = np.zeros((2, 32, 32, 3), np.uint8)
  panels = denoise.DenoisingPanels(
    trained, 'val', images, 1, sharding.make_mesh()
  )
  state = tiny_networks.initial_state(
    trained, {'image': images, 'mask': np.ones(2, bool)}
  )
  _, trivial, _, _ = panels._denoise(state, images)
  # The target is noise of unit variance.
  assert float(trivial) == pytest.approx(1, abs=0.05)
