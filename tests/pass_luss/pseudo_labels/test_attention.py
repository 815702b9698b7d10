"""Training of pixel attention."""

import jax
import numpy as np

from pass_luss.pretrain import objective_options, view_colors
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pseudo_labels import attention as attention_lib
from segcore.ops import color_augment
from segcore.train import optimizers, update
from tests.pass_luss import support
from tests.transcriptions import pass_labels


def build_method(num_steps=10):
  net, _ = support.build_attention_network()
  tx = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.6,
    adaptation='larc',
    weight_decay_mode='l2',
    groups=(attention_lib.FROZEN_PROJECTION,),
  )
  return attention_lib.AttentionMethod(
    net,
    update.Update(('heads',), tx, num_steps),
    objective_options.SwavOptions(queue=8),
    view_colors.ViewColors(large=(color_augment.ColorOptions(),) * 2),
  )


def test_trains_attention_and_prototypes_and_updates_batch_statistics():
  method = build_method()
  rng = np.random.default_rng(0)
  batch = {
    'views_large': jax.device_put(
      rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    )
  }
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  init = jax.jit(lambda key: method.init(key, spec, None))
  before = init(jax.random.PRNGKey(0))
  step = jax.jit(method.train_step)
  state = before
  for i in range(3):
    state, scalars = step(state, batch)
    assert int(state.queue.count) == min(8, 4 * (i + 1))
  assert np.isfinite(scalars['loss'])

  def changed(old, new):
    return jax.tree.map(lambda a, b: not np.array_equal(a, b), old, new)

  assert not any(
    jax.tree.leaves(changed(before.params['encoder'], state.params['encoder']))
  )
  heads_changed = changed(before.params['heads'], state.params['heads'])
  assert not any(jax.tree.leaves(heads_changed['clusters']['projection']))
  assert heads_changed['clusters']['prototypes']
  # Of the parameters that have a gradient: biases before a norm have none.
  assert heads_changed['attention']['threshold']
  assert heads_changed['attention']['conv1']['kernel']
  statistics = changed(before.batch_stats, state.batch_stats)
  assert all(jax.tree.leaves(statistics['encoder']))
  np.testing.assert_allclose(
    np.linalg.norm(state.queue.rows, axis=-1), 1.0, rtol=1e-5
  )


def test_embeddings_of_attended_features():
  method = build_method()
  rng = np.random.default_rng(0)
  views = rng.integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
  _, state = support.build_attention_network()
  params = prototypes_lib.l2_normalize_prototypes(state.params)
  (embeddings, _), _ = jax.jit(method._embed)(
    params, state.batch_stats, support.to_symmetric(views)
  )
  variables = {'params': params, 'batch_stats': state.batch_stats}

  def deepest(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    return maps.deepest.array

  @jax.jit
  def encode(variables, images):
    return method.segmenter.apply(
      variables, images, method=deepest, mutable=['batch_stats']
    )[0]

  maps = encode(variables, support.to_symmetric(views.reshape(6, 32, 32, 3)))
  weights = support.projection_weights(
    params['heads']['clusters']['projection']
  )
  expected = pass_labels.pixel_attention_embeddings(
    np.asarray(maps, np.float64), support.attention_weights(state), weights
  )
  np.testing.assert_allclose(
    np.asarray(embeddings).reshape(6, -1), expected, atol=5e-4
  )
