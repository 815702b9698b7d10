"""The hybrid vision transformer against reference code in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.encoders import hybrid_vit
from tests.support import reference_networks

_SMALL = {
  'blocks': (1, 1, 1),
  'width': 8,
  'num_groups': 4,
  'hidden_size': 16,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 24,
}


@pytest.mark.parametrize(
  ('size', 'grid', 'use_cls_token'),
  [
    ((64, 64), (4, 4), True),
    ((64, 96), (4, 4), True),
    ((96, 64), (3, 5), False),
  ],
)
def test_hybrid_vit_equals_the_reference(size, grid, use_cls_token):
  module = hybrid_vit.HybridViT(
    **_SMALL, grid=grid, use_cls_token=use_cls_token
  )
  images = reference_networks.draw_images(*size)
  params = reference_networks.draw_params(module, images)
  maps = jax.jit(module.apply)({'params': params}, images)
  reference_networks.assert_maps_equal(
    maps,
    reference_networks.hybrid_vit(images, params, module),
    {'root': 2, 'block1': 4, 'block2': 8, 'block3': 16, 'tokens': 16},
  )
  assert maps.deepest.name == maps.at_stride(16).name == 'tokens'


def test_hybrid_vit_has_the_size_and_names_of_the_checkpoint():
  images = jnp.zeros((1, 64, 64, 3))
  params = jax.eval_shape(
    hybrid_vit.HybridViT().init, jax.random.key(0), images
  )
  params = params['params']
  assert reference_networks.count_parameters(params) == 97_890_112
  block = 'Transformer/encoderblock_11'
  attention = f'{block}/MultiHeadDotProductAttention_0'
  for path, shape in {
    'conv_root/kernel': (7, 7, 3, 64),
    'gn_root/scale': (64,),
    'block3/unit9/conv2/kernel': (3, 3, 256, 256),
    'block2/unit1/conv_proj/kernel': (1, 1, 256, 512),
    'block2/unit1/gn_proj/bias': (512,),
    'embedding/kernel': (1, 1, 1024, 768),
    'embedding/bias': (768,),
    'cls': (1, 1, 768),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    f'{block}/LayerNorm_0/scale': (768,),
    f'{block}/LayerNorm_1/bias': (768,),
    f'{attention}/query/kernel': (768, 12, 64),
    f'{attention}/value/bias': (12, 64),
    f'{attention}/out/kernel': (12, 64, 768),
    f'{block}/MlpBlock_0/Dense_0/kernel': (768, 3072),
    f'{block}/MlpBlock_0/Dense_1/bias': (768,),
    'Transformer/encoder_norm/bias': (768,),
  }.items():
    leaf = params
    for key in path.split('/'):
      leaf = leaf[key]
    assert leaf.shape == shape, path


def test_image_sizes_that_do_not_fit_the_stride_are_refused():
  with pytest.raises(ValueError, match='multiples of 16, got 64x72: '):
    jax.eval_shape(
      hybrid_vit.HybridViT().init,
      jax.random.key(0),
      reference_networks.draw_images(64, 72),
    )


def test_dropout_is_on_in_training_only():
  module = hybrid_vit.Transformer((4, 4), 1, 2, 8, 0.5, jnp.float32, False)
  x = jax.device_put(
    np.float32(np.random.default_rng(0).normal(size=(1, 16, 8)))
  )
  variables = {
    'params': reference_networks.draw_params(module, x, (4, 4), False)
  }

  @functools.partial(jax.jit, static_argnums=0)
  def run(train, seed):
    return module.apply(
      variables, x, (4, 4), train, rngs={'dropout': jax.random.key(seed)}
    )

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  assert not np.allclose(run(True, 0), run(True, 1))
  np.testing.assert_array_equal(run(True, 0), run(True, 0))


def test_remat_of_a_transformer_changes_neither_values_nor_gradients():
  module = hybrid_vit.Transformer((4, 4), 1, 2, 8, 0.0, jnp.float32, False)
  x = jax.device_put(
    np.float32(np.random.default_rng(0).normal(size=(1, 16, 8)))
  )
  reference_networks.assert_same_with_remat(module, x, (4, 4), True)
