"""PASS's experiments: the published settings, and what contradicts itself."""

import dataclasses
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss import main
from pass_luss.protocols import protocol_options
from pass_luss.stages import base
from runtime import errors, options
from segcore.experiment import dry_run, stage
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.configs import loading
from tests.support import fake_data
from tests.transcriptions import pass_updates

ALL = ['pass_imagenet_s50', 'pass_imagenet_s300', 'pass_imagenet_s919']


def test_the_published_settings():
  """Table of §2.1, by hand."""
  rows = {}
  for name in ALL:
    config = loading.load(name)
    block = config.represent
    clusters, recipe = block.learn.clusters, block.recipe
    views = [(block.large.count, *block.large.size, *block.large.area)]
    if block.small:
      views += [(block.small.count, *block.small.size, *block.small.area)]
    rows[name] = (
      config.network.encoder.blocks,
      block.data.name,
      recipe.batch_size,
      recipe.num_steps,
      views,
      tuple(block.widths[k] for k in ('hidden', 'embedding', 'prototypes')),
      (clusters.queue, clusters.queue_from_step, clusters.frozen_steps),
      (recipe.optimizer.learning_rate, recipe.optimizer.final_learning_rate),
    )
  assert rows == {
    'pass_imagenet_s50': (
      *((2, 2, 2, 2), 'imagenet_s/50', 256, 200 * 251),
      [(2, 224, 224, 0.14, 1.0), (6, 96, 96, 0.05, 0.14)],
      *((512, 128, 500), (2048, 15 * 251, 1001), (0.6, 0.0006)),
    ),
    'pass_imagenet_s300': (
      *((3, 4, 6, 3), 'imagenet_s/300', 256, 100 * 1503),
      [(2, 224, 224, 0.08, 1.0)],
      *((2048, 128, 3000), (3840, 15 * 1503, 5005), (0.6, 0.0006)),
    ),
    'pass_imagenet_s919': (
      *((3, 4, 6, 3), 'imagenet/1k', 256, 100 * 5004),
      [(2, 224, 224, 0.08, 1.0)],
      *((2048, 128, 3000), (3840, 15 * 5004, 5005), (0.6, 0.0006)),
    ),
  }


@pytest.mark.parametrize(
  ('name', 'rate', 'steps', 'tau'),
  [
    ('pass_imagenet_s50', 6.0, 20 * 251, 0.41),
    ('pass_imagenet_s300', 0.6, 20 * 1503, 0.40),
    ('pass_imagenet_s919', 0.6, 20 * 4622, 0.37),
  ],
)
def test_attention_clusters_and_fine_tuning(name, rate, steps, tau):
  config = loading.load(name)
  attend = config.attend
  assert attend.recipe.num_steps == config.finetune.recipe.num_steps == steps
  assert attend.recipe.optimizer.learning_rate == rate
  assert attend.clusters.queue == 3840
  assert (attend.clusters.queue_from_step, attend.clusters.frozen_steps) == (
    0,
    0,
  )
  assert attend.large.area == (0.08, 1.0)
  assert (config.cluster.restarts, config.cluster.iterations) == (30, 20)
  assert config.finetune.recipe.optimizer.learning_rate == 0.6
  for block in (config.attend, config.finetune):
    assert block.recipe.optimizer.final_learning_rate == pytest.approx(6e-4)
  assert config.label.threshold < 0
  assert loading.load(name, 'choose=published').label.threshold == tau
  assert not config.finetune.split and config.finetune.crop.antialias
  assert config.images.data.name.startswith('imagenet_s/')


def test_the_schedule_is_the_published_one():
  optimizer = loading.load('pass_imagenet_s50').represent.recipe.optimizer
  built = options.build_options(
    optimizers.OptimizerOptions, optimizer, 'optimizer'
  )
  rate = optimizers.learning_rate_schedule(built, 200 * 251)
  for step in (0, 1, 25_000, 50_199):
    expected = pass_updates.swav_learning_rate(step, 50_200)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5)


def test_pixel_pros_schedule():
  block = loading.load('pass_imagenet_s300', 'branch=pixpro').represent
  built = options.build_options(
    optimizers.OptimizerOptions, block.recipe.optimizer, 'optimizer'
  )
  rate = optimizers.learning_rate_schedule(built, 150_300)
  for step in (0, 1, 7000, 7515, 100_000):
    expected = pass_updates.pixpro_learning_rate(step, 150_300, 7515)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5)
  assert block.learn.shallow.stages == (3, 2)
  first, second = block.colors.large
  assert (first['blur'], second['blur']) == (1.0, 0.1)
  assert 'solarize' not in first and second['solarize'] == 0.2


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('branch', ['swav', 'pixpro'])
def test_every_config_describes_its_stages(name, branch):
  stages = main.PROGRAM.build_stages(loading.load(name, f'branch={branch}'))
  assert [(s.name, s.needs) for s in stages] == [
    ('represent', ()),
    ('attend', ('represent',)),
    ('cluster', ('attend',)),
    ('label', ('attend', 'cluster')),
    ('finetune', ('represent', 'label')),
    ('segment', ('finetune',)),
  ]


def test_ablations_say_what_they_say():
  def learned(argument):
    return loading.load('pass_shapes', argument).represent.learn

  alone = learned('p2p=off,d2s=off')
  assert alone.alignment is None and alone.shallow.stages == ()
  assert learned('p2p=contrastive').alignment.kind == 'contrastive'
  assert not learned('project=false').alignment.project
  statistics = ('joint', 'per_view')
  assert statistics == tuple(
    learned(argument).alignment.predictor_statistics
    for argument in ('', 'predictor_statistics=per_view')
  )
  assert learned('d2s=32,d2s_view=same').shallow.view == 'same'
  assert learned('d2s_targets=own').shallow.targets == 'own'
  pixpro = learned('branch=pixpro,clusters=false,protocol=distance')
  assert pixpro.clusters is None and pixpro.shallow.stages == ()
  assert pixpro.pixpro is not None
  assert learned('combine=sum').combine == 'sum'


def refused(name, argument, **changes):
  config = importlib.import_module(f'configs.{name}').get_config(argument)
  config.update_from_flattened_dict(changes)
  with pytest.raises(errors.UserError) as caught:
    main.PROGRAM.build_stages(config)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_configs_that_cannot_be_run():
  shapes = ('pass_shapes', '')
  assert 'segment needs finetune' in refused(
    *shapes, stages=('represent', 'segment')
  )
  assert 'expected some of' in refused(*shapes, stages=('pretrain',))
  assert 'needs represent.learn.clusters' in refused(
    'pass_shapes',
    'branch=pixpro,clusters=false,protocol=distance',
    stages=('represent', 'attend'),
  )
  assert 'got 2: assignments' in refused(
    *shapes, **{'represent.recipe.accumulate': 2}
  )
  assert 'config.represent.recipe.batch_size' in refused(
    *shapes, **{'represent.recipe.batch_size': 12}
  )
  assert 'represent.large: size' in refused(
    *shapes, **{'represent.large.size': (0, 48)}
  )
  assert 'a split with masks' in refused(*shapes, **{'semi.split': ''})
  assert 'config.segment_on is missing' in refused(
    *shapes, stages=('represent', 'semi', 'segment_on')
  )
  assert 'splits: expected at least one' in refused(
    *shapes, **{'segment.splits': ()}
  )
  assert 'distance: neighbors: expected 1 or more, got 0' in refused(
    *shapes, **{'distance.neighbors': 0}
  )


def test_an_image_level_experiment_reads_activations():
  config = loading.load('pass_shapes', 'cluster=image')
  assert config.segment.inference == 'cam'
  names = {s.name: s.needs for s in main.PROGRAM.build_stages(config)}
  assert names['cluster'] == ('represent',)
  assert names['label'] == ('represent', 'cluster')


def test_protocols_are_rows_of_stages():
  distance = main.PROGRAM.build_stages(
    loading.load('pass_shapes', 'protocol=distance')
  )
  assert [s.name for s in distance] == ['represent', 'distance']
  semi = main.PROGRAM.build_stages(loading.load('pass_shapes', 'protocol=semi'))
  assert [s.needs for s in semi] == [(), ('represent',), ('semi',)]


@pytest.mark.parametrize('protocol', ['unsupervised', 'semi'])
def test_a_finished_run_can_be_segmented_on_a_smaller_size(protocol):
  """The stages before are as they were, so they are not run again."""
  name, argument = 'pass_imagenet_s919', f'protocol={protocol}'
  before = stage.settings_by_stage(
    main.PROGRAM.build_stages(loading.load(name, argument))
  )
  config = loading.load(name, f'{argument},on=50')
  stages = main.PROGRAM.build_stages(config)
  after = stage.settings_by_stage(stages)
  settings = after.pop('segment_on')
  assert after == before
  assert settings['settings']['segment_on']['data']['name'] == 'imagenet_s/50'
  needed = {'unsupervised': 'finetune', 'semi': 'semi'}[protocol]
  assert [s.needs for s in stages if s.name == 'segment_on'] == [(needed,)]
  # Classes that were learned from masks have names: val's masks match nothing.
  kinds = {'unsupervised': ['', '', 'label'], 'semi': ['', '']}[protocol]
  inputs = main.PROGRAM.build(config)['segment_on'].inputs()
  assert [(split.data.name, split.kind) for split in inputs.splits] == [
    ('imagenet_s/50', kind) for kind in kinds
  ]


def test_thresholds_that_are_asked_for():
  """0 is a threshold; that of attention is none of saliency."""
  for argument, expected in (
    ('', -1.0),
    ('threshold=0', 0.0),
    ('threshold=0.0,choose=published', 0.0),
    ('threshold=0.25,saliency=rc', 0.25),
    ('choose=published', 0.41),
    ('choose=published,saliency=rc', 0.5),
    ('saliency=rc', -1.0),
  ):
    threshold = loading.load('pass_imagenet_s50', argument).label.threshold
    assert threshold == expected, argument


def test_submissions_say_what_the_servers_ask_for():
  for name, network in (
    ('pass_imagenet_s50', 'ResNet-18'),
    ('pass_imagenet_s919', 'ResNet-50'),
  ):
    config = loading.load(name, 'branch=pixpro')
    for block in ('segment', 'segment_semi', 'distance'):
      built = options.build_options(
        protocol_options.SubmissionInfo, config[block].about, 'about'
      )
      assert all(dataclasses.astuple(built))
      assert built.networks == network and built.name == 'PASSp'
      assert ('train-semi' in built.data) == (block != 'segment')
  assert (
    'k = 10' in loading.load('pass_imagenet_s50').distance.about.description
  )


def test_segments_of_masks_need_no_masks_of_val():
  """Of test alone, say."""
  config = loading.load('pass_shapes', 'protocol=semi')
  config.segment_semi.splits = ('test',)
  inputs = main.PROGRAM.build(config)['segment_semi'].inputs()
  assert [(read.split, read.kind) for read in inputs.splits] == [('test', '')]


def test_saliency_is_needed_wherever_labels_or_thresholds_are(monkeypatch):
  opened = []

  def open_split(stage, name, *_):
    opened.append(name)
    return fake_data.coordinate_split(1)

  monkeypatch.setattr(base.PassStage, 'open_images', open_split)
  config = loading.load('pass_shapes', 'saliency=somewhere')
  config.label.report = ()
  for threshold, expected in ((-1.0, ['', 'val']), (0.5, [''])):
    config.label.threshold = threshold
    main.PROGRAM.build(config)['label'].image_ids()
    assert opened == expected
    opened.clear()


def test_how_many_images_are_looked_at_at_once_is_no_setting():
  config = loading.load('pass_shapes')
  before = stage.settings_by_stage(main.PROGRAM.build_stages(config))
  for name in ('cluster', 'label', 'segment'):
    config[name].batch_size = 8
  assert stage.settings_by_stage(main.PROGRAM.build_stages(config)) == before
  named = loading.load('pass_imagenet_s50', 'protocol=distance')
  settings = stage.settings_by_stage(main.PROGRAM.build_stages(named))
  named.distance.about.name = 'ours'  # Nor is what is said of the method.
  assert stage.settings_by_stage(main.PROGRAM.build_stages(named)) == settings
  config.cluster.restarts = 2
  assert stage.settings_by_stage(main.PROGRAM.build_stages(config)) != before


def test_layers_far_from_the_head_learn_less():
  config = loading.load('pass_imagenet_s300', 'semi=imagenet_s')
  optimizer = config.semi.recipe.optimizer
  built = options.build_options(
    optimizers.OptimizerOptions, optimizer, 'optimizer'
  )
  factors = {
    path: built.factors(path)
    for path in (
      'heads/logits/conv/kernel',
      'heads/logits/conv/bias',
      'encoder/block4/unit1/conv1/kernel',
      'encoder/block1/unit1/bn1/scale',
      'encoder/conv_root/kernel',
    )
  }
  assert factors == {
    'heads/logits/conv/kernel': (1.0, 1.0),
    'heads/logits/conv/bias': (1.0, 0.0),
    'encoder/block4/unit1/conv1/kernel': (0.4, 1.0),
    'encoder/block1/unit1/bn1/scale': (pytest.approx(0.4**4), 0.0),
    'encoder/conv_root/kernel': (pytest.approx(0.4**5), 1.0),
  }
  assert config.semi.recipe.num_steps == 100 * (3000 // 256)


def test_a_dilated_last_stage_has_the_parameters_of_representation_learning():
  config = loading.load(
    'pass_imagenet_s300', 'semi=imagenet_s_os16,protocol=semi'
  )
  optimizer = options.build_options(
    optimizers.OptimizerOptions, config.semi.recipe.optimizer, 'optimizer'
  )
  assert optimizer.factors('encoder/block4/unit1/conv1/kernel')[0] == 0.45
  assert (config.semi.reduction, config.semi.repeated_upsampling) == (4, True)
  stages = main.PROGRAM.build(config)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes, grids = [], []
  for name in ('represent', 'semi'):
    net = stages[name].method(stages[name].context, 2).segmenter
    scores, variables = jax.eval_shape(
      lambda x, net=net: net.init_with_output(
        jax.random.PRNGKey(0), x, decode=False, method='features'
      ),
      images,
    )
    grids.append(scores['encoder'].deepest.array.shape[1:3])
    shapes.append(
      jax.tree.map(lambda leaf: leaf.shape, variables['params']['encoder'])
    )
  assert shapes[0] == shapes[1]
  assert grids == [(7, 7), (14, 14)]


def test_random_features_are_one_step_of_nothing():
  config = loading.load('pass_shapes', 'untrained')
  recipe = config.represent.recipe
  assert recipe.num_steps == 1
  assert recipe.optimizer.learning_rate < 1e-20


@pytest.mark.slow
def test_a_dry_run_says_the_cost(capsys):
  config = loading.load('pass_imagenet_s50')
  stage.dry_run_stages(main.PROGRAM.build_stages(config), ('represent',))
  said = capsys.readouterr().out
  assert '50,200 steps of 256 images' in said
  assert '11,176,512' in said


@pytest.mark.slow
def test_costs_are_those_of_all_stages():
  """300 and 919 classes: one network, but for the last layer; more steps."""
  names = ('represent', 'attend', 'finetune')
  stages = main.PROGRAM.build(loading.load('pass_imagenet_s300'))
  steps = {
    name: sum(dry_run.count_dry_run_cost(stages[name].workload()).step.values())
    for name in names
  }
  for size in (300, 919):
    module = importlib.import_module(f'configs.pass_imagenet_s{size}')
    config = module.get_config()
    total = sum(steps[n] * config[n].recipe.num_steps for n in names)
    said = re.search(r'Cost:  ([\d.]+) EFLOPs: ([\d.]+) hours', module.__doc__)
    assert float(said[1]) == pytest.approx(total / 1e18, rel=0.02)
    assert float(said[2]) == pytest.approx(total / 400e12 / 3600, rel=0.03)


def test_what_starts_from_a_run_of_pass_takes_its_encoder():
  """DDeP and U2PL on its small network."""
  ddep = importlib.import_module('configs.ddep_shapes')
  config = ddep.get_config('network=pass,init=ddep,encoder=somewhere')
  encoder = loading.load('pass_shapes').network.encoder.to_dict()
  assert config.network.encoder.to_dict() == encoder
  assert config.denoise.start.take == ('encoder',)
  u2pl = importlib.import_module('configs.u2pl_shapes')
  config = u2pl.get_config('network=pass,start=somewhere')
  assert config.network.encoder.to_dict() == encoder
  assert config.train.start.take == ('encoder', 'decoder')


def test_parts_of_heads_are_taken_by_name():
  merged = update_lib._replace_parts(
    {'heads': {'a': 1, 'b': 2}, 'encoder': {'x': 0}}, {'heads': {'a': 3}}
  )
  assert merged == {'heads': {'a': 3, 'b': 2}, 'encoder': {'x': 0}}
