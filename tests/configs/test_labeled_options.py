"""Options of the labeled images and of training on them."""

import pytest

from segcore.train import optimizers
from tests.configs import loading

CONFIGS = [
  'ddep_shapes',
  'ddep_camvid',
  'ddep_folder',
  'ddep_pascal',
  'u2pl_shapes',
  'u2pl_camvid',
  'u2pl_folder',
]


def labeled_fields(config):
  """Returns subset and class weights of the training on labeled images."""
  if 'finetune' in config:
    return config.finetune.subset, config.finetune.class_weights
  return config.train.subset, config.train.learn.supervised.class_weights


@pytest.mark.parametrize('name', CONFIGS)
def test_cover_and_class_weights_are_options(name):
  own = 'median' if name.endswith(('_folder', '_camvid')) else 'none'
  chosen = 'labels=25,cover=1,class_weights=effective'
  for argument, expected in ((chosen, (True, 'effective')), ('', (False, own))):
    subset, weighting = labeled_fields(loading.load(name, argument))
    assert (subset.cover, weighting.kind) == expected


@pytest.mark.parametrize('system', ['sup_only', 'mt', 'u2pl'])
def test_all_systems_weight_the_classes(system):
  config = loading.load(
    'u2pl_shapes', f'system={system},class_weights=effective'
  )
  assert labeled_fields(config)[1].kind == 'effective'


@pytest.mark.parametrize('name', [n for n in CONFIGS if n != 'ddep_pascal'])
def test_the_rate_of_the_encoder_is_an_option(name):
  stage = 'finetune' if name.startswith('ddep') else 'train'
  for argument, expected in (('encoder_lr=0.1', 0.1), ('', 1.0)):
    config = loading.load(name, argument)
    block = config[stage].recipe.optimizer
    factors = optimizers.OptimizerOptions(**block).factors
    assert factors('encoder/stem/kernel') == (expected, 1.0)
    assert factors('decoder/block1/kernel') == (1.0, 1.0)


def test_options_of_the_teacher_and_of_the_students_images():
  config = loading.load(
    'u2pl_shapes',
    'system=cutmix,ema=0.98,statistics=ema,confidence=0.8,jitter=0.8,blur=0.5',
  )
  learn = config.train.learn
  assert (learn.teacher.decay, learn.teacher.statistics) == (0.98, 'ema')
  consistency = learn.consistency
  assert (consistency.confidence, consistency.filtered) == (0.8, False)
  color = consistency.color
  assert (color.jitter, color.gray, color.blur) == (0.8, 0.0, 0.5)
  assert (color.brightness, color.hue) == (0.5, 0.25)
  plain = loading.load('u2pl_shapes', 'system=cutmix').train.learn
  assert (plain.teacher.decay, plain.consistency.confidence) == (0.99, 0.0)


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('system=cutmix', (0.98, 'ema', 0.8, 0.8)),
    ('system=cutmix,confidence=0,statistics=own', (0.98, 'own', 0.0, 0.8)),
  ],
)
def test_photographs_have_their_own_defaults(argument, expected):
  learn = loading.load('u2pl_camvid', argument).train.learn
  consistency, teacher = learn.consistency, learn.teacher
  assert expected == (
    *(teacher.decay, teacher.statistics, consistency.confidence),
    consistency.color.jitter,
  )


def test_systems_without_such_a_teacher_keep_their_defaults():
  learn = loading.load('u2pl_camvid', 'system=unimatch').train.learn
  assert learn.views.color.jitter == 0.8
  assert learn.confidence == 0.95
  assert loading.load('u2pl_camvid', 'system=sup_only').train.learn


def test_options_of_unlabeled_images_are_refused_without_them():
  with pytest.raises(
    ValueError,
    match='config option jitter=0.5: expected one of the systems u2pl_plus, '
    '.*, mt, unimatch, unimatch_v2, got system=sup_only',
  ):
    loading.load('u2pl_shapes', 'system=sup_only,jitter=0.5')
