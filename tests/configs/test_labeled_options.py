"""Options of the labeled images and of training on them."""

import pytest

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
  chosen = 'labels=25,cover=1,class_weights=median'
  for argument, expected in ((chosen, (True, 'median')), ('', (False, 'none'))):
    subset, weighting = labeled_fields(loading.load(name, argument))
    assert (subset.cover, weighting.kind) == expected


@pytest.mark.parametrize('system', ['sup_only', 'mt', 'u2pl'])
def test_all_systems_weight_the_classes(system):
  config = loading.load(
    'u2pl_shapes', f'system={system},class_weights=effective'
  )
  assert labeled_fields(config)[1].kind == 'effective'
