"""Which inputs of a decoder matter: laws of hand-made decoders."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from ddep import ablation, decoder_report
from ddep import main as ddep_main
from ddep import noise as noise_lib
from ddep.stages import denoise
from segcore.distributed import sharding
from segcore.models import features, heads, segmenter
from segcore.models.layers import resize
from segcore.train import method, train_state, update, workspace
from segcore.weights import load
from tests.configs import loading
from tests.support import tiny_networks


class Pixels(nn.Module):
  """An encoder whose maps have all pixels of each cell as channels."""

  def __call__(self, images, train):
    maps, x = [], images
    for stride in (2, 4, 8):
      x = resize.space_to_depth(x, 2)
      maps.append(features.FeatureMap(f'map{stride}', stride, x))
    return features.Features(tuple(maps))


class Sum(nn.Module):
  """A block: the deeper map times a weight, plus the skip times another."""

  deep: float
  skip: float

  @nn.compact
  def __call__(self, x, skip):
    bias = self.param('bias', nn.initializers.zeros, ())
    return self.deep * resize.depth_to_space(x, 2) + self.skip * skip + bias


class OneBlock(nn.Module):
  """Decodes the map of stride 4; reads that of stride 2, but not of 8."""

  deep: float
  skip: float

  @nn.compact
  def __call__(self, maps, condition=None, train=False):
    x = maps.at_stride(4).array
    x = Sum(self.deep, self.skip, name='block0')(x, maps.at_stride(2).array)
    return features.Features((features.FeatureMap('up0', 2, x),))


def measure(deep, skip):
  net = segmenter.Segmenter(
    Pixels(), OneBlock(deep, skip), {'noise': heads.SubpixelHead(3, kernel=1)}
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  kernel = np.float32(rng.normal(size=(1, 1, 12, 12)))
  conv = {'kernel': kernel, 'bias': np.ones(12, np.float32)}
  params = {
    'decoder': {'block0': {'bias': np.float32(3)}},
    'heads': {'noise': {'conv': conv}},
  }
  state = train_state.inference_train_state({'params': params}, mesh)
  # Almost without noise the image is what is seen.
  options = noise_lib.NoiseOptions(gamma=0.9999, target='x')
  before = {'block0': {'bias': np.float32(2)}}
  return decoder_report.measure_decoder(
    net, options, state, before, images, mesh
  )


@pytest.mark.parametrize(
  ('deep', 'skip', 'expected'),
  [
    # Zeroed or alone: the map of stride 4, that of stride 2; then the block's
    # input zeroed, and averaged.
    (0.0, 1.0, (0, 1, 1, 0, 0, 0)),
    (0.5, 0.0, (1, 0, 0, 1, 1, 1)),
    # Both have all of the image.
    (1.0, 2.0, (0, 0, 0, 0, 0, 0)),
  ],
)
def test_what_a_decoder_ignores_has_no_effect_and_what_it_needs_has_all(
  deep, skip, expected
):
  report = measure(deep, skip)
  names = ('stride_4_zeroed', 'stride_4_alone', 'stride_2_zeroed')
  names += ('stride_2_alone', 'block0_zeroed', 'block0_averaged')
  # The map of stride 8, which is not read, is not among them.
  assert {*report.lost} == {*names}
  actual = [report.lost[name] for name in names]
  np.testing.assert_allclose(actual, expected, atol=5e-3)
  # The head is random: only refitted it shows the image.
  assert report.losses['intact'] < 0.01 * report.constant < report.loss
  # Uniform in [-1, 1].
  assert report.constant == pytest.approx(1 / 3, rel=0.05)
  assert report.changes == {'block0': 0.5}


def unet_maps(net, batch):
  images = jnp.zeros((batch, 32, 32, 3))
  return jax.eval_shape(
    lambda: net.init_with_output(
      jax.random.key(0), images, method='features', decode=False
    )
  )[0]['encoder']


def test_inputs_of_a_unet_are_the_maps_it_joins_and_its_blocks():
  net = tiny_networks.small_unet({'noise': heads.SubpixelHead(3)})
  maps = unet_maps(net, 1)
  blocks = {'block0': 64, 'block1': 16, 'block2': 8}
  for skips, strides in ((True, (8, 4, 2)), ((4,), (8, 4)), (False, (8,))):
    chosen = net.clone(decoder=net.decoder.clone(skips=skips))
    variables = jax.eval_shape(
      chosen.init, jax.random.key(0), np.zeros((1, 32, 32, 3))
    )
    assert ablation.find_decoder_inputs(
      chosen, variables, maps, None, (32, 32)
    ) == (tuple(f'stride_{n}' for n in strides), blocks)


def test_zeroing_the_input_of_the_first_block_is_zeroing_the_deepest_map():
  net = tiny_networks.small_unet({'noise': heads.SubpixelHead(3)})
  rng = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(rng.normal(size=x.shape), jnp.float32)

  images = draw(np.zeros((2, 32, 32, 3)))
  variables = jax.tree.map(
    draw, jax.eval_shape(net.init, jax.random.key(0), images)
  )
  maps = jax.tree.map(draw, unet_maps(net, 2))
  labels = ablation.encoder_map_labels(maps)
  channels = {'block0': 64, 'block1': 16, 'block2': 8}
  fills = {name: np.float32(rng.normal(size=n)) for name, n in channels.items()}
  plan = ablation.plan_ablations(labels, fills)

  @jax.jit
  def decode(factors):
    return ablation.decode_ablated(
      net, variables, maps, None, (32, 32), factors
    )

  intact, zeroed, of_map, filled = (
    jax.device_get(decode(plan[name]))
    for name in (
      *('intact', 'block0_zeroed', 'stride_8_zeroed'),
      'block0_averaged',
    )
  )
  jax.tree.map(np.testing.assert_array_equal, zeroed[:2], of_map[:2])
  assert not np.allclose(filled[1], zeroed[1])
  mean = np.mean(maps.deepest.array, axis=(0, 1, 2))
  np.testing.assert_allclose(intact[2]['block0'], mean, atol=1e-5)
  assert not np.allclose(zeroed[1], intact[1])
  # The map that the head reads is the one that its output follows from.
  head = {'params': variables['params']['heads']['noise']}
  np.testing.assert_allclose(
    intact[1],
    heads.ConvHead(3).apply(head, jnp.asarray(intact[0])),
    rtol=1e-5,
    atol=1e-5,
  )


def test_the_refitted_layer_is_that_of_least_squares_of_the_other_half():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 3)) + 5
  errors = x @ rng.normal(size=(3, 2)) + rng.normal(size=(40, 2))
  squares = []
  for fitted, other in ((0, 1), (1, 0)):
    ones = np.ones((20, 1))
    weights = np.linalg.lstsq(
      np.hstack([x[fitted::2], ones]), errors[fitted::2], rcond=None
    )[0]
    predicted = np.hstack([x[other::2], ones]) @ weights
    squares.append((errors[other::2] - predicted) ** 2)
  targets = errors + x @ np.ones((3, 2))
  assert ablation.refitted_loss(x, errors, targets, (0.0,)) == pytest.approx(
    np.mean(squares)
  )
  # A layer that is right already stays, though its refit would fit noise.
  right = 0.1 * errors
  assert ablation.refitted_loss(
    rng.normal(size=(40, 19)), right, targets
  ) <= np.mean(right**2)


def test_inputs_without_information_leave_the_loss_of_a_constant():
  rng = np.random.default_rng(0)
  targets = rng.normal(size=(2000, 2)) + 3
  expected = ablation.constant_loss(targets)
  for x in (np.ones((2000, 30)), rng.normal(size=(2000, 30))):
    errors = targets - x @ rng.normal(size=(30, 2))
    loss = ablation.refitted_loss(x, errors, targets)
    assert loss == pytest.approx(expected, rel=5e-3)


def test_a_scale_of_the_map_is_no_loss():
  rng = np.random.default_rng(0)
  x, weights = rng.normal(size=(4000, 5)), rng.normal(size=(5, 2))
  targets = x @ weights
  # What the layer reads is half as large, and shifted.
  errors = targets - (0.5 * x + 1) @ weights
  assert ablation.refitted_loss(0.5 * x + 1, errors, targets) < 1e-5
  assert np.mean(errors**2) > 0.5


def test_shares_and_changes():
  assert ablation.lost_share(0.3, 0.3, 1.0) == 0
  assert ablation.lost_share(1.0, 0.3, 1.0) == 1
  assert np.isnan(ablation.lost_share(1.0, 0.995, 1.0))
  before = {'kernel': np.array([3.0, 0.0]), 'bias': np.array([4.0])}
  after = {'kernel': np.array([3.0, 3.0]), 'bias': np.array([8.0])}
  assert ablation.relative_change(before, after) == 1


def test_inputs_of_a_cell_are_those_of_the_convolution():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(3, 3, 3, 2))
  x = jnp.asarray(x, jnp.float32)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  cells = ablation.sample_cells(5, 4, 12)
  assert len({tuple(cell) for cell in cells}) == 12
  inputs = ablation.gather_head_inputs(x, cells, 3)
  np.testing.assert_allclose(
    np.asarray(inputs) @ kernel.reshape(27, 2),
    expected[:, cells[:, 0], cells[:, 1]],
    atol=1e-4,
  )


REPORT = decoder_report.DecoderReport(
  loss=0.41,
  constant=1.0,
  losses={
    'intact': 0.4,
    **{'stride_8_zeroed': 0.4, 'stride_8_alone': 1.0},
    **{'stride_4_zeroed': 1.0, 'stride_4_alone': 0.4},
    **{'block0_zeroed': 0.4, 'block0_averaged': 0.4},
    **{'block1_zeroed': 0.7, 'block1_averaged': 0.403},
    **{'block2_zeroed': 0.7, 'block2_averaged': 0.7},
  },
  changes={'block0': 0.0, 'block1': 0.1, 'block2': 2.0},
)


def test_a_report_names_the_blocks_that_learn_nothing():
  lines = REPORT.describe()
  assert [line.split() for line in lines[2:8]] == [
    ['zeroed', 'averaged', 'alone', 'changed'],
    ['stride', '8', '0.0', '100.0'],
    ['stride', '4', '100.0', '0.0'],
    ['block0', '0.0', '0.0', '0.0'],
    ['block1', '50.0', '0.5', '10.0'],
    ['block2', '50.0', '50.0', '200.0'],
  ]
  # Block 1 makes no use of what block 0 computes; block 2 does of block 1.
  assert lines[8].startswith('  denoising does not train block0: less than 1%')
  losses = {**REPORT.losses, 'block1_averaged': 0.7}
  assert len(dataclasses.replace(REPORT, losses=losses).describe()) == 8
  untrained = dataclasses.replace(REPORT, losses=dict.fromkeys(losses, 1.0))
  assert len(untrained.describe()) == 8
  assert np.isnan(untrained.metrics['block0_zeroed'])


def test_the_stage_measures_its_network_on_its_images(tmp_path, monkeypatch):
  config = loading.load('ddep_shapes', 'gamma=0.5')
  with config.unlocked():
    config.network.remat = True
  stage = ddep_main.PROGRAM.build(config)['denoise']
  images = np.zeros((3, 64, 64, 3), np.uint8)
  monkeypatch.setattr(stage, '_evaluated_images', lambda: images)
  monkeypatch.setattr(
    load, 'read_weight_variables', lambda path: {'params': {'a': np.ones(1)}}
  )
  monkeypatch.setattr(method, 'initial_parameters', lambda *args: args)
  calls = []
  monkeypatch.setattr(
    decoder_report,
    'measure_decoder',
    lambda *args: calls.append(args) or REPORT,
  )
  place = workspace.Workspace(tmp_path, {}, 'digest')
  assert stage.write_outputs(place, {})[0].exists()
  [(net, noise, state, before, given, _)] = calls
  assert noise.gamma == 0.5
  np.testing.assert_array_equal(state.params['a'], 1)
  # Only the decoder is trained, and it starts from random values.
  assert before[1:] == (0, stage.batch_spec(0), None, 'decoder')
  assert given is images
  # There is no backward pass that memory had to be saved for.
  assert not net.decoder.remat


def test_initial_parameters_are_those_of_step_0():
  net = tiny_networks.small_unet({'noise': heads.SubpixelHead(3)})
  trained = denoise.Denoise(
    net,
    update.Update(('decoder',), tiny_networks.adam(), 10),
    noise_lib.NoiseOptions(gamma=0.95),
  )
  spec = tiny_networks.spec(tiny_networks.images(2, 32))
  expected = jax.jit(lambda key: trained.init(key, spec, None))(
    jax.random.PRNGKey(3)
  ).params['heads']
  actual = method.initial_parameters(trained, 3, spec, None, 'heads')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected
  )


def test_a_report_is_written(tmp_path):
  stage = workspace.Workspace(tmp_path, {}, 'digest')
  paths = REPORT.write(stage, 'val', num_images=5, step=7)
  assert paths == [tmp_path / 'results.json', tmp_path / 'pictures']
  content = json.loads(paths[0].read_text())
  assert (content['step'], content['digest']) == (7, 'digest')
  entry = content['splits']['val']
  assert entry['num_images'] == 5
  assert entry['metrics']['block2_zeroed'] == pytest.approx(0.5)
  assert entry['metrics']['block2_changed'] == 2
  with PIL.Image.open(tmp_path / 'pictures' / 'decoder.png') as image:
    bars = np.all(np.asarray(image) == (31, 119, 180), axis=-1).sum(axis=1)
  # Whole widths: stride 8 alone, stride 4 zeroed, and the change of block 2.
  # Half widths: block 1 zeroed, block 2 zeroed and averaged.
  assert np.sum(bars == 240) == np.sum(bars == 120) > 30
  assert {*bars} == {0, 1, 24, 120, 240}
  assert list((tmp_path / 'tensorboard').iterdir())
