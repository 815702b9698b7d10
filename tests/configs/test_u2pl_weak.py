"""Experiments of weak supervision: data, optimizer, options, refusals."""

import numpy as np
import pytest

from configs import pretrained
from runtime import errors
from segcore.ops import dense_crf
from segcore.train import optimizers
from tests.configs import loading
from tests.support import tables
from tests.transcriptions import afa as reference
from u2pl import main as u2pl_main


def weak_of(name, argument=''):
  return loading.load(name, argument).weak


@pytest.mark.parametrize('network', ['resnet', 'mit,affinity=off'])
def test_maps_are_propagated_by_affinities_alone(network):
  with pytest.raises(ValueError, match='maps=propagated: expected affinity=on'):
    loading.load('u2pl_weak_shapes', f'network={network},maps=propagated')


@pytest.fixture(scope='module')
def stage():
  """Returns the stage of AFA, as published."""
  config = loading.load('u2pl_weak_voc', 'system=afa,encoder=')
  return u2pl_main.PROGRAM.build(config)['weak']


def test_data_and_evaluation_of_the_paper():
  config = loading.load('u2pl_weak_voc')
  block = config.weak
  assert (block.data.name, block.split) == ('voc2012', 'train_aug')
  crop = block.crop
  assert (crop.size, crop.scales, crop.fill) == (
    (512, 512),
    (0.5, 2.0),
    'black',
  )
  assert crop.antialias
  assert (block.recipe.batch_size, block.recipe.num_steps) == (8, 20_000)
  assert block.recipe.evaluate_every == 2000
  assert block.start.path == 'weights/mit_b1.pth'
  protocol = config.evaluate.protocol
  assert (protocol.long_side, protocol.scales) == (512, (1.0, 0.5, 0.75))
  assert (protocol.flip, protocol.scale_merge) == (True, 'max')


def test_losses_of_the_paper(stage):
  learn = stage.options.learn
  assert (learn.class_steps, learn.refined_steps) == (2000, 6000)
  cam = learn.cam
  assert (cam.scales, cam.low, cam.high) == ((1.0, 0.5, 1.5), 0.35, 0.55)
  assert cam.plain == 0.45
  refinement = cam.refinement
  assert refinement.dilations == reference.DILATIONS
  assert (refinement.num_iterations, refinement.bandwidth) == (10, 0.3)
  assert (learn.affinity.radius, learn.affinity.weight) == (8, 0.1)
  assert (learn.segmentation_weight, learn.pooling) == (0.1, 'max')
  assert (learn.energy, learn.contrast) == (None, None)
  energy = weak_of('u2pl_weak_voc', 'energy=on').learn.energy
  assert (energy.weight, energy.distance, energy.color) == (1e-9, 50.0, 15.0)


def test_u2pl_plus_on_afa():
  learn = weak_of('u2pl_weak_voc').learn
  contrast = learn.contrast
  assert (contrast.weight, contrast.temperature) == (0.1, 0.5)
  assert (contrast.num_anchors, contrast.num_negatives) == (256, 50)
  assert (contrast.anchor_threshold, contrast.negative_threshold) == (0.45,) * 2
  assert (contrast.capacity, contrast.first_capacity) == (30_000, 0)
  assert (contrast.keys_per_image, contrast.absent_anchors) == (256, False)
  assert learn.prototype_momentum == 0.999
  assert (contrast.maps, contrast.key_source) == ('cam', 'student')


def test_optimizer_and_parameters_of_the_paper(stage):
  counts = loading.count_parameters(
    stage,
    21,
    lambda name: '/'.join(name.split('/')[: 1 + name.startswith('heads')]),
  )
  options = stage.options.recipe.optimizer
  assert counts == {
    ('encoder', 1.0, 1.0): 13_151_424 - 14_336,
    ('encoder', 0.0, 0.0): 14_336,  # Norms are frozen.
    # 0.53 M: four projections, the fusion with its batch norm …
    ('decoder', 10.0, 1.0): 256 * (64 + 128 + 320 + 512 + 4 + 1024 + 2),
    ('heads/logits', 10.0, 1.0): 257 * 21,  # … and the classifier.
    ('heads/tags', 10.0, 1.0): 20 * 512,
    ('heads/affinity', 10.0, 1.0): 17,
  }
  assert (options.learning_rate, options.weight_decay) == (6e-5, 0.01)
  assert (options.b1, options.b2, options.eps) == (0.9, 0.999, 1e-8)
  rate = optimizers.learning_rate_schedule(options, 20_000)
  for step in (0, 800, 1500, 12_345):
    expected = 6e-5 * reference.rate_factor(step)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('argument', 'heads', 'supervision'),
  [
    ('', ('tags', 'logits', 'affinity', 'rep'), 'tags'),
    ('system=afa,affinity=off', ('tags', 'logits'), 'tags'),
    ('system=afa,contrast=on', ('tags', 'logits', 'affinity', 'rep'), 'tags'),
    ('system=cam', ('tags',), 'tags'),
    ('system=full', ('logits',), 'masks'),
  ],
)
def test_systems(argument, heads, supervision):
  config = loading.load('u2pl_weak_shapes', argument)
  stages = u2pl_main.PROGRAM.build(config)
  learn = stages['weak'].options.learn
  assert (learn.heads, learn.supervision) == (heads, supervision)
  assert stages['evaluate'].trained_by == 'weak'


def test_cams_are_evaluated_with_and_without_refinement():
  """Networks that predict pixels have no CAMs to refine."""
  trained = 'system=cam,network=resnet'
  plain, refined = (
    u2pl_main.PROGRAM.build(loading.load('u2pl_weak_shapes', trained + more))
    for more in ('', ',refine=par')
  )
  assert plain['weak'].options == refined['weak'].options
  assert plain['evaluate'].scores(9).refinement is None
  assert refined['evaluate'].scores(9).refinement.dilations == (1, 2, 4, 8)
  for name in ('shapes', 'voc', 'folder'):
    source = 'source=x,masks=y,' if name == 'folder' else ''
    config = loading.load(f'u2pl_weak_{name}', f'{source}system=cam,refine=par')
    assert config.evaluate.cam_refinement == 'par'
  with pytest.raises(ValueError, match='refine=par: expected system=cam'):
    loading.load('u2pl_weak_shapes', 'refine=par')
  config = loading.load('u2pl_weak_shapes', 'system=afa')
  config.evaluate.cam_refinement = 'par'
  with pytest.raises(
    errors.UserError, match='refinement: expected None unless'
  ):
    u2pl_main.PROGRAM.build(config)


def test_shapes_train_a_classifier_of_either_network():
  config = loading.load(
    'u2pl_weak_shapes', 'system=cam,network=resnet,data=single,pooling=mean'
  )
  block = u2pl_main.PROGRAM.build(config)['weak'].options
  assert (block.data.name, block.learn.pooling) == ('shapes/single', 'mean')
  config = loading.load(
    'u2pl_weak_shapes', 'system=afa,network=resnet,encoder=x/weak'
  )
  # A ResNet has no attention, which affinities are made of.
  assert config.weak.learn.affinity is None
  assert config.weak.start.path == 'x/weak'
  with pytest.raises(ValueError, match='pooling=mean: expected none with sys'):
    loading.load('u2pl_weak_shapes', 'system=full,pooling=mean')


def test_a_folder_with_and_without_masks(monkeypatch):
  monkeypatch.setattr(pretrained, 'is_installed', lambda package: False)
  tagged = loading.load('u2pl_weak_folder', 'source=x,tags=t.csv')
  assert tagged.stages == ('weak',)
  assert (tagged.weak.val_split, tagged.weak.data.tags) == ('', 't.csv')
  assert tagged.network.encoder.name == 'mit'
  built = u2pl_main.PROGRAM.build(tagged)['weak']
  assert built.best_metric is None
  built.check()
  masked = loading.load(
    'u2pl_weak_folder', 'source=x,tags=t,masks=m,classes=c.txt,follow_exif'
  )
  assert masked.stages == ('weak', 'evaluate')
  assert masked.weak.val_split == 'val'
  assert masked.weak.data.follow_exif


def test_a_pretrained_encoder_without_attention_has_no_affinities(monkeypatch):
  monkeypatch.setattr(pretrained, 'is_installed', lambda package: True)
  config = loading.load('u2pl_weak_folder', 'source=x')
  assert config.network.encoder.name == 'efficientnet'
  assert config.weak.learn.affinity is None
  assert config.weak.start.path == f'package:{pretrained.PACKAGE}'
  on = loading.load('u2pl_weak_folder', 'source=x,affinity=on')
  with pytest.raises(errors.UserError, match='choose an encoder mit'):
    u2pl_main.PROGRAM.build(on)['weak'].check()


def test_the_crf_needs_its_package(monkeypatch):
  config = loading.load('u2pl_weak_voc', 'tiny,crf')
  evaluate = u2pl_main.PROGRAM.build(config)['evaluate']
  monkeypatch.setattr(dense_crf.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='config.evaluate.protocol.crf: e'):
    evaluate.check()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'recipe': {'accumulate': 2}}, 'accumulate: expected 1, got 2: means'),
    (
      {'learn': {'class_steps': 60, 'refined_steps': 60}},
      'fewer than the 60 st',
    ),
  ],
)
def test_steps_that_do_not_fit_are_refused(fields, message):
  config = loading.load('u2pl_weak_shapes', 'tiny')
  with config.unlocked():
    config.weak.update(fields)
  with pytest.raises((ValueError, errors.UserError), match=message):
    u2pl_main.PROGRAM.build(config)


def test_the_background_alone_is_refused(stage):
  with pytest.raises(errors.UserError, match='weak.data: expected the backgr'):
    stage.check_num_classes(1)


def test_two_trainings_are_refused():
  config = loading.load('u2pl_weak_voc', 'tiny')
  other = loading.load('u2pl_adapt_shapes', 'tiny')
  with config.unlocked():
    config.adapt = other.adapt
  with pytest.raises(errors.UserError, match='got adapt and weak'):
    u2pl_main.PROGRAM.build(config)


def test_every_command_of_the_tables_is_an_experiment():
  """None of what they need is here: neither data nor weights."""
  rows = tables.read('u2pl_weak_tables.md')
  assert len(rows) == 14
  for table, row, command, _ in rows:
    made, cells = tables.cells(command)
    assert len(cells) == 1 and len(made.seeds) == 3, (table, row)
    config = tables.config_of(command, 0)
    assert config.weak.data.name == 'voc2012'
    assert config.evaluate.protocol.crf == ('crf=true' in command)
    reported = u2pl_main.PROGRAM.build(config)['evaluate'].reported_metrics()
    assert made.report in reported


@pytest.mark.parametrize(
  ('name', 'block'),
  [
    ('u2pl_weak_folder', 'weak'),
    ('u2pl_weak_voc', 'weak'),
    ('u2pl_adapt', 'adapt'),
  ],
)
def test_the_path_of_an_encoder_stays_as_given(name, block):
  """It may contain the words that stand for other encoders."""
  source = 'source=x,' if name.endswith('folder') else ''
  config = loading.load(name, f'{source}encoder=runs/autos_random/represent')
  assert config[block].start.path == 'runs/autos_random/represent'
