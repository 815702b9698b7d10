"""The dilated ResNet against torch's arithmetic, under torch's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore import torch_weights
from segcore.models import dilated_resnet, segmenter, unet
from tests import torch_arithmetic

DilatedResNet = dilated_resnet.DilatedResNet

# Strides and dilations of the 3x3 of each unit of blocks 1, 1, 2, 3, written
# out by the rule of the specification.
_PLANS = {
  8: [[(1, 1)], [(2, 1)], [(1, 1), (1, 2)], [(1, 4), (1, 8), (1, 16)]],
  16: [[(1, 1)], [(2, 1)], [(2, 1), (1, 1)], [(1, 1), (1, 2), (1, 2)]],
  32: [[(1, 1)], [(2, 1)], [(2, 1), (1, 1)], [(2, 1), (1, 1), (1, 1)]],
}


def _transcription(images, layers, plan, deep):
  x = (np.float64(images).transpose(0, 3, 1, 2) + 1) * 127.5
  x = x - np.array([123.675, 116.28, 103.53])[:, None, None]
  x = x / np.array([58.395, 57.12, 57.375])[:, None, None]
  if deep:
    x = layers.block(x, 'conv1.0', 'conv1.1', stride=2)
    x = layers.block(x, 'conv1.3', 'conv1.4')
    x = layers.block(x, 'conv1.6', 'bn1')
  else:
    x = layers.block(x, 'conv1', 'bn1', stride=2)
  maps = {'stem': x}
  x = torch_arithmetic.max_pool(x, ceil_mode=deep)
  for b, units in enumerate(plan, 1):
    for u, (stride, dilation) in enumerate(units):
      name = f'layer{b}.{u}'
      shortcut = x
      if u == 0:
        shortcut = layers.conv(x, f'{name}.downsample.0', stride=stride)
        shortcut = layers.norm(shortcut, f'{name}.downsample.1')
      y = layers.block(x, f'{name}.conv1', f'{name}.bn1')
      y = layers.block(
        y, f'{name}.conv2', f'{name}.bn2', stride=stride, dilation=dilation
      )
      y = layers.norm(layers.conv(y, f'{name}.conv3'), f'{name}.bn3')
      x = np.maximum(shortcut + y, 0)
    maps[f'x{b}'] = x
  return maps


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  ('stem', 'output_stride', 'size'),
  [
    ('deep', 8, (65, 49)),
    ('deep', 8, (64, 54)),  # Even sides gain a cell in the pool.
    ('plain', 16, (66, 97)),
    ('plain', 32, (128, 97)),
  ],
)
def test_it_is_torchs_network(stem, output_stride, size, train):
  deep = stem == 'deep'
  state = torch_arithmetic.resnet_state(deep=deep)
  module = DilatedResNet((1, 1, 2, 3), 4, stem, output_stride)
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.uniform(-1, 1, (2, *size, 3)), jnp.float32)

  found = torch_weights.translate(state)
  variables = {kind: tree['encoder'] for kind, tree in found.items()}
  maps, updated = jax.jit(
    lambda v: module.apply(v, images, train, mutable=['batch_stats'])
  )(variables)

  layers = torch_arithmetic.Layers(state, train)
  expected = _transcription(images, layers, _PLANS[output_stride], deep)
  assert [stage.name for stage in maps.stages] == list(expected)
  for stage in maps.stages:
    np.testing.assert_allclose(
      np.transpose(stage.array, (0, 3, 1, 2)),
      expected[stage.name],
      atol=2e-4,
      err_msg=stage.name,
    )
  statistics = torch_weights.translate({**state, **layers.updated})
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    updated['batch_stats'],
    statistics['batch_stats']['encoder'],
  )


def _count_by_hand(blocks, width=64, deep=True):
  """Kernels without biases, and a scale and an offset for each channel."""
  w = width
  if deep:
    total, channels = 27 * w + 9 * w * w + 18 * w * w + 2 * (4 * w), 2 * w
  else:
    total, channels = 147 * w + 2 * w, w
  for b, num_units in enumerate(blocks):
    n = w * 2**b
    inner = 9 * n * n + n * 4 * n + 2 * (n + n + 4 * n)
    total += num_units * inner + channels * n + (num_units - 1) * 4 * n * n
    total += channels * 4 * n + 2 * 4 * n  # The projection.
    channels = 4 * n
  return total


@pytest.mark.parametrize(
  ('fields', 'side', 'sides', 'total'),
  [
    ({}, 513, (257, 129, 65, 65, 65), 42_623_936),
    (
      {'blocks': (3, 4, 6, 3), 'stem': 'plain'},
      769,
      (385, 193, 97, 97, 97),
      23_508_032,
    ),
  ],
)
def test_parameters_and_shapes_at_the_sizes_of_training(
  fields, side, sides, total
):
  module = DilatedResNet(**fields)
  maps, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )
  deep = module.stem == 'deep'
  names, strides = ('stem', 'x1', 'x2', 'x3', 'x4'), (2, 4, 8, 8, 8)
  sizes = (128 if deep else 64, 256, 512, 1024, 2048)
  assert [(s.name, s.stride, *s.array.shape) for s in maps.stages] == [
    (name, stride, 1, n, n, size)
    for name, stride, n, size in zip(names, strides, sides, sizes, strict=True)
  ]
  assert maps.deepest.name == 'x4'
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == total == _count_by_hand(module.blocks, deep=deep)


def test_fields_that_contradict_each_other_are_refused():
  images = jnp.zeros((1, 64, 64, 3))

  def start(**fields):
    jax.eval_shape(DilatedResNet(**fields).init, jax.random.key(0), images)

  with pytest.raises(ValueError, match=r'=32, but .* \(1, 1\) end at stride 8'):
    start(blocks=(1, 1), output_stride=32)
  with pytest.raises(
    ValueError, match=r'\(2, 2, 4\) has 3 .* block has 2 units'
  ):
    start(blocks=(1, 2), output_stride=8)
  start(blocks=(1, 2), output_stride=8, multi_grid=(1, 1))


@pytest.mark.parametrize('zero_init', [True, False])
def test_first_values(zero_init):
  unit = dilated_resnet.Unit(32, 1, 1, zero_init, jnp.float32)
  start = jax.jit(lambda x: unit.init(jax.random.key(0), x, False)['params'])
  params = start(jnp.zeros((1, 8, 8, 64)))
  expected = 0.0 if zero_init else 1.0
  np.testing.assert_array_equal(params['bn3']['scale'], np.full(128, expected))
  np.testing.assert_array_equal(params['bn_proj']['scale'], np.ones(128))
  # He's: variance 2 over the outputs times the taps.
  for name, fan_out in {'conv1': 32, 'conv2': 32 * 9, 'conv3': 128}.items():
    deviation = np.std(params[name]['kernel'])
    np.testing.assert_allclose(deviation, np.sqrt(2 / fan_out), rtol=0.05)


def test_recomputing_changes_neither_values_nor_gradients():
  state = torch_arithmetic.resnet_state((1,), deep=False)
  found = torch_weights.translate(state)
  variables = {kind: tree['encoder']['block1'] for kind, tree in found.items()}
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)

  def run(remat):
    block = dilated_resnet.Block((2,), 4, 1, True, jnp.float32, remat)

    def loss(params):
      y, updated = block.apply(
        {**variables, 'params': params}, x, True, mutable=['batch_stats']
      )
      return jnp.mean(jnp.square(y)), updated

    function = jax.value_and_grad(loss, has_aux=True)
    traced = jax.jit(function).trace(variables['params'])
    compiled = traced.lower().compile()
    return 'remat' in str(traced.jaxpr), compiled(variables['params'])

  (plain_is, plain), (remat_is, remat) = run(False), run(True)
  assert (plain_is, remat_is) == (False, True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    plain,
    remat,
  )


def test_any_size_fits_it_and_multiples_of_the_stride_a_unet_on_it():
  encoder = DilatedResNet((1, 1), 4, 'plain', 8, (1,))
  assert encoder.multiple == 1
  head = {'logits': segmenter.ConvHead(3)}
  decoder = unet.UNetDecoder((8, 8, 8), num_groups=2)
  found, _ = jax.eval_shape(
    segmenter.Segmenter(encoder, decoder, head).init_with_output,
    jax.random.key(0),
    jnp.zeros((1, 40, 48, 3)),
  )
  assert found['logits'].shape == (1, 40, 48, 3)


def test_the_arithmetic_of_these_tests_is_torchs():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  rng = np.random.default_rng(0)
  for sides in ((12, 13), (14, 11)):
    x = rng.normal(size=(2, 3, *sides))
    weight, bias = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
    pairs = [
      (
        torch_arithmetic.conv(x, weight, bias, stride, dilation),
        functional.conv2d(*tensors, stride, dilation, dilation),
      )
      for stride, dilation in ((1, 1), (2, 1), (1, 4))
    ]
    pairs += [
      (
        torch_arithmetic.max_pool(x, ceil_mode),
        functional.max_pool2d(tensors[0], 3, 2, 1, ceil_mode=ceil_mode),
      )
      for ceil_mode in (False, True)
    ]
    pairs.append(
      (
        torch_arithmetic.resize(x, (25, 17)),
        functional.interpolate(
          tensors[0], (25, 17), mode='bilinear', align_corners=True
        ),
      )
    )
    leaves = ('running_mean', 'running_var', 'weight', 'bias')
    state = {f'bn.{leaf}': rng.uniform(0.5, 1.5, 3) for leaf in leaves}
    for train in (False, True):
      layers = torch_arithmetic.Layers(state, train)
      arguments = [torch.from_numpy(array.copy()) for array in state.values()]
      pairs.append(
        (
          layers.norm(x, 'bn'),
          functional.batch_norm(tensors[0], *arguments, train),
        )
      )
    pairs.append((layers.updated['bn.running_mean'], arguments[0]))
    for found, expected in pairs:
      np.testing.assert_allclose(found, expected.numpy(), atol=1e-10)
