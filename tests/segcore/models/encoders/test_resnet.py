"""The dilated ResNet against torch's arithmetic, with torch's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import heads, network, network_options, segmenter
from segcore.models.decoders import unet
from segcore.models.encoders import resnet
from segcore.weights.layouts import torchvision
from tests.support import recomputation, torch_arithmetic

DilatedResNet = resnet.DilatedResNet

# Strides and dilations of the 3x3 of each unit of blocks 1, 1, 2, 3, written
# out by the rule of the specification; of a basic unit's second 3x3 too.
_PLANS = {
  8: [[(1, 1)], [(2, 1)], [(1, 1), (1, 2)], [(1, 4), (1, 8), (1, 16)]],
  16: [[(1, 1)], [(2, 1)], [(2, 1), (1, 1)], [(1, 1), (1, 2), (1, 2)]],
  32: [[(1, 1)], [(2, 1)], [(2, 1), (1, 1)], [(2, 1), (1, 1), (1, 1)]],
}
_ONE, _DOWN = (1, 1, 1), (2, 1, 1)
_BASIC_PLANS = {
  ('plain', 8): [
    [_ONE],
    [_DOWN],
    [(1, 1, 2), (1, 2, 2)],
    [(1, 2, 4), (1, 4, 4), (1, 4, 4)],
  ],
  ('plain', 32): [[_ONE], [_DOWN], [_DOWN, _ONE], [_DOWN, _ONE, _ONE]],
  ('deep', 32): [[_ONE], [_DOWN], [_DOWN, _ONE], [_DOWN, _ONE, _ONE]],
  ('small', 8): [
    [_ONE],
    [_DOWN],
    [_DOWN, _ONE],
    [(1, 1, 2), (1, 2, 2), (1, 2, 2)],
  ],
  ('small', 16): [[_ONE], [_DOWN], [_DOWN, _ONE], [_DOWN, _ONE, _ONE]],
}


def _branch(x, layers, name, plan):
  """Applies the convolutions of a unit, without the shortcut."""
  if len(plan) == 3:
    stride, first, second = plan
    y = layers.block(
      x, f'{name}.conv1', f'{name}.bn1', stride=stride, dilation=first
    )
    y = layers.conv(y, f'{name}.conv2', dilation=second)
    return layers.norm(y, f'{name}.bn2')
  stride, dilation = plan
  y = layers.block(x, f'{name}.conv1', f'{name}.bn1')
  y = layers.block(
    y, f'{name}.conv2', f'{name}.bn2', stride=stride, dilation=dilation
  )
  return layers.norm(layers.conv(y, f'{name}.conv3'), f'{name}.bn3')


def _reference(images, layers, plan, stem):
  x = (np.float64(images).transpose(0, 3, 1, 2) + 1) * 127.5
  x = x - np.array([123.675, 116.28, 103.53])[:, None, None]
  x = x / np.array([58.395, 57.12, 57.375])[:, None, None]
  if stem == 'deep':
    x = layers.block(x, 'conv1.0', 'conv1.1', stride=2)
    x = layers.block(x, 'conv1.3', 'conv1.4')
    x = layers.block(x, 'conv1.6', 'bn1')
  else:
    x = layers.block(x, 'conv1', 'bn1', stride=2)
  maps = {'stem': x}
  if stem != 'small':
    x = torch_arithmetic.max_pool(x, ceil_mode=stem == 'deep')
  for b, units in enumerate(plan, 1):
    for u, unit in enumerate(units):
      name = f'layer{b}.{u}'
      shortcut = x
      if f'{name}.downsample.0.weight' in layers.state:
        shortcut = layers.conv(x, f'{name}.downsample.0', stride=unit[0])
        shortcut = layers.norm(shortcut, f'{name}.downsample.1')
      x = np.maximum(shortcut + _branch(x, layers, name, unit), 0)
    maps[f'x{b}'] = x
  return maps


@pytest.mark.parametrize(
  ('unit', 'stem', 'output_stride', 'size', 'train'),
  [
    ('bottleneck', 'deep', 8, (65, 49), False),
    ('bottleneck', 'deep', 8, (65, 49), True),
    # Even sides gain a cell in the pool.
    ('bottleneck', 'deep', 8, (64, 54), True),
    ('bottleneck', 'plain', 16, (66, 97), False),
    ('bottleneck', 'plain', 32, (128, 97), True),
    ('bottleneck', 'small', 16, (32, 49), True),
    ('basic', 'plain', 8, (65, 54), False),
    ('basic', 'plain', 8, (65, 54), True),
    ('basic', 'plain', 32, (128, 97), False),
    # Whose first unit has a projection.
    ('basic', 'deep', 32, (96, 97), True),
    ('basic', 'small', 8, (32, 49), True),
    ('basic', 'small', 16, (64, 49), False),
  ],
)
def test_resnet_equals_torchs(unit, stem, output_stride, size, train):
  state = torch_arithmetic.resnet_state(stem=stem, unit=unit)
  module = DilatedResNet((1, 1, 2, 3), 4, stem, output_stride, unit=unit)
  if unit == 'basic':
    plan = _BASIC_PLANS[stem, output_stride]
  else:  # After a small stem blocks stride as they do for twice the stride.
    plan = _PLANS[output_stride * (2 if stem == 'small' else 1)]
  rng = np.random.default_rng(1)
  images = jax.device_put(np.float32(rng.uniform(-1, 1, (2, *size, 3))))

  translated = torchvision.translate_torchvision_weights(state)
  variables = {kind: tree['encoder'] for kind, tree in translated.items()}
  maps, updated = jax.device_get(
    jax.jit(lambda v: module.apply(v, images, train, mutable=['batch_stats']))(
      variables
    )
  )

  layers = torch_arithmetic.Layers(state, train)
  expected = _reference(images, layers, plan, stem)
  assert [x.name for x in maps.maps] == list(expected)
  for x in maps.maps:
    np.testing.assert_allclose(
      np.transpose(x.array, (0, 3, 1, 2)),
      expected[x.name],
      atol=2e-4,
      err_msg=x.name,
    )
  statistics = torchvision.translate_torchvision_weights(
    {**state, **layers.updated}
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    updated['batch_stats'],
    statistics['batch_stats']['encoder'],
  )


def test_frozen_blocks_and_blocks_that_do_not_dilate():
  """Stem and two blocks have running statistics, and no gradient."""
  state = torch_arithmetic.resnet_state((1, 1, 1), stem='plain', unit='basic')
  module = DilatedResNet(
    (1, 1, 1),
    4,
    'plain',
    8,
    unit='basic',
    dilates=False,
    frozen_blocks=2,
  )
  frozen = ('conv_root', 'bn_root', 'block1', 'block2')
  assert module.frozen_parameters == frozen
  translated = torchvision.translate_torchvision_weights(state)
  variables = {kind: tree['encoder'] for kind, tree in translated.items()}
  rng = np.random.default_rng(1)
  images = jax.device_put(np.float32(rng.uniform(-1, 1, (2, 32, 49, 3))))

  def total(params):
    maps, updated = module.apply(
      {**variables, 'params': params},
      images,
      True,
      mutable=['batch_stats'],
    )
    return jnp.sum(jnp.square(maps.deepest.array)), (maps, updated)

  gradient, (maps, updated) = jax.device_get(
    jax.jit(jax.grad(total, has_aux=True))(variables['params'])
  )
  layers = torch_arithmetic.Layers(state, True, ('bn1', 'layer1', 'layer2'))
  plan = [[_ONE], [_DOWN], [_ONE]]
  expected = _reference(images, layers, plan, 'plain')
  for x in maps.maps:
    np.testing.assert_allclose(
      np.transpose(x.array, (0, 3, 1, 2)), expected[x.name], atol=2e-4
    )
  assert all(name.startswith('layer3') for name in layers.updated)
  for name, tree in updated['batch_stats'].items():
    same = jax.tree.map(np.array_equal, tree, variables['batch_stats'][name])
    assert {*jax.tree.leaves(same)} == {name in frozen}, name
  for name, tree in gradient.items():
    zero = [not x.any() for x in jax.tree.leaves(tree)]
    assert {*zero} == {name in frozen}, name


def _count_by_hand(blocks, stem, unit='bottleneck', width=64):
  """Counts kernels without biases, and a scale and an offset a channel."""
  w = width
  total, channels = {
    'deep': (27 * w + 9 * w * w + 18 * w * w + 2 * (4 * w), 2 * w),
    'plain': (147 * w + 2 * w, w),
    'small': (27 * w + 2 * w, w),
  }[stem]
  for b, num_units in enumerate(blocks):
    n = w * 2**b
    size = n if unit == 'basic' else 4 * n
    for u in range(num_units):
      if unit == 'basic':
        total += 9 * channels * n + 9 * n * n + 2 * (n + n)
      else:
        total += channels * n + 9 * n * n + n * size + 2 * (n + n + size)
      if u == 0 and (b > 0 or channels != size):
        total += channels * size + 2 * size  # The projection.
      channels = size
  return total


_BASIC = {
  'blocks': (2, 2, 2, 2),
  'unit': 'basic',
  'zero_init': False,
}
_TORCHVISION = {'stem': 'plain', 'output_stride': 32, 'zero_init': False}


@pytest.mark.parametrize(
  ('fields', 'side', 'strides', 'sides', 'total'),
  [
    ({}, 513, (2, 4, 8, 8, 8), (257, 129, 65, 65, 65), 42_623_936),
    (
      {'blocks': (3, 4, 6, 3), 'stem': 'plain'},
      769,
      (2, 4, 8, 8, 8),
      (385, 193, 97, 97, 97),
      23_508_032,
    ),
    # ResNet-50 and ResNet-18 as torchvision has them.
    (
      {**_TORCHVISION, 'blocks': (3, 4, 6, 3)},
      224,
      (2, 4, 8, 16, 32),
      (112, 56, 28, 14, 7),
      23_508_032,
    ),
    (
      {**_TORCHVISION, **_BASIC},
      224,
      (2, 4, 8, 16, 32),
      (112, 56, 28, 14, 7),
      11_176_512,
    ),
    (
      {**_TORCHVISION, **_BASIC},
      96,
      (2, 4, 8, 16, 32),
      (48, 24, 12, 6, 3),
      11_176_512,
    ),
    # The 7x7 has 120 values a channel more than the 3x3.
    (
      {**_BASIC, 'stem': 'small', 'output_stride': 16},
      64,
      (2, 2, 4, 8, 16),
      (32, 32, 16, 8, 4),
      11_176_512 - 120 * 64,
    ),
    (
      {**_BASIC, 'stem': 'small', 'output_stride': 8},
      64,
      (2, 2, 4, 8, 8),
      (32, 32, 16, 8, 8),
      11_176_512 - 120 * 64,
    ),
  ],
)
def test_parameters_and_shapes_for_training_sizes(
  fields, side, strides, sides, total
):
  module = DilatedResNet(**fields)
  maps, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )
  names = ('stem', 'x1', 'x2', 'x3', 'x4')
  sizes = [64 * 2**b * (1 if module.unit == 'basic' else 4) for b in range(4)]
  sizes = (128 if module.stem == 'deep' else 64, *sizes)
  assert [(x.name, x.stride, *x.array.shape) for x in maps.maps] == [
    (name, stride, 1, n, n, size)
    for name, stride, n, size in zip(names, strides, sides, sizes, strict=True)
  ]
  assert maps.deepest.name == 'x4'
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == total
  assert count == _count_by_hand(module.blocks, module.stem, module.unit)


@pytest.mark.parametrize('unit', ['bottleneck', 'basic'])
@pytest.mark.parametrize(('stem', 'coarse'), [('plain', 32), ('small', 16)])
def test_dilated_blocks_equal_striding_ones_at_their_cells(stem, coarse, unit):
  # Each cell of the strided map has its value in the dilated one.
  state = torch_arithmetic.resnet_state((1, 2, 2, 2), stem=stem, unit=unit)
  translated = torchvision.translate_torchvision_weights(state)
  variables = {kind: tree['encoder'] for kind, tree in translated.items()}
  rng = np.random.default_rng(1)
  images = jax.device_put(np.float32(rng.uniform(-1, 1, (1, 64, 128, 3))))

  def deepest(stride):
    module = DilatedResNet(
      (1, 2, 2, 2), 4, stem, stride, multi_grid=(1, 1), unit=unit
    )
    return jax.jit(module.apply)(variables, images).deepest.array

  step = coarse // 8
  np.testing.assert_allclose(
    deepest(8)[:, ::step, ::step], deepest(coarse), atol=1e-4
  )


def test_contradicting_fields_are_refused():
  images = jnp.zeros((1, 64, 64, 3))

  def start(**fields):
    jax.eval_shape(DilatedResNet(**fields).init, jax.random.key(0), images)

  with pytest.raises(
    ValueError, match=r'expected the stride 8, at which .* \(1, 1\) end, got 32'
  ):
    start(blocks=(1, 1), output_stride=32)
  with pytest.raises(
    ValueError, match=r'for each of the 2 units .* got \(2, 2, 4\)'
  ):
    start(blocks=(1, 2), output_stride=8)
  start(blocks=(1, 2), output_stride=8, multi_grid=(1, 1))
  # The default grid is that of bottlenecks.
  start(blocks=(1, 2), output_stride=8, unit='basic')
  with pytest.raises(
    ValueError, match='frozen_blocks: expected None or 0 to 2'
  ):
    start(blocks=(1, 1), frozen_blocks=3)
  with pytest.raises(ValueError, match=r'expected the stride 16, .* got 32'):
    start(blocks=(1, 1, 1, 1), output_stride=32, stem='small')


@pytest.mark.parametrize('zero_init', [True, False])
@pytest.mark.parametrize(
  ('kind', 'fans_out'),
  [
    ('bottleneck', {'conv1': 32, 'conv2': 32 * 9, 'conv3': 128}),
    ('basic', {'conv1': 32 * 9, 'conv2': 32 * 9}),
  ],
)
def test_initialization(kind, fans_out, zero_init):
  unit = resnet.ResNetUnit(kind, 32, 1, (1, 1), zero_init, jnp.float32)
  start = jax.jit(lambda x: unit.init(jax.random.key(0), x, False)['params'])
  params = start(jnp.zeros((1, 8, 8, 64)))
  scales = {name: params[name]['scale'] for name in params if name[0] == 'b'}
  last = f'bn{len(fans_out)}'
  expected = 0.0 if zero_init else 1.0
  assert set(scales) == {f'bn{i + 1}' for i in range(len(fans_out))} | {
    'bn_proj'
  }
  for name, scale in scales.items():
    np.testing.assert_array_equal(scale, expected if name == last else 1.0)
    np.testing.assert_array_equal(params[name]['bias'], 0.0)
  # He's initialization by fan-out: the outputs times the taps.
  for name, fan_out in fans_out.items():
    deviation = np.std(params[name]['kernel'])
    np.testing.assert_allclose(deviation, np.sqrt(2 / fan_out), rtol=0.05)


@pytest.mark.parametrize('unit', ['bottleneck', 'basic'])
def test_remat_changes_neither_values_nor_gradients(unit):
  state = torch_arithmetic.resnet_state((1,), stem='plain', unit=unit)
  translated = torchvision.translate_torchvision_weights(state)
  variables = {
    kind: tree['encoder']['block1'] for kind, tree in translated.items()
  }
  rng = np.random.default_rng(0)
  x = jax.device_put(np.float32(rng.normal(size=(2, 8, 8, 4))))

  def build_loss(remat):
    block = resnet.ResNetBlock(unit, ((2, 2),), 4, 1, True, jnp.float32, remat)

    def loss(params):
      y, updated = block.apply(
        {**variables, 'params': params}, x, True, mutable=['batch_stats']
      )
      return jnp.mean(jnp.square(y)), updated

    return loss

  recomputation.assert_remat_keeps_results(build_loss, variables['params'])


def test_unet_fits_images_of_multiples_of_the_stride():
  encoder = DilatedResNet((1, 1), 4, 'plain', 8, (1,))
  assert encoder.size_multiple == 1
  head = {'logits': heads.ConvHead(3)}
  decoder = unet.UNetDecoder((8, 8, 8), num_groups=2)
  outputs, _ = jax.eval_shape(
    segmenter.Segmenter(encoder, decoder, head).init_with_output,
    jax.random.key(0),
    jnp.zeros((1, 40, 48, 3)),
  )
  assert outputs['logits'].shape == (1, 40, 48, 3)


_SMALL = {
  'name': 'dilated_resnet',
  'blocks': (1, 1, 1, 1),
  'width': 4,
  'stem': 'small',
  'unit': 'basic',
}
_UNET = {'name': 'unet', 'num_groups': 2}
_LOGITS = heads.ConvHead(3)


def _logits_shape(encoder, decoder, head=_LOGITS, side=64):
  """Checks a network as a run does, and returns the shape of its logits."""
  options = network_options.NetworkOptions(encoder, decoder)
  module = network.build_network(options, {'logits': head}, 'network')
  network.check_network_image_size(module, (side, side), 'size')
  outputs, _ = jax.eval_shape(
    module.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )
  return outputs['logits'].shape


def test_decoders_fit_small_stems():
  small = {**_SMALL, 'output_stride': 16}
  fine = {**_SMALL, 'output_stride': 8}
  four = {**_UNET, 'widths': (8, 8, 8, 4)}
  three = {**_UNET, 'widths': (8, 8, 4)}
  deeplab = {'name': 'deeplabv3plus', 'width': 4}
  quarter = heads.ConvBlocksHead(3, width=4)
  assert _logits_shape(small, four) == (1, 64, 64, 3)
  assert _logits_shape(fine, three) == (1, 64, 64, 3)
  assert _logits_shape(small, deeplab, quarter) == (1, 16, 16, 3)
  assert _logits_shape(fine, deeplab, quarter) == (1, 16, 16, 3)
  # The message names a map that is missing, or of another size.
  for decoder, side, message in (
    (
      {**four, 'skips': (1,)},
      64,
      'decoder unet: expected maps at strides 1, 16, got strides 2, 4, 8, 16 '
      '(encoder dilated_resnet)',
    ),
    (
      three,
      64,
      'widths: expected 4 or 5 from stride 16 to 1, got 3',
    ),
    (four, 72, 'sides of the images must be multiples of 16'),
  ):
    with pytest.raises(errors.UserError, match=re.escape(message)):
      _logits_shape(small, decoder, side=side)


def test_reference_code_equals_torch():
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
    for actual, expected in pairs:
      np.testing.assert_allclose(actual, expected.numpy(), atol=1e-10)
