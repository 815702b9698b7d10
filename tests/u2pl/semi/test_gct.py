"""GCT: its maps, and a whole step with all gradients, in numpy."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.transcriptions import semi_gct as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import pointwise
from u2pl.semi import flaw_detector, flaw_maps, two_network_options

SIDE = 24
OPTIONS = two_network_options.GctOptions(
  detector=two_network_options.DetectorOptions(width=2, num_levels=2),
  # So that both networks have flaws somewhere, at the start.
  threshold=0.3,
  ramp_epochs=3,
  joint=False,
)


def step_of(options):
  with jax.enable_x64():
    trained = pointwise.make_method(options)
    state = pointwise.init_state(trained, SIDE)
    batch = pointwise.draw_batch(SIDE)
    return (
      state,
      batch,
      *jax.device_get(jax.jit(trained.train_step)(state, batch)),
    )


@pytest.fixture(scope='module')
def stepped():
  return step_of(OPTIONS)


def both_streams(params, batch):
  """Returns probabilities [2B,H,W,C], and logits of labeled images.

  Each stream has batch statistics of its own; rows take turns.
  """
  logits = [
    pointwise.upsample(
      pointwise.classify(
        params, pointwise.decode(params, pointwise.encode(params, images))
      ),
      (SIDE, SIDE),
    )
    for images in pointwise.images_of(batch)
  ]
  return u2pl_reference.softmax(take_turns(logits)), logits[0]


def take_turns(arrays):
  return np.stack(arrays, 1).reshape(-1, *arrays[0].shape[1:])


def flaws_of(detector, batch, probs):
  scores = reference.detector(
    detector, take_turns(pointwise.images_of(batch)), probs
  )
  return pointwise.upsample(scores, (SIDE, SIDE))[..., 0]


def counted_pixels(batch):
  valid = batch['unlabeled']['valid']
  return take_turns([np.ones_like(valid), valid])


def network_loss(params, batch, detector, target, both_bad, weight):
  """Computes the losses of one network."""
  probs, logits = both_streams(params, batch)
  counted = counted_pixels(batch)
  flaws = flaws_of(detector, batch, probs)
  return (
    u2pl_reference.cross_entropy(logits, batch['labeled']['label'].astype(int)),
    np.where(both_bad, flaws**2, 0)[counted].mean(),
    weight * ((probs - target) ** 2)[counted].mean(),
  )


def detector_loss(own, batch, predictions):
  labels = batch['labeled']['label'].astype(int)
  return (
    10
    * 0.5
    * sum(
      ((flaws_of(own, batch, x)[::2] - y) ** 2).mean()
      for x, y in (
        (probs, reference.target(labels, probs[::2])) for probs in predictions
      )
    )
  )


def test_a_whole_step_and_its_gradients_equal_the_reference(stepped):
  state, batch, after, scalars = stepped
  networks = [jax.device_get(x.params) for x in (state, state.second)]
  detector = jax.device_get(state.detector.params['detector'])
  predictions = [both_streams(params, batch)[0] for params in networks]
  handled = [
    reference.handled(flaws_of(detector, batch, x)) for x in predictions
  ]
  targets, both_bad = reference.consistency(predictions, handled, 0.3)
  assert 0.01 < both_bad.mean() < 0.9
  assert np.abs(targets[0] - predictions[0]).max() > 0.1
  weight = 100 * reference.ramp(7, 15)
  terms = []
  for params, new, target in zip(
    networks, (after.params, after.second.params), targets, strict=True
  ):

    def losses(moved, target=target):
      return network_loss(moved, batch, detector, target, both_bad, weight)

    terms.append(losses(params))
    pointwise.check_gradient(
      lambda moved, losses=losses: sum(losses(moved)),
      params,
      pointwise.gradient_of(params, new),
    )
  names = 'supervised', 'correction', 'consistency'
  for name, value in zip(names, np.sum(terms, axis=0), strict=True):
    np.testing.assert_allclose(scalars[f'loss_{name}'], value, rtol=1e-4)
  np.testing.assert_allclose(scalars['loss'], np.sum(terms), rtol=1e-4)
  np.testing.assert_allclose(
    scalars['flawed_share'], both_bad[counted_pixels(batch)].mean(), rtol=1e-4
  )


def test_the_detector_learns_predictions_before_the_update(stepped):
  state, batch, after, scalars = stepped
  networks = [jax.device_get(x.params) for x in (state, state.second)]
  predictions = [both_streams(params, batch)[0] for params in networks]
  own = jax.device_get(state.detector.params)

  def loss(params):
    return detector_loss(params['detector'], batch, predictions)

  np.testing.assert_allclose(scalars['loss_detector'], loss(own), rtol=1e-4)
  # Adam's first moment has a tenth of the gradient.
  moments = [x.detector.opt_state[0].mu for x in (state, after)]
  gradient = jax.tree.map(
    lambda old, new: (np.asarray(new) - 0.9 * np.asarray(old)) / 0.1, *moments
  )
  pointwise.check_gradient(loss, own, gradient, ['detector'])


@pytest.mark.slow
def test_the_detector_learns_predictions_after_the_update():
  options = dataclasses.replace(
    OPTIONS,
    detector=two_network_options.DetectorOptions(2, 2, after_update=True),
  )
  state, batch, after, scalars = step_of(options)
  networks = [jax.device_get(x.params) for x in (after, after.second)]
  predictions = [both_streams(params, batch)[0] for params in networks]
  own = jax.device_get(state.detector.params['detector'])
  np.testing.assert_allclose(
    scalars['loss_detector'],
    detector_loss(own, batch, predictions),
    rtol=1e-4,
  )


@pytest.mark.slow
def test_streams_that_are_joined_have_common_statistics():
  options = dataclasses.replace(OPTIONS, joint=True)
  state, batch, _, scalars = step_of(options)
  supervised = 0
  for network in (state, state.second):
    params = jax.device_get(network.params)
    joined = take_turns(pointwise.images_of(batch))
    logits = pointwise.classify(
      params, pointwise.decode(params, pointwise.encode(params, joined))
    )
    supervised += u2pl_reference.cross_entropy(
      pointwise.upsample(logits[::2], (SIDE, SIDE)),
      batch['labeled']['label'].astype(int),
    )
  np.testing.assert_allclose(scalars['loss_supervised'], supervised, rtol=1e-4)


def test_maps_equal_the_reference():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 3, (3, 4, 5)).repeat(10, 1).repeat(8, 2)
  probs = u2pl_reference.softmax(rng.normal(size=(2, *labels.shape, 3)))
  flaws = rng.normal(size=labels.shape) + 0.3
  flaws[1] = 0.02 * rng.random(labels.shape[1:])  # Of no flaw at all.

  @jax.jit
  def compute(labels, probs, flaws):
    target = flaw_maps.flaw_target(labels, probs[0])
    return target, flaw_maps.handle_flaw_map(flaws)

  target, handled = compute(labels, np.float32(probs), np.float32(flaws))
  np.testing.assert_allclose(
    target, reference.target(labels, probs[0]), atol=2e-5
  )
  np.testing.assert_allclose(handled, reference.handled(flaws), atol=2e-5)
  # Cleared before it is scaled: below 0, by its smallest value.
  assert (np.ptp(handled[1]) < 1e-6) and handled[1].max() < 0


def test_ties_keep_the_own_prediction():
  flaws = np.float32([[[0.2, 0.7, 0.9, 0.1]], [[0.2, 0.8, 0.3, 0.5]]])
  probs = np.float32(np.arange(24)).reshape(2, 1, 1, 4, 3)
  (first, second), both_bad = jax.jit(
    lambda *x: flaw_maps.consistency_targets(x[:2], x[2:], 0.6)
  )(*probs, *flaws[:, None])
  expected, bad = reference.consistency(probs, flaws[:, None])
  np.testing.assert_array_equal(first, expected[0])
  np.testing.assert_array_equal(second, expected[1])
  np.testing.assert_array_equal(both_bad, bad)
  np.testing.assert_array_equal(bad[0, 0], [False, True, False, False])
  np.testing.assert_array_equal(first[0, 0, :2], probs[0, 0, 0, :2])


@pytest.mark.parametrize('size', [1, 3, 33, 65])
def test_weights_of_the_blur_are_those_of_scipy(size):
  weights = flaw_maps.blur_weights(size)
  impulse = np.zeros((1, size, size))
  impulse[0, size // 2, size // 2] = 1
  sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
  kernel = reference.ndimage.gaussian_filter(impulse[0], sigma)
  np.testing.assert_allclose(np.outer(weights, weights), kernel, atol=1e-12)


def test_the_detector_equals_the_reference():
  """At its four levels."""
  rng = np.random.default_rng(0)
  images = np.float32(rng.random((2, 93, 98, 3)) * 2 - 1)
  probs = np.float32(u2pl_reference.softmax(rng.normal(size=images.shape)))
  net = flaw_detector.FlawDetector(2)

  @jax.jit
  def compute(images, probs):
    variables = net.init(jax.random.PRNGKey(0), images, probs)
    flaws, _ = net.apply(
      variables, images, probs, train=True, mutable=['batch_stats']
    )
    return variables['params'], flaws

  params, flaws = jax.device_get(compute(images, probs))
  channels = [params[f'conv{i}']['kernel'].shape[-1] for i in range(1, 8)]
  assert channels == [2 * factor for factor, _ in reference.LAYERS]
  scores = reference.detector(params, images, probs)
  assert scores.shape[1:3] == (2, 2)
  np.testing.assert_allclose(
    flaws, reference.upsampled(scores, (93, 98)), atol=2e-3
  )


def test_images_below_the_detectors_reach_are_refused():
  options = two_network_options.GctOptions()
  with pytest.raises(ValueError, match='2 cells, got 96x91: lower learn.det'):
    options.check_image_size((96, 91))
  options.check_image_size((92, 92))
