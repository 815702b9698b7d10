"""Whole steps, their gradient and their update, against numpy in float64.

The network is that of the tests: its outputs and the product of a gradient with
its Jacobian are taken from it; all else is the transcription.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import cam
from segcore.train import method
from tests.transcriptions import afa as reference
from tests.transcriptions import daformer
from tests.transcriptions import u2pl as u2pl_reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import numpy_contrast
from tests.u2pl.adapt import test_reference_step as adapt_step
from tests.u2pl.weak import tiny
from u2pl import contrast
from u2pl.weak import afa, cam_contrast

SHAPE, CELLS, FINE = (tiny.SIZE, tiny.SIZE), (4, 4), (8, 8)
SCALES = (1.0, 0.5, 1.5)
BOXES = ((0, 23, 5, 32), (0, 32, 0, 32))
PLUS = dataclasses.replace(tiny.AFA, contrast=tiny.CONTRAST)
READINGS = dataclasses.replace(
  tiny.AFA,
  contrast=dataclasses.replace(
    tiny.CONTRAST, maps='propagated', key_source='teacher', teacher_decay=0.9
  ),
)


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


@functools.cache
def method_and_step(options):
  """Returns a method and its compiled step, which tests share."""
  trained = tiny.make_method(options)
  return trained, jax.jit(trained.train_step)


def to_symmetric(images):
  return (images.astype(np.float64) - 127.5) / 127.5


@functools.partial(jax.jit, static_argnums=(0, 5))
def forward(trained, params, stats, images, rng, heads):
  return method.training_forward_pass(
    trained.segmenter, params, stats, images, heads=heads, rng=rng
  )


@functools.partial(jax.jit, static_argnums=0)
def pull(trained, params, stats, images, rng, cotangents):
  """Returns the gradient of the parameters by those of the outputs."""
  _, vjp, _ = jax.vjp(
    lambda p: forward(trained, p, stats, images, rng, trained.options.heads),
    params,
    has_aux=True,
  )
  return vjp(cotangents)[0]


def scaled_pairs(images, scale):
  """Resizes images, each followed by the flipped one."""
  size = (int(scale * tiny.SIZE),) * 2
  pairs = []
  for image in images:
    pairs += [reference.resize(image, size)]
    pairs += [pairs[-1][:, ::-1]]
  return np.stack(pairs)


def numpy_cams(trained, state, images, rng):
  """Computes multi-scale CAMs, affinities, and the batch statistics after."""
  stats, maps, affinities = state.batch_stats, [], None
  for i, scale in enumerate(SCALES):
    heads = ('tags', 'logits', *(('affinity',) if scale == 1.5 else ()))
    outputs, stats = forward(
      trained,
      state.params,
      stats,
      scaled_pairs(images, scale),
      jax.random.fold_in(rng, i),
      heads,
    )
    maps.append(np.asarray(outputs['tags'].maps))
    if scale == 1.5:
      affinities = np.asarray(outputs['affinity'])[::2]
  cams = [
    reference.multi_scale_cam([(x[2 * b], x[2 * b + 1]) for x in maps], SHAPE)
    for b in range(tiny.BATCH)
  ]
  return np.stack(cams), affinities, stats


def numpy_labels(cams, affinities, batch, propagated):
  """Computes the targets of both losses."""
  arguments = [(cams[b], batch['tags'][b, 1:]) for b in range(tiny.BATCH)]
  refined = np.stack(
    [
      reference.refined_labels(*each, image, box, 0.35, 0.55, tiny.DILATIONS)
      for each, image, box in zip(arguments, batch['image'], BOXES, strict=True)
    ]
  )
  if not propagated:
    return refined, refined
  walked = [
    reference.propagated_labels(
      *each, a, (6, 6), image, box, 0.35, 0.55, tiny.RADIUS, tiny.DILATIONS
    )
    for each, a, image, box in zip(
      arguments, affinities, batch['image'], BOXES, strict=True
    )
  ]
  return refined, np.stack(walked)


def half_pixel_nearest(x):
  return x[:, ::2, ::2]


def energy_and_gradient(logits, labels, batch):
  """Computes the mean energy at half size, and its gradient by the logits."""
  probs = np.exp(daformer.log_softmax(logits))
  half = (tiny.SIZE // 2,) * 2
  parts = [
    reference.energy(*each, deviation_xy=4.0, deviation_rgb=40.0)
    for each in zip(
      daformer.half_pixel(probs, half),
      half_pixel_nearest(batch['image']),
      half_pixel_nearest(batch['valid']),
      half_pixel_nearest(labels),
      strict=True,
    )
  ]
  slope = daformer.half_pixel_transposed(
    np.stack([gradient for _, gradient in parts]) / tiny.BATCH, SHAPE
  )
  inner = (slope * probs).sum(-1, keepdims=True)
  return np.mean([e for e, _ in parts]), probs * (slope - inner)


def state_at(trained, step):
  """Returns a state whose parameters and moments all differ."""
  state = tiny.init_state(trained, step).replace(step=jnp.int32(step))
  state = jax.tree.map(
    lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
  )
  rng = np.random.default_rng(0)

  def moved(x):
    return x + 0.1 * jnp.abs(x).mean() * rng.normal(size=x.shape)

  def fill(x):
    if x.dtype == jnp.int32:
      return jnp.asarray(step, x.dtype)
    return jnp.asarray(1e-3 * rng.random(x.shape))

  return state.replace(
    params=jax.tree.map(moved, state.params),
    opt_state=jax.tree.map(fill, state.opt_state),
  )


@pytest.mark.slow
@pytest.mark.parametrize('step', [2, 3, 5])
def test_a_step_of_afa_and_its_update(step):
  """The class loss alone; then with refined, then with propagated labels."""
  trained, train_step = method_and_step(tiny.AFA)
  state, batch = state_at(trained, step), tiny.draw_batch(4)
  keys = afa.StepKeys(*jax.random.split(jax.random.fold_in(state.rng, step), 4))
  images = to_symmetric(batch['image'])
  cams, affinities, stats = numpy_cams(trained, state, images, keys.cams)
  refined, labels = numpy_labels(cams, affinities, batch, step > 4)

  arguments = (trained, state.params, stats, images, keys.network)
  outputs, stats = forward(*arguments, trained.options.heads)
  outputs = jax.device_get(outputs)
  logits = daformer.half_pixel(outputs['logits'], SHAPE)
  tags = batch['tags'][:, 1:]
  of_class = reference.class_loss(outputs['tags'].logits, tags)
  of_pixels = reference.segmentation_loss(logits, labels)
  of_pairs = reference.affinity_loss(
    outputs['affinity'], refined[:, ::8, ::8], tiny.RADIUS
  )
  of_energy = energy_and_gradient(logits, labels, batch)
  weights = np.array([0.1, 0.1, 1e-3]) * (step > 2)
  total = of_class[0] + weights @ [
    of_pixels[0],
    of_pairs[0],
    of_energy[0],
  ]
  cotangent = weights[0] * of_pixels[1] + weights[2] * of_energy[1]
  gradient = pull(
    *arguments,
    {
      'tags': outputs['tags']._replace(
        logits=of_class[1], maps=np.zeros_like(outputs['tags'].maps)
      ),
      'logits': daformer.half_pixel_transposed(cotangent, FINE),
      'affinity': weights[1] * of_pairs[1],
    },
  )

  after, scalars = train_step(state, batch)
  for name, expected in (
    ('loss_class', of_class[0]),
    ('loss_segmentation', of_pixels[0]),
    ('loss_affinity', of_pairs[0]),
    ('loss_energy', of_energy[0]),
    ('loss', total),
  ):
    assert expected != 0
    np.testing.assert_allclose(scalars[name], expected, rtol=1e-6)
  known = (batch['label'] >= 0) & (labels >= 0)
  accuracy = (batch['label'] == labels)[known].mean()
  np.testing.assert_allclose(
    scalars['pseudo_label_accuracy'], accuracy, rtol=1e-6
  )
  adapt_step.assert_close(after.batch_stats, stats)
  assert_updated(state, jax.device_get(after), jax.device_get(gradient), step)


def assert_updated(state, after, gradient, step):
  """Asserts the update of §4.9: frozen norms, groups, schedule, AdamW."""
  factor = reference.rate_factor(step, 3, tiny.NUM_STEPS)
  flat = jax.tree_util.tree_leaves_with_path(state.opt_state)
  moments = {}
  for path, leaf in flat:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for kind in ('mu', 'nu'):
      if f'/{kind}/' in name:
        moments[kind, name.partition(f'/{kind}/')[2]] = np.asarray(leaf)
  count = 0

  def check(path, theta, grad, new):
    nonlocal count
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.startswith('encoder/') and 'norm' in name:
      np.testing.assert_array_equal(new, theta, err_msg=name)
      return
    rate = 1e-3 * factor * (1.0 if name.startswith('encoder/') else 10.0)
    expected, *_ = daformer.adamw(
      *(np.asarray(x) for x in (theta, grad)),
      moments['mu', name],
      moments['nu', name],
      step,
      rate,
      0.01,
    )
    np.testing.assert_allclose(
      new, expected, rtol=1e-6, atol=1e-9, err_msg=name
    )
    count += 1

  jax.tree_util.tree_map_with_path(check, state.params, gradient, after.params)
  assert count > 30


def contrast_masks(maps, batch, rng):
  """Computes anchors and negatives, of which each image has a sample."""
  inside = u2pl_reference.nearest(batch['valid'], FINE)
  each = [
    reference.candidates(
      reference.resize(maps[b], FINE), batch['tags'][b, 1:], inside[b], 0.45
    )
    for b in range(tiny.BATCH)
  ]
  anchors, negatives = (np.stack(x) for x in zip(*each, strict=True))
  sampled = jax.jit(
    lambda negatives, rng: (
      cam_contrast.sample_negatives_per_image(
        contrast.Candidates(negatives, negatives, negatives),
        rng,
        tiny.CONTRAST,
      ).negatives
    )
  )(negatives, rng)
  return contrast_reference.ContrastMasks(anchors, anchors, np.asarray(sampled))


def state_with_prototypes(trained, step, known):
  """Returns a state with an empty bank and known prototypes."""
  state = state_at(trained, step)
  return state.replace(
    bank=trained.branch.init().bank,
    prototypes=state.prototypes.replace(
      vectors=jnp.asarray(known.values), updates=jnp.asarray(known.updates)
    ),
  )


def assert_teacher_is_averaged(before, after):
  """Asserts the teacher's third step, in which its decay is 1 - 1/3."""
  jax.tree.map(
    lambda new, old, trained: np.testing.assert_allclose(
      new, (2 * old + trained) / 3, rtol=1e-6, atol=1e-9
    ),
    after.teacher_params,
    before,
    after.params,
  )


@pytest.mark.slow
@pytest.mark.parametrize('options', [PLUS, READINGS], ids=['plus', 'readings'])
def test_losses_of_a_step_of_u2pl_plus(options):
  """Anchors, prototypes and negatives of Eqs. 29-31.

  Then by propagated CAMs, with keys and prototypes of an EMA teacher.
  """
  trained, train_step = method_and_step(options)
  step = 5
  batch = tiny.draw_batch(4)
  known = contrast_reference.Prototypes(
    np.random.default_rng(5).normal(size=(tiny.CLASSES, 8)),
    np.array([2, 1, 0, 3]),
  )
  state = state_with_prototypes(trained, step, known)
  keys = afa.StepKeys(*jax.random.split(jax.random.fold_in(state.rng, step), 4))
  images = to_symmetric(batch['image'])
  maps, affinities, stats = numpy_cams(trained, state, images, keys.cams)
  outputs, _ = forward(
    trained, state.params, stats, images, keys.network, trained.options.heads
  )
  student = features = np.asarray(outputs['rep'])
  if options is READINGS:
    maps = [
      reference.propagated_cam(*each, (6, 6), tiny.RADIUS)
      for each in zip(maps, affinities, strict=True)
    ]
    teacher = jax.tree.map(lambda x: 1.1 * x + 0.01, state.params)
    state = state.replace(teacher_params=teacher)
    outputs, _ = forward(
      *(trained, teacher, state.batch_stats, images, None, ('rep',))
    )
    features = np.asarray(outputs['rep'])
  masks = contrast_masks(maps, batch, keys.sample)
  bank = contrast_reference.Bank([80] * tiny.CLASSES)
  result = numpy_contrast.step(
    *(masks, features, student, known, bank, keys.branch, tiny.CONTRAST, 0.999)
  )
  after, scalars = train_step(state, batch)
  assert result.loss > 0
  np.testing.assert_allclose(scalars['loss_contrast'], result.loss, rtol=1e-5)
  terms = sum(
    weight * scalars[f'loss_{name}']
    for name, weight in (
      *(('class', 1.0), ('segmentation', 0.1), ('affinity', 0.1)),
      *(('energy', 1e-3), ('contrast', 0.1)),
    )
  )
  np.testing.assert_allclose(scalars['loss'], terms, rtol=1e-5)
  np.testing.assert_allclose(
    after.prototypes.vectors, result.prototypes.values, rtol=1e-5
  )
  for c in range(tiny.CLASSES):
    assert int(after.bank.count[c]) == bank.size(c) > 0
  if options is READINGS:
    assert trained.options.class_steps + 3 == step
    assert_teacher_is_averaged(teacher, after)


def test_images_are_scaled_as_by_the_transcription():
  images = to_symmetric(tiny.draw_batch()['image'])
  for scale in SCALES:
    actual = jax.jit(cam.resize_and_flip, static_argnums=1)(images, scale)
    np.testing.assert_allclose(actual, scaled_pairs(images, scale), atol=1e-12)
