import importlib
import pathlib
import re

import pytest

from configs import common
from ddep import main as ddep_main
from segcore import stage

CONFIGS = pathlib.Path(common.__file__).parent
NAMES = sorted(
  path.stem for path in CONFIGS.glob('*.py') if path.stem.count('_') == 1
)


def load(name, argument=''):
  config = importlib.import_module(f'configs.{name}').get_config(argument)
  config.lock()
  return config


def graph(config):
  return [(s.name, s.needs) for s in ddep_main.build_stages(config)]


def test_every_config_is_tested():
  assert NAMES == ['ddep_camvid', 'ddep_folder', 'ddep_shapes']


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    (
      'init=ddep',
      [
        ('classify', ()),
        ('denoise', ('classify',)),
        ('finetune', ('denoise',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    (
      'init=dep',
      [
        ('denoise', ()),
        ('finetune', ('denoise',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    (
      'init=supervised',
      [
        ('classify', ()),
        ('finetune', ('classify',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    ('init=none', [('finetune', ()), ('evaluate', ('finetune',))]),
  ],
)
def test_inits_wire_the_stages(argument, expected):
  assert graph(load('ddep_shapes', argument)) == expected
  assert graph(load('ddep_camvid', argument)) == expected


def test_how_many_images_are_evaluated_at_once_is_no_setting():
  config = load('ddep_shapes', 'init=none')
  before = stage.all_settings(ddep_main.build_stages(config))
  config.evaluate.batch_size = 8
  assert stage.all_settings(ddep_main.build_stages(config)) == before
  config.evaluate.protocol.flip = True
  assert stage.all_settings(ddep_main.build_stages(config)) != before


def test_what_learns_in_denoising_is_ddep_or_dep():
  assert load('ddep_shapes').denoise.trained == ('decoder', 'heads')
  dep = load('ddep_shapes', 'init=dep').denoise
  assert dep.trained == ('encoder', 'decoder', 'heads')
  assert dep.start.path == ''


def test_an_encoder_from_elsewhere_replaces_the_classification(tmp_path):
  config = load('ddep_camvid', f'init=ddep,encoder={tmp_path}')
  assert graph(config) == [
    ('denoise', ()),
    ('finetune', ('denoise',)),
    ('evaluate', ('finetune',)),
  ]
  assert config.denoise.start.path == str(tmp_path)
  assert config.denoise.start.take == ('encoder',)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['', 'tiny', 'init=none', 'seed=3'])
def test_configs_build(name, argument):
  options = [argument] if argument else []
  if name == 'ddep_folder':
    options.append('source=/photographs,ignore=255')
  config = load(name, ','.join(options))
  stages = ddep_main.build_stages(config)
  assert stages[-1].name == 'evaluate'
  if argument == 'tiny':
    assert config.finetune.recipe.num_steps == 60
  if argument == 'seed=3':
    tuning = config.finetune
    assert (tuning.recipe.seed, tuning.subset.seed) == (3, 3)
    assert config.denoise.recipe.seed == config.classify.recipe.seed == 0


@pytest.mark.parametrize('name', NAMES)
def test_the_text_of_a_config_names_its_command_and_its_cost(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert re.search(
    rf'Run: +python -m ddep\.main[\s\\]+--config=configs/{name}', text
  )
  assert 'Cost:' in text


def test_an_encoder_that_nothing_starts_from_is_refused():
  for argument in ('encoder=runs/x', 'init=none,encoder=runs/x'):
    with pytest.raises(ValueError, match='encoder=runs/x: nothing starts from'):
      load('ddep_camvid', argument)


def test_labels_or_fraction():
  assert load('ddep_shapes').finetune.subset.labels == 100
  tenth = load('ddep_shapes', 'fraction=0.1').finetune.subset
  assert (tenth.labels, tenth.fraction) == (0, 0.1)
  fifty = load('ddep_shapes', 'labels=50').finetune.subset
  assert (fifty.labels, fifty.fraction) == (50, 1.0)


def test_options_are_typed():
  defaults = {'kind': ['a', 'b'], 'count': 3, 'rate': 0.5, 'flag': False}
  found = common.parse('kind=b,count=4,flag', **defaults)
  assert vars(found) == {'kind': 'b', 'count': 4, 'rate': 0.5, 'flag': True}
  assert vars(common.parse(None, **defaults)) == {**defaults, 'kind': 'a'}
  for text, message in (
    ('cont=4', "'cont' is unknown, expected some of count, flag"),
    ('kind=c', 'kind=c: expected one of a, b'),
    ('count=x', 'count=x: expected int'),
    ('flag=yes', 'flag=yes: expected true or false'),
  ):
    with pytest.raises(ValueError, match=message):
      common.parse(text, **defaults)
