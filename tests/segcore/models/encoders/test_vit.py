"""The plain vision transformer against a transcription in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import heads, segmenter
from segcore.models.encoders import vit
from segcore.train import optimizers, update
from segcore.weights.layouts import vit as layout
from tests.support import vit_states
from tests.transcriptions import position_tables
from tests.transcriptions import vit as transcription

_SMALL = {
  'patch_size': 4,
  'hidden_size': 12,
  'num_layers': 2,
  'num_heads': 3,
  'mlp_dim': 48,
  'grid': (3, 3),
  'depths': (0, 1),
}


def _params(state):
  encoder = layout.translate_vit_weights(state)['params']['encoder']
  return {'params': jax.device_put(encoder)}


def _images(*size):
  rng = np.random.default_rng(size)
  return rng.uniform(size=(2, *size, 3)).astype(np.float32)


@pytest.mark.parametrize(
  ('size', 'state', 'fields', 'reference'),
  [
    ((12, 12), {}, {}, {}),
    (
      (12, 20),
      {},
      {'norm_epsilon': 0.1},
      {'resize': position_tables.dino, 'epsilon': 0.1},
    ),
    (
      (8, 16),
      {'registers': 4, 'layer_scale': True},
      {'num_registers': 4, 'layer_scale': True, 'position_rule': 'timm'},
      {'resize': position_tables.timm},
    ),
  ],
)
def test_features_equal_the_transcription(size, state, fields, reference):
  state = vit_states.dino(**state)
  module = vit.ViT(**_SMALL, **fields)
  images = _images(*size)
  maps = jax.jit(module.apply)(_params(state), 2.0 * images - 1.0).maps
  expected = np.stack(
    [
      transcription.features(image, state, heads=3, **reference)
      for image in images
    ],
    axis=1,
  )
  assert [(x.name, x.stride) for x in maps] == [('block0', 4), ('block1', 4)]
  for i in range(2):
    assert maps[i].array.shape == (2, size[0] // 4, size[1] // 4, 12)
    np.testing.assert_allclose(maps[i].array, expected[i], atol=1e-4, rtol=0)


def test_images_without_standardization_and_a_bias():
  state = vit_states.dino()
  plain = {k: x for k, x in state.items() if not k.endswith('qkv.bias')}
  images = _images(12, 12)
  # The transcription standardizes [0, 1]; here [-1, 1] is read as it is.
  module = vit.ViT(**_SMALL, qkv_bias=False, imagenet_statistics=False)
  read = (images - transcription.MEAN) / transcription.STD
  maps = jax.jit(module.apply)(_params(plain), read.astype(np.float32))
  expected = transcription.features(images[0], plain, heads=3)[-1]
  np.testing.assert_allclose(maps.deepest.array[0], expected, atol=1e-4)


def _num_parameters(**fields):
  module = vit.ViT(**fields)
  images = jax.ShapeDtypeStruct((1, 56, 56, 3), jnp.float32)
  maps, variables = jax.eval_shape(
    lambda key, x: module.init_with_output(key, x), jax.random.key(0), images
  )
  leaves = jax.tree.leaves(variables['params'])
  return sum(x.size for x in leaves), [x.name for x in maps.maps]


def test_published_sizes_have_their_parameters():
  dinov2 = {'patch_size': 14, 'grid': (37, 37), 'layer_scale': True}
  # DINO's tables; DINOv2's without the mask token, and with 4 registers.
  for size, fields, count in (
    ('small', {'patch_size': 8, 'grid': (28, 28)}, 21_670_272),
    ('small', dinov2, 22_056_576 - 384),
    ('base', {**dinov2, 'num_registers': 4}, 86_580_480 - 768 + 4 * 768),
    ('large', dinov2, 304_368_640 - 1024),
  ):
    number, names = _num_parameters(**vit.SIZES[size], **fields)
    assert number == count, size
    depths = (4, 11, 17, 23) if size == 'large' else (2, 5, 8, 11)
    assert names == [f'block{i}' for i in depths]


def test_depths_always_hold_the_last_block():
  fields = {**_SMALL, 'num_layers': 3}
  assert _num_parameters(**{**fields, 'patch_size': 14, 'depths': (0,)})[1] == [
    'block0',
    'block2',
  ]
  assert _num_parameters(**{**fields, 'patch_size': 14, 'depths': None})[1] == [
    'block2'
  ]


def test_a_frozen_encoder_has_no_gradient():
  params = _params(vit_states.dino())
  images = jax.device_put(_images(12, 12))

  def loss(params, frozen):
    module = vit.ViT(**_SMALL, frozen=frozen, remat=not frozen)
    return sum(jnp.sum(x.array**2) for x in module.apply(params, images).maps)

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  for frozen in (True, False):
    gradients = jax.tree.leaves(gradient(params, frozen))
    assert all(np.any(np.asarray(x) != 0) != frozen for x in gradients)


def test_a_frozen_encoder_is_left_out_of_updates():
  """No weight decay moves it, and it has no optimizer state."""
  optimizer = optimizers.OptimizerOptions(learning_rate=0.1, weight_decay=0.1)
  recipe = update.RecipeOptions(4, 2, optimizer)
  for frozen in (True, False):
    encoder = vit.ViT(**_SMALL, frozen=frozen)
    net = segmenter.Segmenter(encoder, None, {'logits': heads.PoolHead(3)})
    step = recipe.make_update(('encoder', 'heads'), net.frozen_parameters)
    for path in ('pos_embed', 'block1/attn/qkv/kernel', 'norm/scale'):
      factors = step.optimizer.factors(f'encoder/{path}')
      assert factors == ((0.0, 0.0) if frozen else (1.0, 1.0))
    assert step.optimizer.factors('heads/logits/kernel') == (1.0, 1.0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_heads': 5}, 'multiple of num_heads=5, got 12'),
    ({'depths': (0, 2)}, r'blocks from 0 to 1, got \(0, 2\)'),
    ({'patch_size': 5}, 'multiples of 5, got 12x12'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  module = vit.ViT(**{**_SMALL, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
