"""A whole step, its gradient and its update, against numpy in float64.

The network is that of the tests: its outputs and the product of a gradient with
its Jacobian are taken from it; all else is the transcription.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.train import method
from tests.transcriptions import daformer as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import inputs, numpy_contrast
from tests.u2pl.adapt import tiny
from u2pl.adapt import mixed_images, target_teacher
from u2pl.adapt import options as options_lib

SHAPE = (tiny.SIZE, tiny.SIZE)
# Cotangents of the outputs of DAFormer, for a pass without a gradient.
ZEROS = {
  'logits': np.zeros((2, 8, 8, tiny.CLASSES)),
  options_lib.FEATURES: np.zeros((2, 8, 8, 8)),
}
WITH_REP = {**ZEROS, 'rep': np.zeros((2, 8, 8, 8))}


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


class Network:
  """Outputs of the network of a method, and pullbacks through it."""

  def __init__(self, trained):
    net, heads = trained.segmenter, trained.options.source_heads
    # No dropout: the same parameters in a network whose rates are 0.
    calm = net.clone(
      encoder=net.encoder.clone(drop_path_rate=0.0),
      heads={
        name: head.clone(dropout_rate=0.0)
        for name, head in net.heads.modules.items()
        if name != options_lib.FEATURES
      },
    )

    def forward(network, params, stats, images, rng, names):
      return method.training_forward_pass(
        network,
        params,
        stats,
        images,
        heads=names,
        rng=rng,
      )

    def pull(params, stats, images, rng, cotangents):
      outputs, vjp, stats = jax.vjp(
        lambda p: forward(net, p, stats, images, rng, heads),
        params,
        has_aux=True,
      )
      return outputs, stats, vjp(cotangents)[0]

    calm_heads = tuple(name for name in heads if name in calm.heads.modules)
    self.pull = jax.jit(pull)
    self.calm = jax.jit(
      lambda params, stats, images: forward(
        calm, params, stats, images, jax.random.PRNGKey(0), calm_heads
      )
    )
    self.teacher = jax.jit(
      lambda params, stats, images, rng: forward(
        net, params, stats, images, rng, ('logits', 'rep')
      )
    )
    self.frozen = jax.jit(
      lambda variables, images: net.apply(
        variables, images, method='deepest_map'
      )
    )


class Step(NamedTuple):
  """Quantities of a step in numpy.

  Attributes:
    keys: keys of the step.
    source: source images.
    labels: their labels.
    teacher_params: parameters of the teacher of this step.
    teacher_stats: its statistics after labeling target images.
    share: share of confident pixels.
    mask: pixels of the source image in mixed images.
    pseudo: pseudo-labels.
    images: mixed images.
    outputs: outputs of the teacher for target images.
  """

  keys: target_teacher.StepKeys
  source: np.ndarray
  labels: np.ndarray
  teacher_params: dict
  teacher_stats: dict
  share: float
  mask: np.ndarray
  pseudo: np.ndarray
  images: np.ndarray
  outputs: dict

  @property
  def mixed_labels(self):
    """Returns the labels of mixed images."""
    return np.where(self.mask, self.labels, self.pseudo)


def to_symmetric(images):
  return ((images.astype(np.float32) - 127.5) / 127.5).astype(np.float64)


def numpy_step(trained, network, state, batch, prototypes=None):
  """Computes all up to the mixed images, with the draws of the same keys."""
  i, options = int(state.step), trained.options.self_training
  keys = target_teacher.StepKeys(
    *jax.random.split(jax.random.fold_in(state.rng, i), 5)
  )
  teacher = jax.tree.map(
    lambda t, s: reference.ema(t, s, i), state.teacher_params, state.params
  )
  source, target = (
    to_symmetric(batch[name]['image']) for name in ('source', 'target')
  )
  labels = batch['source']['label'].astype(int)
  outputs, stats = network.calm(teacher, state.teacher_batch_stats, target)
  outputs = jax.device_get(outputs)
  scores = reference.half_pixel(outputs['logits'], SHAPE)
  share = reference.confident_share(scores, options.threshold)
  if prototypes:
    weights = contrast_reference.denoising_weights(outputs['rep'], prototypes)
    probs = np.exp(reference.log_softmax(scores))
    scores = reference.half_pixel(weights, SHAPE) * probs
  pseudo = scores.argmax(-1)
  draws = jax.device_get(
    jax.jit(mixed_images.sample_mixing_draws, static_argnums=(1, 2, 3))(
      keys.draws, tiny.BATCH, tiny.CLASSES, options
    )
  )
  mask = reference.class_masks(labels, draws.priorities)
  images = (reference.mix(mask, source, target) + 1) / 2
  for b in range(tiny.BATCH):
    if draws.colors.jitter[b]:
      order, factors = draws.colors.order[b], draws.colors.factors[b]
      images[b] = reference.jitter(images[b], order, *factors)
    if draws.colors.blur[b]:
      images[b] = reference.blur(images[b], draws.colors.sigma[b])
  return Step(
    *(keys, source, labels, teacher, stats, share, mask, pseudo),
    *(2 * images - 1, outputs),
  )


def state_at(trained, step):
  """Returns a state whose parameters, moments and teacher all differ."""
  state = inputs.to_float64(tiny.init_state(trained, step))
  rng = np.random.default_rng(0)

  def moved(x):
    if x.dtype != np.float64:
      return x
    return x + 0.1 * np.abs(x).mean() * rng.normal(size=x.shape)

  opt_state = jax.tree.map(
    lambda x: 1e-3 * rng.random(x.shape) if x.ndim else x, state.opt_state
  )
  opt_state = jax.tree.map(
    lambda x: np.full_like(x, step) if x.dtype == np.int32 else x, opt_state
  )
  return state.replace(
    params=jax.tree.map(moved, state.params),
    teacher_params=jax.tree.map(moved, state.teacher_params),
    opt_state=opt_state,
  )


def source_terms(network, state, step):
  """Computes the terms of source images: losses and their gradient.

  Returns:
    The cross entropy and the feature distance; the batch statistics after the
    pass; the gradient of the sum of both losses by the parameters.
  """
  arguments = (state.params, state.batch_stats, step.source, step.keys.source)
  outputs, stats, _ = network.pull(*arguments, ZEROS)
  loss, gradient = reference.weighted_cross_entropy(
    reference.half_pixel(np.asarray(outputs['logits']), SHAPE),
    step.labels,
    np.ones(step.labels.shape),
  )
  distance, pull = reference.feature_distance(
    np.asarray(outputs[options_lib.FEATURES]),
    np.asarray(network.frozen(state.frozen, step.source)),
    reference.cell_labels(step.labels, 4, tiny.CLASSES, 0.4),
    tiny.THINGS,
    weight=0.05,
  )
  cotangents = {
    'logits': reference.half_pixel_transposed(gradient, (8, 8)),
    options_lib.FEATURES: pull,
  }
  *_, of_params = network.pull(*arguments, cotangents)
  return (loss, distance), stats, of_params


def mixed_terms(network, params, stats, step):
  """Computes the loss of mixed images and its gradient.

  Args:
    network: network of the method.
    params: parameters of the student.
    stats: batch statistics after the pass on source images.
    step: mixed images and their labels.

  Returns:
    The loss, the batch statistics after the pass, and the gradient by `params`.
  """
  arguments = (params, stats, step.images, step.keys.mixed)
  weights = reference.mix(
    step.mask,
    np.ones(step.mask.shape),
    reference.target_weights(step.mask.shape, step.share, 3, 7),
  )
  outputs, stats, _ = network.pull(*arguments, ZEROS)
  loss, gradient = reference.weighted_cross_entropy(
    reference.half_pixel(np.asarray(outputs['logits']), SHAPE),
    step.mixed_labels,
    weights,
  )
  cotangent = reference.half_pixel_transposed(gradient, (8, 8))
  *_, of_params = network.pull(*arguments, {**ZEROS, 'logits': cotangent})
  return loss, stats, of_params


@pytest.mark.slow
def test_a_step_of_daformer_and_its_update():
  trained = tiny.make_method(tiny.DAFORMER)
  network, state = Network(trained), state_at(trained, step=3)
  batch = tiny.draw_batch(4)
  step = numpy_step(trained, network, state, batch)
  assert 0 < step.share < 1 and 0 < step.mask.mean() < 1

  # The student: a pass on source images, then one on mixed images.
  (loss, distance), stats, of_source = source_terms(network, state, step)
  mixed_loss, stats, of_mixed = mixed_terms(network, state.params, stats, step)

  after, scalars = jax.jit(trained.train_step)(state, batch)
  for name, expected in (
    ('confident_share', step.share),
    ('loss_source', loss),
    ('loss_feature_distance', distance),
    ('loss_mixed', mixed_loss),
    ('loss', loss + distance + mixed_loss),
  ):
    assert expected > 0
    np.testing.assert_allclose(scalars[name], expected, rtol=1e-6)
  assert_close(after.batch_stats, stats)
  assert_close(after.teacher_params, step.teacher_params)
  assert_close(after.teacher_batch_stats, step.teacher_stats)
  assert_close(after.frozen, state.frozen)
  gradient = jax.tree.map(np.add, *jax.device_get((of_source, of_mixed)))
  assert_updated(state, jax.device_get(after), gradient)


def assert_close(actual, expected, atol=1e-7):
  jax.tree_util.tree_map_with_path(
    lambda path, a, b: np.testing.assert_allclose(
      a, b, rtol=1e-6, atol=atol, err_msg=jax.tree_util.keystr(path)
    ),
    actual,
    expected,
  )


def assert_updated(state, after, gradient):
  """Asserts the update of §2.5: groups, schedule, AdamW."""
  rate = reference.learning_rate(1e-3, 3, tiny.NUM_STEPS, 10)
  moments = next(
    x
    for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')
    )
    if hasattr(x, 'mu')
  )

  def expect(path, theta, grad, m, v):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_encoder = name.startswith('encoder/')
    factor = 1.0 if is_encoder else 10.0
    decay = 0.0 if is_encoder and 'norm' in name else 0.01
    new, *_ = reference.adamw(
      *(np.asarray(x) for x in (theta, grad, m, v)), 3, factor * rate, decay
    )
    return new

  expected = jax.tree_util.tree_map_with_path(
    expect, state.params, gradient, moments.mu, moments.nu
  )
  # Moments are float64, the rate is float32.
  assert_close(after.params, expected, atol=1e-9)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), after.params, state.params
  )
  assert min(jax.tree.leaves(moved)) > 1e-7


class Reliability(NamedTuple):
  """Target pixels of mixed images.

  Attributes:
    trusted: those whose pseudo-labels count.
    reliable: of these, those of low entropy.
    unreliable: the others of them.
  """

  trusted: np.ndarray
  reliable: np.ndarray
  unreliable: np.ndarray


def pixel_entropies(logits):
  """Computes the entropies of pixels from logits of cells."""
  scores = reference.log_softmax(reference.half_pixel(logits, SHAPE))
  return u2pl_reference.entropy(np.exp(scores))


def partition_pixels(step, entropy, progress):
  """Partitions target pixels by the teacher's entropy on mixed images."""
  trusted = ~step.mask
  trusted[:, :3] = trusted[:, -7:] = False
  gamma = u2pl_reference.percentile(entropy, trusted, 100 - 20 * (1 - progress))
  return Reliability(
    trusted, trusted & (entropy < gamma), trusted & (entropy >= gamma)
  )


def symmetric_loss(logits, labels, weights):
  """Computes the symmetric cross entropy: CE and 0.1 times its reverse."""
  forward, _ = reference.weighted_cross_entropy(logits, labels, weights)
  probs = np.exp(reference.log_softmax(logits))
  of_label = np.take_along_axis(probs, np.maximum(labels, 0)[..., None], -1)
  reverse = -np.log(1e-4) * (1 - of_label[..., 0]) * (labels >= 0)
  return forward + 0.1 * (weights * reverse).mean()


def contrast_masks(step, logits, pixels):
  """Computes the anchors and negatives of source and mixed images.

  Args:
    step: labels and pseudo-labels.
    logits: logits of the teacher for source and mixed images in turn.
    pixels: reliability of the target pixels.
  """
  # Source pixels of mixed images are labeled ones.
  own = np.where(step.mask, step.labels, -1)
  others = np.where(pixels.trusted, step.pseudo, -1)
  cells, nearest = (8, 8), u2pl_reference.nearest
  probs = np.exp(reference.log_softmax(logits))
  masks = contrast_reference.contrast_masks(
    np.concatenate([probs[0::2], probs[1::2]]),
    nearest(np.concatenate([step.labels, own]), cells),
    probs[1::2],
    nearest(others, cells),
    nearest(pixels.reliable, cells),
    nearest(pixels.unreliable, cells),
    threshold=0.1,
    r_l=2,
    r_h=5,
  )
  return numpy_contrast.interleave(
    contrast_reference.ContrastMasks(
      *(np.concatenate([m[:2], m[2:4] | m[4:]]) for m in masks)
    )
  )


def with_prototypes(state):
  """Returns a state that has prototypes, and these in numpy."""
  known = contrast_reference.Prototypes(
    np.random.default_rng(5).normal(size=(tiny.CLASSES, 8)),
    np.array([2, 1, 0, 3, 1]),
  )
  prototypes = state.prototypes.replace(
    vectors=jnp.asarray(known.values), updates=jnp.asarray(known.updates)
  )
  return state.replace(prototypes=prototypes), known


def second_pass(network, state, step):
  """Computes the teacher's outputs for source and mixed images, and entropy."""
  del state
  joined = np.stack([step.source, step.images], 1).reshape(-1, *SHAPE, 3)
  outputs, _ = network.teacher(
    step.teacher_params, step.teacher_stats, joined, step.keys.teacher
  )
  outputs = jax.device_get(outputs)
  return outputs, pixel_entropies(outputs['logits'][1::2])


def reused_outputs(network, state, step):
  """Mixes the student's outputs for source with the teacher's for target."""
  own, _, _ = network.pull(
    state.params, state.batch_stats, step.source, step.keys.source, WITH_REP
  )
  own, others = jax.device_get((own, step.outputs))
  cells = u2pl_reference.nearest(step.mask, (8, 8))[..., None]
  outputs = {
    name: numpy_contrast.interleave_pair(
      own[name], np.where(cells, own[name], others[name])
    )
    for name in ('logits', 'rep')
  }
  entropy = np.where(
    step.mask,
    pixel_entropies(own['logits']),
    pixel_entropies(others['logits']),
  )
  return outputs, entropy


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mixed_outputs', 'outputs_of'),
  [('second_pass', second_pass), ('reuse', reused_outputs)],
)
def test_losses_of_a_step_of_u2pl_plus(mixed_outputs, outputs_of):
  options = dataclasses.replace(tiny.PLUS, mixed_outputs=mixed_outputs)
  trained = tiny.make_method(options)
  network = Network(trained)
  state, known = with_prototypes(state_at(trained, step=4))
  batch = tiny.draw_batch(6)
  step = numpy_step(trained, network, state, batch, known)
  teacher, entropy = outputs_of(network, state, step)
  # After 4 of 40 steps; rows 3 to 24 count.
  pixels = partition_pixels(step, entropy, 4 / 40)

  # The student.
  of_source, stats, _ = network.pull(
    state.params, state.batch_stats, step.source, step.keys.source, WITH_REP
  )
  of_mixed, *_ = network.pull(
    state.params, stats, step.images, step.keys.mixed, WITH_REP
  )
  mixed_loss = symmetric_loss(
    reference.half_pixel(np.asarray(of_mixed['logits']), SHAPE),
    step.mixed_labels,
    np.where(step.mask, 1.0, np.where(pixels.reliable, step.share, 0.0)),
  )
  bank = contrast_reference.Bank([60, 40, 40, 40, 40])
  contrastive, updated, _ = numpy_contrast.step(
    contrast_masks(step, teacher['logits'], pixels),
    teacher['rep'],
    numpy_contrast.interleave_pair(of_source['rep'], of_mixed['rep']),
    known,
    bank,
    step.keys.branch,
    tiny.PLUS.contrast,
    tiny.PLUS.prototype_momentum,
  )

  after, scalars = jax.jit(trained.train_step)(state, batch)
  for name, expected in (
    ('confident_share', step.share),
    ('reliable_share', pixels.reliable.sum() / pixels.trusted.sum()),
    ('loss_mixed', mixed_loss),
    ('loss_contrast', contrastive),
  ):
    assert expected > 0
    np.testing.assert_allclose(scalars[name], expected, rtol=1e-5)
  total = scalars['loss_source'] + scalars['loss_feature_distance']
  total += mixed_loss + 0.1 * contrastive
  np.testing.assert_allclose(scalars['loss'], total, rtol=1e-5)
  np.testing.assert_allclose(
    after.prototypes.vectors, updated.values, rtol=1e-5
  )
  for c in range(tiny.CLASSES):
    assert int(after.bank.count[c]) == bank.size(c) > 0
