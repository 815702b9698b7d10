"""Operations counted by hand, and those of the papers' networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from ddep import noise
from ddep.stages import denoise
from input_pipeline import batch as batch_lib
from segcore.cost import flops
from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import unet
from segcore.models.encoders import hybrid_vit, resnet_gn
from segcore.train import optimizers
from segcore.train import update as update_lib


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def total(function, *arguments):
  return flops.count_flops(function, *arguments).total


def conv(x, kernel, stride=1, padding='SAME', **fields):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    **fields,
  )


def test_matrix_product():
  # [5, 7] x [7, 3]: 15 values of 7 multiply-adds.
  assert total(jnp.matmul, shape(5, 7), shape(7, 3)) == 2 * 15 * 7
  assert total(lambda x: jnp.sin(x) + x, shape(5, 7)) == 0


def test_attention():
  # 2 images, 4 heads of 8: scores and mix of 10 tokens with 10, and four
  # projections of 32 to 32.
  images, tokens, heads, size = 2, 10, 4, 8
  width = heads * size
  module = hybrid_vit.HybridViTAttention(heads, jnp.float32)
  x = shape(images, tokens, width)
  variables = jax.eval_shape(module.init, jax.random.PRNGKey(0), x)
  by_hand = 2 * images * (tokens * tokens * width * 2 + 4 * tokens * width**2)
  assert total(module.apply, variables, x) == by_hand


# Shape of the kernel, stride, padding, fields; multiply-adds for [2, 8, 8, 6].
CONVS = {
  'same': ((3, 3, 6, 4), 1, 'SAME', {}, 2 * 64 * 9 * 6 * 4),
  'valid': ((3, 3, 6, 4), 1, 'VALID', {}, 2 * 36 * 9 * 6 * 4),
  'strided': ((3, 3, 6, 4), 2, 'SAME', {}, 2 * 16 * 9 * 6 * 4),
  'pointwise': ((1, 1, 6, 4), 2, 'SAME', {}, 2 * 16 * 6 * 4),
  'dilated': (
    (3, 3, 6, 4),
    1,
    'SAME',
    {'rhs_dilation': (2, 2)},
    2 * 64 * 9 * 6 * 4,
  ),
  'grouped': (
    (3, 3, 2, 9),
    1,
    'SAME',
    {'feature_group_count': 3},
    2 * 64 * 9 * 2 * 9,
  ),
  'depthwise': (
    (3, 3, 1, 6),
    2,
    'SAME',
    {'feature_group_count': 6},
    2 * 16 * 9 * 6,
  ),
  # A transposed convolution: each of the 8 x 8 cells meets 4 taps.
  'transposed': (
    (2, 2, 6, 4),
    1,
    ((1, 1), (1, 1)),
    {'lhs_dilation': (2, 2)},
    2 * 64 * 4 * 6 * 4,
  ),
  # The kernel is larger than the map.
  'wide': ((11, 11, 6, 4), 1, 'SAME', {}, 2 * 64 * 121 * 6 * 4),
}


@pytest.mark.parametrize('name', CONVS)
def test_convolution_and_its_gradients(name):
  kernel, stride, padding, fields, products = CONVS[name]
  x, kernel = shape(2, 8, 8, 6), shape(*kernel)

  def loss(x, kernel):
    return jnp.sum(jnp.sin(conv(x, kernel, stride, padding, **fields)))

  assert total(loss, x, kernel) == 2 * products
  # The forward pass, and one gradient or two: each costs as much again.
  assert total(jax.grad(loss, 0), x, kernel) == 2 * 2 * products
  assert total(jax.grad(loss, 1), x, kernel) == 2 * 2 * products
  assert total(jax.grad(loss, (0, 1)), x, kernel) == 3 * 2 * products


def test_inner_jaxprs():
  x, w = shape(5, 7), shape(7, 7)
  one = 2 * 5 * 7 * 7

  def twice(x, w):
    return x @ w @ w

  def scanned(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]

  def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, twice, jnp.matmul, x, w)

  def remat(x, w):
    return jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ w))(x))

  assert total(jax.jit(twice), x, w) == 2 * one
  assert total(scanned, x, w) == 6 * one
  assert total(either, x, w) == 2 * one
  assert total(jax.vmap(jnp.matmul, (0, None)), shape(3, 5, 7), w) == 3 * one
  assert total(jax.nn.relu, x) == 0  # A custom_jvp, with a jit inside.
  # 2 forward, 2 recomputed, 2 backward with respect to x.
  assert total(jax.grad(remat), x, w) == 6 * one


def test_custom_gradient():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(
    lambda x, w: (x @ w, w), lambda w, g: (g @ w.T @ w.T.T @ w.T, None)
  )
  x, w = shape(5, 7), shape(7, 7)
  one = 2 * 5 * 7 * 7
  assert total(product, x, w) == one
  gradient = jax.grad(lambda x, w: jnp.sum(product(x, w)))
  assert total(gradient, x, w) == 4 * one


def test_while_counts_one_iteration_and_reports_it():
  def loop(x, w):
    return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x) @ w

  counted = flops.count_flops(loop, shape(5, 7), shape(7, 7))
  assert (counted.total, counted.in_while) == (2 * 490, 490)


def test_shard_map_counts_all_devices():
  mesh = jax.make_mesh((8,), ('rows',), axis_types=(AxisType.Auto,))
  rows = PartitionSpec('rows')
  product = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(rows, PartitionSpec()),
    out_specs=rows,
  )
  assert total(product, shape(16, 7), shape(7, 3)) == 2 * 16 * 3 * 7


@pytest.mark.parametrize('remat', [False, True])
def test_parts_of_a_gradient(remat):
  net = segmenter.Segmenter(
    resnet_gn.ResNet((1, 1), 8, 4, remat=remat),
    unet.UNetDecoder((16, 8, 8), num_groups=4, remat=remat),
    {'logits': heads_lib.ConvHead(5)},
  )
  images = shape(1, 16, 16, 3)
  variables = jax.eval_shape(net.init, jax.random.PRNGKey(0), images)

  def loss(decoder, params):
    params = {**params, 'decoder': decoder}
    return jnp.sum(net.apply({'params': params}, images_of(params))['logits'])

  def images_of(params):
    del params
    return jnp.zeros(images.shape)

  params = variables['params']
  forward = flops.count_flops(net.apply, variables, images).by_part(
    segmenter.SUBMODULES
  )
  assert forward['heads'] == 2 * 16 * 16 * 9 * 8 * 5
  assert forward['other'] == 0
  assert forward['decoder'] > 0 and forward['encoder'] > 0
  backward = flops.count_flops(
    jax.grad(loss), params['decoder'], params
  ).by_part(segmenter.SUBMODULES)
  # The encoder gets no gradient; the head gets that of its input only.
  assert backward['encoder'] == forward['encoder']
  assert backward['heads'] == 2 * forward['heads']
  # All convolutions of the decoder but the first have both gradients, without
  # that of the skips, which belong to the encoder.
  recomputed = forward['decoder'] * remat
  assert 2 < (backward['decoder'] - recomputed) / forward['decoder'] < 3
  assert backward['other'] == 0


def test_parts_by_name():
  parts = ('encoder', 'decoder')
  for name, part in {
    'jvp(Segmenter)/Segmenter.features/encoder/block1': 'encoder',
    'transpose(jvp(Net))/decoder/block0/encoder': 'decoder',
    'vmap(encoder)': 'encoder',
    'my_encoder/conv': 'other',
    '': 'other',
  }.items():
    assert flops.part_of_name_stack(name, parts) == part


# DDeP's network (R50+ViT-B/16 and U-Net): GFLOPs of the forward pass of an
# image by part, from a list of its layers made by hand; 3, 60 or 19 classes.
TABLE = {
  # side, classes: stem, transformer, decoder and head
  (224, 3): (7.9, 35.2, 60.3),
  (512, 60): (41.1, 214.5, 332.0),
  (1024, 19): (164.4, 1321.0, 1279.0),
}


def transunet(width=1):
  heads = {f'of_{n}': heads_lib.ConvHead(n) for _, n in TABLE}
  return segmenter.Segmenter(
    hybrid_vit.HybridViT(), unet.UNetDecoder(width_multiplier=width), heads
  )


@pytest.fixture(scope='module')
def variables():
  return jax.eval_shape(
    transunet().init, jax.random.PRNGKey(0), shape(1, 224, 224, 3)
  )


@pytest.mark.parametrize(('side', 'classes'), TABLE)
def test_hybrid_vit_with_unet(variables, side, classes):
  images = shape(1, side, side, 3)

  def forward(variables, images):
    return transunet().apply(variables, images, heads=(f'of_{classes}',))

  # The layers that the encoder has in addition to its stem.
  names = ('decoder', 'heads', 'Transformer', 'embedding')
  operations = flops.count_flops(forward, variables, images).by_part(names)
  stem = operations['other']
  transformer = operations['Transformer'] + operations['embedding']
  decoder = operations['decoder'] + operations['heads']
  assert [stem / 1e9, transformer / 1e9, decoder / 1e9] == pytest.approx(
    TABLE[side, classes], rel=0.01
  )


def test_resnet_with_unet():
  net = segmenter.Segmenter(
    resnet_gn.ResNet((3, 4, 6, 3)),
    unet.UNetDecoder(),
    {'noise': heads_lib.ConvHead(3)},
  )
  images = shape(1, 224, 224, 3)
  variables = jax.eval_shape(net.init, jax.random.PRNGKey(0), images)
  operations = flops.count_flops(net.apply, variables, images).by_part(
    segmenter.SUBMODULES
  )
  assert operations['encoder'] / 1e9 == pytest.approx(8.2, rel=0.01)
  decoder = operations['decoder'] + operations['heads']
  assert decoder / 1e9 == pytest.approx(68.6, rel=0.01)


def test_denoising_by_a_frozen_encoder_costs_212_gflops_an_image():
  net = segmenter.Segmenter(
    hybrid_vit.HybridViT(), unet.UNetDecoder(), {'noise': heads_lib.ConvHead(3)}
  )
  update = update_lib.Update(
    ('decoder', 'heads'), optimizers.OptimizerOptions(learning_rate=6e-5), 100
  )
  trained = denoise.Denoise(
    net, update, noise.NoiseOptions('scaled', gamma=0.95)
  )
  spec = batch_lib.batch_spec(512, (224, 224))
  state = jax.eval_shape(
    lambda rng: trained.init(rng, spec, None), jax.random.PRNGKey(0)
  )
  step = flops.count_flops(trained.train_step, state, spec)
  parts = step.by_part(segmenter.SUBMODULES)
  assert step.total / 512 == pytest.approx(212e9, rel=0.01)
  # Forward only: the stem 7.9, the transformer 35.2.
  assert parts['encoder'] / 512 == pytest.approx(43.1e9, rel=0.01)
  assert parts['other'] == 0


def test_flax_modules_count_by_name():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='last')(nn.Dense(5, name='first')(x))

  variables = jax.eval_shape(Net().init, jax.random.PRNGKey(0), shape(2, 7))
  counted = flops.count_flops(Net().apply, variables, shape(2, 7))
  parts = counted.by_part(('first', 'last'))
  assert parts == {'first': 2 * 2 * 5 * 7, 'last': 2 * 2 * 3 * 5, 'other': 0}
