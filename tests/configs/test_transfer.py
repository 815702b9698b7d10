"""The transfer of pretrained encoders to VOC: recipe, network and weights."""

import collections
import re
import shlex

import jax
import numpy as np
import pytest

from segcore.experiment import command
from segcore.train import optimizers
from tests.configs import loading
from tests.support import tables
from u2pl import main as u2pl_main


def stage_of(argument=''):
  config = loading.load('transfer_voc', argument)
  return u2pl_main.PROGRAM.build(config)['train']


def test_data_and_evaluation_of_the_paper():
  config = loading.load('transfer_voc')
  block = config.train
  assert (block.data.name, block.split) == ('voc2012', 'train_aug')
  assert (block.subset.labels, block.subset.fraction) == (0, 1.0)
  crop = dict(block.crop)
  assert crop == {
    'name': 'random',
    'size': (512, 512),
    'fit_sides': (2048, 512),
    'scales': (0.5, 2.0),
    'max_class_share': 0.75,
    'fill': 'mean',
  }
  assert block.flips == ('horizontal',)
  learn = block.learn
  assert (learn.consistency, learn.contrast) == (None, None)
  assert (learn.supervised.kind, learn.supervised.auxiliary) == ('ce', 0.4)
  assert learn.distortion.probability == 0.5
  protocol = config.evaluate.protocol
  assert (protocol.fit_sides, protocol.tiling) == ((2048, 512), 'whole')
  assert (protocol.scales, protocol.flip) == ((1.0,), False)


def test_optimizer_of_the_paper():
  recipe = stage_of().options.recipe
  assert (recipe.batch_size, recipe.num_steps) == (16, 20_000)
  optimizer = recipe.optimizer
  assert (optimizer.name, optimizer.momentum) == ('sgd', 0.9)
  assert (optimizer.weight_decay, optimizer.weight_decay_mode) == (5e-4, 'l2')
  assert (optimizer.groups, optimizer.clip_norm) == ((), 0.0)
  rate = optimizers.learning_rate_schedule(optimizer, recipe.num_steps)
  np.testing.assert_allclose(
    [float(rate(step)) for step in (0, 10_000, 20_000)],
    [0.01, (0.01 - 1e-4) * 0.5**0.9 + 1e-4, 1e-4],
    rtol=1e-5,
  )


def test_the_network_is_that_of_mmsegmentation():
  stage = stage_of()
  net = stage.build_network(stage.context, 21)
  assert (net.encoder.stem, net.encoder.output_stride) == ('plain', 8)
  # Dilations 1, 1, 2, 4; the first 3x3 of a block has that of the one before.
  # A bottleneck has only the first of each pair.
  assert [
    [first for first, _ in units] for _, units in net.encoder._plan()
  ] == [
    [1] * 3,
    [1] * 4,
    [1, *[2] * 5],
    [2, *[4] * 2],
  ]
  outputs, variables = jax.eval_shape(
    net.init_with_output,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32),
  )
  assert {name: x.shape for name, x in outputs.items()} == {
    'logits': (1, 16, 24, 21),
    'aux': (1, 8, 12, 21),
  }
  counts = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params']):
    part, name, *_ = (each.key for each in path)
    counts[f'heads/{name}' if part == 'heads' else part] += leaf.size

  def conv(inputs, outputs, kernel=1):
    return kernel**2 * inputs * outputs + 2 * outputs

  def separable(inputs, outputs=512):
    return 9 * inputs + 2 * inputs + conv(inputs, outputs)

  low = conv(256, 48) + 48  # With a bias.
  branches = 2 * conv(2048, 512) + 3 * separable(2048)
  assert counts == {
    'encoder': 23_508_032,
    'decoder': branches
    + separable(5 * 512)
    + low
    + separable(512 + 48)
    + separable(512),
    'heads/logits': 513 * 21,
    'heads/aux': conv(1024, 256, 3) + 256 + 257 * 21,
  }


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet101'])
def test_other_resnets_have_their_own_units(name):
  encoder = loading.load('transfer_voc', f'network={name}').network.encoder
  assert encoder.multi_grid == (1,) * encoder.blocks[-1]
  assert (encoder.stem, encoder.output_stride) == ('plain', 8)


def test_an_encoder_starts_the_network():
  start = loading.load('transfer_voc', 'encoder=moco.safetensors').train.start
  assert (start.path, start.take) == ('moco.safetensors', ('encoder',))
  assert loading.load('transfer_voc').train.start.path == ''


def test_tiny_has_the_encoder_of_pass_shapes():
  tiny = loading.load('transfer_voc', 'tiny,encoder=runs/pass/represent')
  assert tiny.network.encoder == loading.load('pass_shapes').network.encoder
  assert tiny.train.start.path == 'runs/pass/represent'
  assert tiny.train.recipe.num_steps == 60
  u2pl_main.PROGRAM.build(tiny)['train'].check()


def test_every_row_of_the_paper_pretrains_and_transfers_an_encoder():
  rows = [
    re.findall('`(python [^`]*)`', line)
    for line in tables.path_of('pass_tables.md').read_text().splitlines()
    if 'transfer_voc.py' in line
  ]
  assert len(rows) == 17 + 5
  for pretraining, transfer in rows:
    first, second = (
      command.parse_command(['main', *shlex.split(text)[3:]])
      for text in (pretraining, transfer)
    )
    assert first.config.network.encoder.stem == 'plain'
    assert first.config.stages[0] == 'represent'
    start = second.config.train.start
    assert str(first.workdir / 'represent').endswith(f'/{start.path}')
    assert start.take == ('encoder',)
