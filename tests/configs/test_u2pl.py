"""U2PL's experiments: epochs, learning rates, options and refusals."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from runtime import errors
from segcore.experiment import cli, evaluation, hosts
from tests.configs import loading
from tests.configs.u2pl_settings import facts, rates
from u2pl import main as u2pl_main

pytestmark = pytest.mark.usefixtures('networks_checked_once')

ROOT = pathlib.Path(__file__).parents[2]
HERE = ['u2pl_camvid', 'u2pl_shapes']
PAPER = ['u2pl_cityscapes', 'u2pl_voc']


# Unlabeled images of each partition: the lines of the authors' lists.
UNLABELED = [
  ('u2pl_voc', 'partition=classic,labels=92', 10490, 655),
  ('u2pl_voc', 'partition=classic,labels=183', 10399, 649),
  ('u2pl_voc', 'partition=classic,labels=366', 10216, 638),
  ('u2pl_voc', 'partition=classic,labels=732', 9850, 615),
  ('u2pl_voc', 'partition=classic,labels=1464', 9118, 569),
  ('u2pl_voc', 'partition=blender,labels=662', 9920, 620),
  ('u2pl_voc', 'partition=blender,labels=1323', 9259, 578),
  ('u2pl_voc', 'partition=blender,labels=2646', 7936, 496),
  ('u2pl_voc', 'partition=blender,labels=5291', 5291, 330),
  ('u2pl_cityscapes', 'labels=186', 2789, 174),
  ('u2pl_cityscapes', 'labels=372', 2603, 162),
  ('u2pl_cityscapes', 'labels=744', 2231, 139),
  ('u2pl_cityscapes', 'labels=1488', 1487, 92),
]


@pytest.mark.parametrize(('name', 'argument', 'images', 'steps'), UNLABELED)
def test_an_epoch_is_the_whole_batches_of_unlabeled_images(
  name, argument, images, steps
):
  # The last batch, if it is not whole, is dropped.
  assert len(range(16, images + 1, 16)) == steps
  epochs = {'u2pl_voc': 80, 'u2pl_cityscapes': 200}[name]
  for system in ('u2pl_plus', 'mt', 'sup_only,equal_steps'):
    train = loading.load(name, f'{argument},system={system}').train
    assert train.recipe.batch_size == 16
    assert train.steps_per_epoch == steps
    assert train.recipe.num_steps == steps * epochs
    assert train.unlabeled == ('train_aug' if name == 'u2pl_voc' else '')


@pytest.mark.parametrize(
  ('name', 'labels', 'steps'),
  [
    ('u2pl_voc', 92, 480),  # 6 batches, the last one not whole
    ('u2pl_voc', 1464, 7360),  # 92
    ('u2pl_voc,blender', 2646, 13_280),  # 166
    ('u2pl_cityscapes', 186, 2400),  # 12
    ('u2pl_cityscapes', 1488, 18_600),  # 93
  ],
)
def test_labels_alone_have_epochs_of_their_own(name, labels, steps):
  name, _, partition = name.partition(',')
  argument = f'system=sup_only,labels={labels}'
  if partition:
    argument += f',partition={partition}'
  assert loading.load(name, argument).train.recipe.num_steps == steps


@pytest.mark.parametrize(
  ('name', 'encoder', 'others', 'decay'),
  [('u2pl_voc', 1e-3, 1e-2, 1e-4), ('u2pl_cityscapes', 1e-2, 1e-2, 5e-4)],
)
def test_learning_rates_and_decays(name, encoder, others, decay):
  config = loading.load(name)
  assert rates(config) == {
    'encoder': encoder,
    'decoder': others,
    'heads': others,
  }
  sgd = config.train.recipe.optimizer
  assert (sgd.name, sgd.momentum, sgd.weight_decay_mode) == ('sgd', 0.9, 'l2')
  assert (sgd.schedule, sgd.poly_power, sgd.warmup_steps) == ('poly', 0.9, 0)
  assert sgd.weight_decay == decay
  # Of every parameter.
  assert all(group[2] == 1 for group in sgd.groups)


def test_warm_up_and_loss_of_the_papers():
  voc, cityscapes = (loading.load(name).train for name in PAPER[::-1])
  assert (voc.learn.warmup_epochs, cityscapes.learn.warmup_epochs) == (1, 0)
  plain = voc.learn.supervised
  assert (plain.kind, plain.auxiliary) == ('ce', 0.0)
  hard = cityscapes.learn.supervised
  assert (hard.kind, hard.threshold, hard.auxiliary) == ('ohem', 0.7, 0.4)
  assert 2 * hard.kept_per_image == 100_000
  groups = [x.learn.consistency.mixing.group for x in (voc, cityscapes)]
  assert groups == [4, 2]
  assert (voc.crop.size, cityscapes.crop.size) == ((513, 513), (769, 769))


@pytest.mark.parametrize('name', HERE)
@pytest.mark.parametrize('argument', ['', 'system=u2pl', 'system=sup_only'])
def test_configs_build(name, argument):
  stages = u2pl_main.PROGRAM.build_stages(loading.load(name, argument))
  assert [s.name for s in stages] == ['train', 'evaluate']


def test_settings_of_a_folder():
  config = loading.load(
    'u2pl_folder', 'source=/x,labels=20,low_rank=2,system=u2pl_plus'
  )
  assert u2pl_main.PROGRAM.build_stages(config)[-1].name == 'evaluate'
  assert config.train.data.source == '/x'
  assert config.train.learn.contrast.low_rank == 2


@pytest.mark.parametrize('name', [*HERE, *PAPER, 'u2pl_folder'])
@pytest.mark.parametrize('system', ['u2pl_plus', 'classmix', 'sup_only'])
def test_tiny(name, system):
  """On images that are drawn; those of CamVid and of a folder stay."""
  config = loading.load(name, f'system={system},seed=3,tiny')
  stages = u2pl_main.PROGRAM.build_stages(config)
  assert [s.name for s in stages] == ['train', 'evaluate']
  train = config.train
  assert (train.recipe.num_steps, train.steps_per_epoch) == (60, 10)
  assert train.start.path == train.subset.list == ''
  assert train.recipe.seed == 3
  kept = {'u2pl_camvid': 'camvid', 'u2pl_folder': 'image_mask_folder'}
  assert train.data.name == kept.get(name, 'shapes/scenes')
  # What the options chose is kept.
  whole = facts(loading.load(name, f'system={system}'))
  assert {**facts(config), 'steps': whole['steps']} == whole


@pytest.mark.parametrize('name', PAPER)
def test_a_list_of_each_number_of_labels(name):
  subset = loading.load(
    name, 'labels=372,list=splits/{labels}/labeled.txt'
  ).train.subset
  assert (subset.list, subset.labels) == ('splits/372/labeled.txt', 372)


@pytest.mark.parametrize('name', PAPER)
def test_a_start_takes_the_place_of_the_weights(name):
  assert loading.load(name).train.start.to_dict() == {
    'path': 'weights/resnet101_deep.safetensors',
    'take': ('encoder',),
  }
  assert loading.load(name, 'start=runs/x').train.start.to_dict() == {
    'path': 'runs/x',
    'take': ('encoder', 'decoder'),
  }
  assert loading.load(name, 'encoder=').train.start.path == ''


@pytest.mark.parametrize(
  ('config', 'flags', 'message'),
  [
    *(
      (
        f'{name}.py:start=runs/x,encoder=w.npz',
        (),
        'config options encoder=w.npz and start=runs/x contradict each other',
      )
      for name in (*HERE, *PAPER)
    ),
    (
      'u2pl_voc.py:system=u3pl',
      (),
      'config option system=u3pl: expected one of u2pl_plus, u2pl, cutmix, '
      'classmix, mt, sup_only',
    ),
    (
      'u2pl_voc.py:batch=6',
      (),
      'config.train: learn.consistency.mixing.group: expected a divisor of '
      'the batch of 6, got 4',
    ),
    (
      'u2pl_voc.py:epochs=1',
      (),
      'config.train: learn.warmup_epochs: expected fewer than the 655 steps '
      'in all, got 1 of 655 steps',
    ),
    (
      'u2pl_shapes.py',
      ('--config.train.learn.warmup_epochs=20',),
      'config.train: learn.warmup_epochs: expected fewer than the 1400 steps '
      'in all, got 20 of 100 steps',
    ),
  ],
)
def test_refusals(capsys, monkeypatch, tmp_path, config, flags, message):
  monkeypatch.setattr(hosts, '_start_alone', lambda: None)
  status = cli.run_command_line(
    u2pl_main.PROGRAM,
    [
      'main',
      f'--config={ROOT}/configs/{config}',
      f'--workdir={tmp_path}/run',
      *flags,
    ],
  )
  assert status == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert message in line
  assert 'Traceback' not in line


def test_prototypes_of_momentum_mend_labels_without_contrast():
  learn = loading.load('u2pl_shapes', 'system=mt,mp=on,pd=on').train.learn
  assert (learn.prototype_momentum, learn.contrast) == (0.999, None)


def test_what_is_reported_of_voc():
  """One program for images of all sizes, by the rule of training."""
  stage = u2pl_main.PROGRAM.build(loading.load('u2pl_voc'))['evaluate']
  reported = stage.options
  assert [*reported.paddings] == ['', '_framed']
  for protocol in (reported.protocol, reported.protocol.single_view()):
    assert protocol.align_corners
    maps = evaluation.build_stage_predictor(
      stage.context, stage.scores(21), 21, protocol
    )
    groups = {maps.group(size) for size in ((375, 500), (500, 333), (513, 513))}
    assert groups == {((513, 513), ((513, 513),))}


@pytest.mark.parametrize(
  ('network', 'path'),
  [
    ('resnet50', 'weights/resnet50_deep.safetensors'),
    ('transunet', 'weights/R50+ViT-B_16.npz'),
  ],
)
def test_each_network_starts_from_weights_of_its_own(network, path):
  assert loading.load('u2pl_voc', f'network={network}').train.start.path == path


def test_a_border_is_scored_only_where_one_is_shown():
  config = loading.load('u2pl_cityscapes')
  with config.evaluate.unlocked():
    config.evaluate.framed = True
  with pytest.raises(errors.UserError, match='framed=True: expected protocol'):
    u2pl_main.PROGRAM.build(config)


def test_ignored_padding_of_unlabeled_images_is_marked():
  for pad_label in ('paper', 'ignored'):
    config = loading.load('u2pl_voc', f'pad_label={pad_label}')
    stage = u2pl_main.PROGRAM.build(config)['train']
    spec = stage.batch_spec(21)
    assert 'valid' not in spec['labeled']
    assert ('valid' in spec['unlabeled']) == (pad_label == 'ignored')
  assert spec['unlabeled']['valid'].shape == (16, 513, 513)
  unpadded = u2pl_main.PROGRAM.build(loading.load('u2pl_camvid'))['train']
  assert 'valid' not in unpadded.batch_spec(11)['unlabeled']


def test_labels_are_scaled_as_images_unless_released():
  for argument in ('', 'label_resize=released'):
    config = loading.load('u2pl_cityscapes', argument)
    crop, _ = u2pl_main.PROGRAM.build(config)['train'].augmentations()
    assert crop.label_resize == (argument[13:] or 'centers')


def test_images_without_masks_are_the_unlabeled_ones():
  train = loading.load('u2pl_folder', 'source=x,without_mask=unlabeled').train
  assert (train.unlabeled, train.data.without_mask) == ('unlabeled',) * 2
  # All that have a mask are labeled.
  assert (train.subset.labels, train.subset.fraction) == (0, 1.0)
  assert loading.load('u2pl_folder', 'source=x,unlabeled=same').train == train
  train = loading.load('u2pl_folder', 'source=x').train
  assert (train.unlabeled, train.subset.fraction) == ('', 0.25)


def test_images_of_another_folder_are_the_unlabeled_ones():
  train = loading.load('u2pl_folder', 'source=x,unlabeled=more').train
  assert (train.unlabeled, train.data.without_mask) == ('train', 'error')
  assert train.subset.fraction == 1.0
  assert train.unlabeled_data.name == 'image_folder'
  assert (train.unlabeled_data.source, train.unlabeled_data.images) == (
    'x',
    'more',
  )


def test_windows_of_each_network():
  for name, side, stride in (
    ('resnet101', 769, 513),
    ('transunet', 768, 512),
  ):
    found = loading.load('u2pl_cityscapes', f'network={name}').evaluate.protocol
    assert (found.window, found.stride) == ((side, side), (stride, stride))


def test_options_of_contrast_are_refused_where_there_is_none():
  with pytest.raises(ValueError, match='system=cutmix has no contrast'):
    loading.load('u2pl_shapes', 'system=cutmix,contrast_weight=1.0')


@pytest.mark.parametrize('name', PAPER)
def test_a_fraction_is_unknown_where_labels_decide_the_epoch(name):
  with pytest.raises(ValueError, match="'fraction' is unknown.* labels,"):
    loading.load(name, 'fraction=0.5')


def test_a_state_of_the_warm_up_is_reported_as_the_students():
  stage = u2pl_main.PROGRAM.build(loading.load('u2pl_shapes', 'tiny'))[
    'evaluate'
  ]
  names = ('params', 'batch_stats', 'teacher_params', 'teacher_batch_stats')
  found = {name: name for name in names}
  # The warm-up is one epoch of 10 steps.
  for step, expected in ((10, 'params'), (11, 'teacher_params')):
    reported = stage.select_variables({'step': step, **found})
    assert (reported['step'], reported['params']) == (step, expected)
  alone = u2pl_main.PROGRAM.build(
    loading.load('u2pl_shapes', 'tiny,system=sup_only')
  )
  reported = alone['evaluate'].select_variables({'step': 60, **found})
  assert reported['params'] == 'params'


def test_heads_compute_in_the_networks_type_and_end_in_float32():
  for dtype in ('float32', 'bfloat16'):
    config = loading.load('u2pl_cityscapes', 'tiny')
    config.network.dtype = dtype
    train = u2pl_main.PROGRAM.build(config)['train']
    net = train.build_network(train.context, 9)
    assert set(net.heads.modules) == {'logits', 'rep', 'aux'}
    assert {head.dtype.name for head in net.heads.modules.values()} == {dtype}
    images = jnp.zeros((1, 65, 65, 3))
    found, _ = jax.eval_shape(
      lambda net=net, images=images: net.init_with_output(
        jax.random.PRNGKey(0), images
      )
    )
    assert {x.dtype.name for x in found.values()} == {'float32'}
