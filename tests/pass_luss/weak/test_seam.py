"""SEAM against slow numpy transcriptions (spec comparators §4.1)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.weak import image_classifier, pixel_correlation, seam
from segcore.models.layers import standardize
from segcore.train import update as update_lib
from tests.pass_luss.weak import tiny
from tests.support import meshes
from tests.transcriptions import wsss

STEP = 1e-6


def first(x):
  """Moves channels first: [B, h, w, C] to [B, C, h, w], float64."""
  return np.moveaxis(np.asarray(x, np.float64), -1, 1)


def slope(function, x, direction):
  """Computes the derivative along a direction, by a central difference."""
  ahead, behind = function(x + STEP * direction), function(x - STEP * direction)
  return (ahead - behind) / (2 * STEP)


def test_losses_and_their_gradients():
  rng = np.random.default_rng(0)
  sizes = ((10, 12), (10, 12), (4, 5), (4, 5))
  maps = [rng.normal(0.3, 1.0, (2, *size, 4)) for size in sizes]
  # Where both images agree, the gradient of the difference is 0.
  maps[2][1] = -1.0
  tags = np.array([[1, 0, 0], [1, 0, 1]], bool)

  @jax.jit
  def compute(maps, tags):
    def total(maps):
      terms = seam.seam_terms(tuple(maps[:2]), tuple(maps[2:]), tags, 0.2)
      return sum(x.sum() for x in terms.values()), list(terms.values())

    return jax.grad(total, has_aux=True)(maps)

  with jax.enable_x64():
    gradients, terms = jax.device_get(compute(maps, tags))
  by_image = [[first(x)[i] for x in maps] for i in range(2)]
  expected = [
    wsss.seam_loss(*each, y)
    for each, y in zip(by_image, tags * 1.0, strict=True)
  ]
  np.testing.assert_allclose(np.stack(terms, 1), expected, rtol=1e-9)
  for i, y in enumerate(tags * 1.0):
    a, a_small, *_ = wsss.seam_maps(*by_image[i], y)
    targets = [wsss.one_hot(wsss.with_background(x)) for x in (a, a_small)]
    for k in range(4):

      def loss(x, k=k, i=i, y=y, targets=targets):
        each = [*by_image[i][:k], x, *by_image[i][k + 1 :]]
        return wsss.seam_loss(*each, y, targets).sum()

      direction = rng.normal(size=by_image[i][k].shape)
      np.testing.assert_allclose(
        np.sum(first(gradients[k])[i] * direction),
        slope(loss, by_image[i][k], direction),
        rtol=1e-5,
        atol=1e-8,
      )


def correlation_and_gradients(images, heads, shallow, deep, cams, factors):
  """Returns gradients of heads and maps; refined, prepared maps, images."""

  def total(heads, shallow, deep, cams):
    params = {'heads': heads}
    pixels = pixel_correlation.embed_pixels(
      params, images, shallow, deep, cams.shape[1:3]
    )
    prepared = pixel_correlation.suppress_weaker_classes(cams)
    refined = pixel_correlation.correlate_pixels(pixels, prepared)
    standardized = standardize.standardize_by_imagenet(images)
    return (refined * factors).sum(), (refined, prepared, standardized)

  return jax.grad(total, (0, 1, 2, 3), has_aux=True)(heads, shallow, deep, cams)


def test_the_correlation_module_and_its_gradients():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 16, 20, 3))
  shallow, deep = rng.normal(size=(2, 8, 10, 6)), rng.normal(size=(2, 4, 5, 7))
  cams = rng.normal(0.5, 1.0, (2, 4, 5, 4))
  shapes = {'shallow': (6, 64), 'deep': (7, 128), 'embedding': (195, 192)}
  heads = {
    name: {'kernel': rng.normal(size=shape) / 8}
    for name, shape in shapes.items()
  }
  factors = rng.normal(size=cams.shape)

  with jax.enable_x64():
    (gradients, *of_maps), (refined, prepared, standardized) = jax.device_get(
      jax.jit(correlation_and_gradients)(
        images, heads, shallow, deep, cams, factors
      )
    )
  kernels = {name: each['kernel'].T for name, each in heads.items()}

  def correlate(kernels, i):
    return wsss.correlate(
      first(standardized)[i],
      first(shallow)[i],
      first(deep)[i],
      [kernels[name] for name in shapes],
      wsss.module_input(first(cams)[i].copy()),
    )

  for i in range(2):
    r = wsss.module_input(first(cams)[i].copy())
    np.testing.assert_allclose(first(prepared)[i], r, atol=1e-12)
    np.testing.assert_allclose(
      first(refined)[i], correlate(kernels, i), atol=1e-10
    )
  # Only the three matrices of the module learn.
  assert not any(np.any(each) for each in of_maps)
  for name in shapes:

    def total(kernel, name=name):
      changed = {**kernels, name: kernel}
      return sum(
        (correlate(changed, i) * first(factors)[i]).sum() for i in range(2)
      )

    direction = rng.normal(size=kernels[name].shape)
    np.testing.assert_allclose(
      np.sum(gradients[name]['kernel'].T * direction),
      slope(total, kernels[name], direction),
      rtol=1e-5,
    )


@pytest.fixture(scope='module')
def stepped():
  """Returns a method, its batch, and the state before and after a step.

  And the scalars of the step.

  In float64, as refined maps of few cells are nearly constant.
  """
  with jax.enable_x64():
    trained, batch = tiny.make_method(dtype=jnp.float64), tiny.draw_batch()
    state = tiny.init_state(trained, batch, jnp.float64)
    after, scalars = jax.jit(trained.train_step)(state, batch)
    return trained, batch, state, *jax.device_get((after, scalars))


def maps_of_both_scales(trained, state, batch):
  """Returns images, three maps and kept channels at both scales."""
  rng = jax.random.fold_in(state.rng, state.step)
  rows, network = jax.random.split(rng)
  keys = update_lib.ForwardKeys(
    update_lib.row_prng_keys(rows, tiny.BATCH), network
  )
  large = trained.augmented_images(batch, keys)
  splits = jax.vmap(jax.random.split)(keys.rows)
  small = jax.image.scale_and_translate(
    large,
    (tiny.BATCH, 12, 12, 3),
    (1, 2),
    jnp.array([11 / 31, 11 / 31]),
    # Corners on corners.
    jnp.array([0.5 - 0.5 * 11 / 31, 0.5 - 0.5 * 11 / 31]),
    'linear',
    antialias=False,
  )
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  results = []
  for i, images in enumerate((large, small)):
    maps = trained.feature_maps(variables, images)
    kept = image_classifier.sample_kept_channels(splits[:, i], 32, 0.5)
    results.append(
      (
        standardize.standardize_by_imagenet(images),
        *(maps.by_name(name).array for name in ('x2', 'x3', 'x4')),
        kept,
      )
    )
  return results


def test_a_whole_step(stepped):
  """The terms are those of the maps of both images, under its dropout."""
  trained, batch, state, _, scalars = stepped

  with jax.enable_x64():
    inputs = functools.partial(maps_of_both_scales, trained)
    both = jax.device_get(jax.jit(inputs)(state, batch))
  kernels = {
    name: np.asarray(each['kernel'], np.float64).T
    for name, each in state.params['heads'].items()
  }
  terms = []
  for b in range(tiny.BATCH):
    maps = []
    for images, shallow, deep, deepest, kept in both:
      features = first(deepest)[b] * kept[b][:, None, None] / 0.5
      cams = np.einsum('cd,dhw->chw', kernels['classes'], features)
      refined = wsss.correlate(
        first(images)[b],
        first(shallow)[b],
        first(deep)[b],
        [kernels[name] for name in ('shallow', 'deep', 'embedding')],
        wsss.module_input(cams.copy()),
      )
      size = images.shape[1:3]
      maps += [wsss.resize_aligned(x, size) for x in (cams, refined)]
    terms.append(wsss.seam_loss(*maps, batch['tags'][b, 1:] * 1.0))
  expected = np.mean(terms, axis=0)
  for name, value in zip(('classes', 'er', 'ecr'), expected, strict=True):
    np.testing.assert_allclose(
      scalars[f'loss_{name}'], value, rtol=1e-6, err_msg=name
    )
  np.testing.assert_allclose(scalars['loss'], expected.sum(), rtol=1e-6)


def test_first_layers_and_norms_stay(stepped):
  *_, before, after, _ = stepped
  before = jax.device_get(before)
  changed = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.any(new != old)
    for (path, new), old in zip(
      jax.tree_util.tree_leaves_with_path(after.params),
      jax.tree.leaves(before.params),
      strict=True,
    )
  }
  for path, learned in changed.items():
    stays = 'bn' in path or 'root' in path or 'block1' in path
    assert learned != stays, path
  jax.tree.map(
    np.testing.assert_array_equal, after.batch_stats, before.batch_stats
  )


def test_padding_keeps_the_mean_color(stepped):
  trained, batch, *_ = stepped
  keys = update_lib.ForwardKeys(
    update_lib.row_prng_keys(jax.random.PRNGKey(0), tiny.BATCH), None
  )
  images = jax.jit(
    lambda batch, keys: standardize.standardize_by_imagenet(
      trained.augmented_images(batch, keys)
    )
  )(batch, keys)
  np.testing.assert_allclose(images[:3, :, 28:], 0, atol=1e-6)
  assert np.abs(images[3:, :, 28:]).max() > 0.1


def test_sums_over_scales_are_scaled_to_one():
  rng = np.random.default_rng(0)
  evidence = rng.normal(1.0, 1.0, (2, 6, 7, 1))
  trained = tiny.make_method()
  with jax.enable_x64():
    actual = jax.jit(trained.normalize_evidence)(evidence)
  for i in range(2):
    np.testing.assert_allclose(
      actual[i], wsss.seam_normalize(evidence[i, ..., 0]), atol=1e-12
    )


@pytest.mark.slow
def test_eight_devices_are_one_in_float64(monkeypatch):
  with jax.enable_x64():
    trained = tiny.make_method(dtype=jnp.float64)
    batches = [tiny.draw_batch(i) for i in range(2)]
    state = tiny.init_state(trained, batches[0], jnp.float64)
    one, eight = meshes.one_and_eight(trained, state, batches, 1, monkeypatch)
  meshes.assert_close(one, eight)


@pytest.mark.slow
def test_collectives_of_a_step():
  """Gradients and scalars are summed; nothing else is sent."""
  trained, batch = tiny.make_method(), tiny.draw_batch()
  state = tiny.init_state(trained, batch)
  kinds = meshes.collectives_of_step(trained, state, batch)
  assert {*kinds} == {'all-reduce'}
