"""PixPro against slow numpy transcriptions (spec §2.10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import objective_options
from pass_luss.pretrain.objectives import pixpro
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import SIZE
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import (
  pass_pixpro,
  pass_pretraining,
  pass_updates,
)

pytestmark = pytest.mark.usefixtures('float64')


def test_propagation():
  pixels = arrays.normal(2, 3, 4, SIZE)
  kernel, bias = arrays.normal(SIZE, SIZE, seed=1), arrays.normal(SIZE, seed=2)
  actual = jax.jit(pixpro.propagate_pixels, static_argnums=2)(
    pixels, pixels @ kernel + bias, 2.0
  )
  for i in (0, 1):
    expected = pass_pixpro.ppm(pixels[i], kernel, bias, 2, 0)
    arrays.assert_close(actual[i], expected.reshape(3, 4, SIZE))


def test_loss():
  y = arrays.normalized(3, 2, 2, 2, SIZE)
  k = arrays.normalized(3, 2, 2, 2, SIZE, seed=1)
  masks = np.random.default_rng(2).random((3, 4, 4)) < 0.4
  masks[1] = False
  propagated, keys = (x.reshape(3, 2, 4, SIZE) for x in (y, k))
  loss = jax.jit(pixpro.pixpro_loss)
  actual = loss(propagated[:, 0], keys[:, 1], masks) + loss(
    propagated[:, 1], keys[:, 0], np.swapaxes(masks, 1, 2)
  )
  expected = pass_pixpro.pixpro_loss(y[:, 0], y[:, 1], k[:, 0], k[:, 1], masks)
  arrays.assert_close(actual, expected)


@pytest.mark.parametrize('by_view', [True, False])
def test_statistics_of_the_projector(by_view):
  """Each view has its own if the encoder's are of one view, too."""
  # The views differ in mean and scale, so that their statistics do.
  maps = arrays.normal(3, 2, 4, 4, SIZE)
  maps[:, 1] = 2 * maps[:, 1] + 1
  objective = pixpro.Pixpro(
    objective_options.PixproOptions(hidden=8, size=SIZE)
  )
  head = objective.heads(jnp.float64)['pixpro']
  net, params = support.bind('pixpro', head, maps[:, 0])
  projector, transform = params['projector'], params['transform']
  weights = {
    'w1': projector['conv1']['kernel'][0, 0],
    'b1': projector['conv1']['bias'],
    'gamma': projector['bn1']['scale'],
    'beta': projector['bn1']['bias'],
    'w2': projector['conv2']['kernel'][0, 0],
    'b2': projector['conv2']['bias'],
  }
  if by_view:
    pixels = np.stack(
      [pass_pixpro.pixpro_projector(maps[:, v], weights) for v in (0, 1)],
      axis=1,
    )
  else:
    merged = maps.reshape(-1, *maps.shape[2:])
    pixels = pass_pixpro.pixpro_projector(merged, weights).reshape(maps.shape)

  @jax.jit
  def outputs(maps):
    views = support.encoded(maps, by_view)
    return (
      objective.momentum_outputs(net, views)['keys'],
      objective.outputs(net, views)['propagated'],
    )

  keys, propagated = outputs(maps)
  expected = pass_pretraining.normalize(pixels).reshape(3, 2, 16, SIZE)
  np.testing.assert_allclose(keys, expected, rtol=1e-6)
  for b, v in np.ndindex(3, 2):
    expected = pass_pixpro.ppm(
      pixels[b, v], transform['kernel'][0, 0], transform['bias']
    )
    np.testing.assert_allclose(propagated[b, v], expected, rtol=1e-6)


def test_objective_from_boxes():
  boxes, flips = arrays.random_boxes(4, seed=3)
  boxes, source = np.rint(boxes), (95, 120)
  y = arrays.normalized(4, 2, 5, 5, SIZE)
  k = arrays.normalized(4, 2, 5, 5, SIZE, seed=1)
  masks = []
  for box, flip in zip(boxes, flips, strict=True):
    first, second = map(arrays.reference_box, box)
    masks.append(pass_pixpro.pixpro_masks(first, second, *flip, 5, source, 0.7))
  expected = pass_pixpro.pixpro_loss(
    y[:, 0], y[:, 1], k[:, 0], k[:, 1], np.array(masks)
  )
  objective = pixpro.Pixpro(
    objective_options.PixproOptions(hidden=8, size=SIZE)
  )

  @jax.jit
  def loss(propagated, keys, batch):
    inputs = support.step(
      {'pixpro': {'propagated': propagated}},
      momentum_outputs={'pixpro': {'keys': keys}},
      batch=batch,
    )
    return objective.loss(inputs)

  batch = {'box_large': boxes, 'flip_large': flips}
  batch['size'] = np.array([source] * 4)
  terms, _ = loss(y, k.reshape(4, 2, 25, SIZE), batch)
  assert expected != 0
  arrays.assert_close(terms['loss_pixpro'], expected)


def test_momentum_decay_is_that_of_the_options():
  objective = pixpro.Pixpro(objective_options.PixproOptions(decay=0.9))
  decay = objective.needs_momentum.decay(jnp.asarray(37), 100)
  arrays.assert_close(decay, pass_updates.momentum(37, 100, 0.9))
