"""Experiments of domain adaptation: data, optimizer, options, refusals."""

import numpy as np
import pytest

from runtime import errors
from segcore.train import optimizers
from tests.configs import loading
from tests.support import tables
from u2pl import main as u2pl_main
from u2pl.adapt import feature_distance

BOTH = ['u2pl_adapt', 'u2pl_adapt_shapes']


def adapt_of(name, argument=''):
  return loading.load(name, argument).adapt


@pytest.fixture(scope='module')
def stage():
  """Returns the stage of the paper on the smallest encoder."""
  config = loading.load('u2pl_adapt', 'network=mit_b0,encoder=')
  return u2pl_main.PROGRAM.build(config)['adapt']


def test_data_of_the_paper():
  gta5, synthia = (
    adapt_of('u2pl_adapt', f'source={name}') for name in ('gta5', 'synthia')
  )
  assert (gta5.data.name, synthia.data.name) == ('gta5', 'synthia')
  for block, sides in ((gta5, (1280, 720)), (synthia, (1280, 760))):
    assert block.crop.fit_sides == sides
    assert (block.crop.size, block.crop.max_class_share) == ((512, 512), 0.75)
    assert block.target.data.name == 'cityscapes/fine'
    assert block.target.crop.fit_sides == (1024, 512)
    assert 'max_class_share' not in block.target.crop
    assert block.flips == ('horizontal',)
    rare = block.rare_classes
    assert (rare.temperature, rare.min_pixels) == (0.01, 3000)
    assert rare.min_crop_pixels == 1500
    recipe = block.recipe
    assert (recipe.batch_size, recipe.num_steps) == (2, 40_000)
    assert recipe.evaluate_every == 4000
    assert block.start.path == 'weights/mit_b5.pth'


def test_evaluation_of_the_paper():
  means = {}
  for name in ('gta5', 'synthia'):
    evaluate = loading.load('u2pl_adapt', f'source={name}').evaluate
    assert evaluate.protocol.fit_sides == (1024, 512)
    assert not evaluate.protocol.align_corners
    assert evaluate.which == 'last'
    means[name] = evaluate.miou_without
  assert not means['gta5']
  counts = {name: 19 - len(left) for name, left in means['synthia'].items()}
  assert counts == {'miou16': 16, 'miou13': 13}


def test_losses_of_the_paper():
  learn = adapt_of('u2pl_adapt', 'system=daformer').learn
  training = learn.self_training
  assert (training.mixing, training.threshold) == ('dacs', 0.968)
  assert (training.ignored_top, training.ignored_bottom) == (15, 120)
  assert (training.ema_decay, training.weighting) == (0.999, 'share')
  assert (training.filtered, training.reverse) == (False, 0.0)
  colors = training.colors
  assert (colors.jitter, colors.strength, colors.blur) == (0.8, 0.2, 0.5)
  assert colors.sigma == (0.15, 1.15)
  distance = learn.feature_distance
  assert (distance.weight, distance.min_share) == (0.005, 0.75)
  assert distance.classes == feature_distance.CITYSCAPES_THINGS
  assert learn.contrast is None


def test_u2pl_plus_on_daformer():
  learn = adapt_of('u2pl_adapt').learn
  training, contrast = learn.self_training, learn.contrast
  assert (training.filtered, training.weighting) == (True, 'share')
  assert (training.reverse, training.denoise) == (0.1, 'raw')
  assert (contrast.weight, contrast.low_rank, contrast.high_rank) == (
    0.1,
    3,
    20,
  )
  assert (contrast.num_anchors, contrast.num_negatives) == (256, 50)
  assert (contrast.capacity, contrast.first_capacity) == (30_000, 50_000)
  assert (contrast.temperature, contrast.anchor_threshold) == (0.5, 0.3)
  assert (learn.prototype_momentum, learn.start_step) == (0.999, 1500)
  assert (learn.partition.percent, learn.partition.dynamic) == (20.0, True)


def test_optimizer_groups_of_the_paper(stage):
  """Of the encoder norms do not decay; decoder and heads all do, x 10."""
  options = stage.options.recipe.optimizer
  counts = loading.count_parameters(
    stage, 19, lambda name: name.partition('/')[0]
  )
  # B0: all parameters, and those of its layer norms (§1.1).
  assert counts.pop(('encoder', 1.0, 1.0)) == 3_319_392 - 7_168
  assert counts.pop(('encoder', 1.0, 0.0)) == 7_168
  assert {*counts} == {('decoder', 10.0, 1.0), ('heads', 10.0, 1.0)}
  assert (options.learning_rate, options.weight_decay) == (6e-5, 0.01)
  assert (options.b1, options.b2, options.eps) == (0.9, 0.999, 1e-8)
  assert (options.weight_decay_mode, options.clip_norm) == ('decoupled', 0.0)
  rate = optimizers.learning_rate_schedule(options, 40_000)
  np.testing.assert_allclose(rate(0), 6e-11, rtol=1e-4)
  np.testing.assert_allclose(rate(1500), 6e-5 * (1 - 1500 / 40_000), rtol=1e-5)
  # The decoder and the classifier of the paper have 3.71 M parameters with B5.
  heads = stage.build_network(stage.context, 19).heads.modules
  assert heads['logits'].dropout_rate == 0.1
  assert heads['rep'].dropout_rate == 0.0 and heads['rep'].num_blocks == 2
  assert (heads['rep'].width, heads['rep'].out_features) == (256, 256)


def facts(argument):
  block = adapt_of('u2pl_adapt', argument)
  learn = block.learn
  training = learn.self_training
  return {
    'rcs': block.rare_classes is not None,
    'fd': learn.feature_distance is not None,
    'mixing': training and training.mixing,
    'filter': training and training.filtered,
    'sce': training and training.reverse,
    'pd': training and training.denoise,
    'contrast': learn.contrast is not None,
  }


SOURCE_ONLY = {
  'rcs': False,
  'fd': False,
  'mixing': None,
  'filter': None,
  'sce': None,
  'pd': None,
  'contrast': False,
}
DAFORMER = {
  'rcs': True,
  'fd': True,
  'mixing': 'dacs',
  'filter': False,
  'sce': 0.0,
  'pd': 'off',
  'contrast': False,
}
PLUS = {**DAFORMER, 'filter': True, 'sce': 0.1, 'pd': 'raw', 'contrast': True}


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('system=source_only', SOURCE_ONLY),
    ('system=source_only,rcs=on', {**SOURCE_ONLY, 'rcs': True}),
    ('system=source_only,fd=on', {**SOURCE_ONLY, 'fd': True}),
    ('system=target_only', SOURCE_ONLY),
    ('system=daformer', DAFORMER),
    ('system=daformer,rcs=off', {**DAFORMER, 'rcs': False}),
    ('system=daformer,fd=off', {**DAFORMER, 'fd': False}),
    ('system=daformer,mixing=off', {**DAFORMER, 'mixing': 'none'}),
    ('system=daformer,contrast=on', {**DAFORMER, 'contrast': True}),
    ('system=daformer,sce=on', {**DAFORMER, 'sce': 0.1}),
    ('system=daformer,pd=on', {**DAFORMER, 'pd': 'raw'}),
    ('', PLUS),
    ('filter=off', {**PLUS, 'filter': False}),
  ],
)
def test_systems_and_their_parts(argument, expected):
  assert facts(argument) == expected


def test_the_upper_bound_trains_on_labels_of_the_target():
  block = adapt_of('u2pl_adapt', 'system=target_only')
  assert block.data == block.target.data
  assert block.crop.fit_sides == (1024, 512)
  block = adapt_of('u2pl_adapt_shapes', 'system=target_only')
  assert block.data.name == block.target.data.name == 'shapes/target'


@pytest.mark.parametrize('name', BOTH)
@pytest.mark.parametrize('system', ['u2pl_plus', 'source_only'])
def test_tiny(name, system):
  config = loading.load(name, f'system={system},seed=3,tiny')
  stages = u2pl_main.PROGRAM.build_stages(config)
  assert [s.name for s in stages] == ['adapt', 'evaluate']
  block = config.adapt
  assert (block.recipe.num_steps, block.recipe.seed) == (60, 3)
  assert (block.data.name, block.start.path) == ('shapes/source', '')
  assert block.target.data.name == 'shapes/target'
  assert bool(block.learn.contrast) == (system == 'u2pl_plus')


def test_feature_distance_on_shapes_needs_an_encoder():
  for argument, expected in (('', False), ('encoder=x.npz', True)):
    learn = adapt_of('u2pl_adapt_shapes', argument).learn
    assert (learn.feature_distance is not None) == expected
  assert adapt_of('u2pl_adapt_shapes', 'fd=on').learn.feature_distance


def built(**fields):
  config = loading.load('u2pl_adapt_shapes', 'tiny')
  with config.unlocked():
    config.update(fields)
  return u2pl_main.PROGRAM.build(config)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'adapt': {'recipe': {'accumulate': 2}}}, 'accumulate: expected 1, got 2'),
    ({'adapt': {'learn': {'start_step': 60}}}, 'start_step: expected fewer'),
  ],
)
def test_fields_that_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    built(**fields)


def test_a_config_without_training_is_refused():
  config = loading.load('u2pl_adapt_shapes', 'tiny')
  with config.unlocked():
    config.adapt = None
  with pytest.raises(errors.UserError, match='train, adapt, weak, got none'):
    u2pl_main.PROGRAM.build(config)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'target': {'crop': {'size': (32, 32)}}},
      r'target.crop.size: expected \(64, 64\), that of config.adapt.crop',
    ),
    (
      {'learn': {'feature_distance': {'classes': (1, 9)}}},
      r'feature_distance.classes: expected ids below 9, the number of classes',
    ),
    (
      {'learn': {'contrast': {'low_rank': 9}}},
      'learn.contrast: low_rank: expected less than the 9 classes',
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    built(adapt=fields)['adapt'].check()


def test_the_student_is_reported_on_the_target():
  stages = built()
  evaluate = stages['evaluate']
  assert evaluate.needs == ('adapt',)
  assert evaluate.labeled_data.data.name == 'shapes/target'
  assert evaluate.checkpoint_fields == ('step', 'params', 'batch_stats')
  fields = {'step': 60, 'params': 'student', 'teacher_params': 'teacher'}
  assert evaluate.select_variables(fields)['params'] == 'student'
  assert stages['adapt'].best_metric == 'val/miou'


def rows():
  """Returns the rows of the tables with a command."""
  return tables.read('u2pl_adapt_tables.md')


def test_every_command_of_the_tables_is_an_experiment():
  """None of what they need is here: neither data nor weights."""
  assert len(rows()) == 24
  for table, row, command, _ in rows():
    made, found = tables.cells(command)
    assert len(found) == 1 and len(made.seeds) == 3, (table, row)
    config = tables.config_of(command, 0)
    assert config.adapt.data.name in ('gta5', 'synthia', 'cityscapes/fine')
    report = 'val/miou16' if 'source=synthia' in command else 'val/miou'
    assert made.report == report
    reported = u2pl_main.PROGRAM.build(config)['evaluate'].reported_metrics()
    assert {made.report, *made.also} <= {*reported}


def test_batches_of_the_tables():
  for _, row, command, _ in rows():
    batch = tables.config_of(command, 0).adapt.recipe.batch_size
    is_papers = '1 + 1' in row or row.startswith('labeled')
    assert batch == (1 if is_papers else 2), row
