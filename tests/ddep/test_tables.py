"""Tests that every row of docs/methods/ddep_tables.md builds its experiment."""

import collections

import pytest

from ddep import main as ddep_main
from tests.support import tables

DECODER = ('decoder', 'heads')
WHOLE = ('encoder', *DECODER)
# Many rows have the same network.
pytestmark = pytest.mark.usefixtures('equal_networks_checked_once')


def rows():
  return tables.read('ddep_tables.md')


@pytest.mark.parametrize('data', ['pascal', 'ade20k', 'cityscapes'])
def test_every_command_is_an_experiment(data):
  """Nothing of what they need is here: neither data nor weights."""
  commands = [command for _, _, command, _ in rows()]
  commands += [
    line
    for line in tables.path_of('ddep_tables.md').read_text().splitlines()
    if ' --sweep=lr' in line
  ]
  commands = [c for c in dict.fromkeys(commands) if f'/ddep_{data}.py' in c]
  assert len(commands) >= 10
  for command in commands:
    stages = ddep_main.PROGRAM.build_stages(tables.config_of(command, -1))
    assert stages[-1].name == 'evaluate'


def test_the_sweep_never_looks_at_val():
  [command] = [
    line
    for line in tables.path_of('ddep_tables.md').read_text().splitlines()
    if ' --sweep=lr' in line
  ]
  made, result = tables.cells(command)
  # Three starts, four rates, four decays.
  assert len({cell.name for cell in result}) == len(result) == 3 * 4 * 4
  config = tables.config_of(command, 0)
  assert config.finetune.val_split == 'held_out'
  assert config.finetune.subset.held_out == 500
  assert tuple(config.evaluate.splits) == ('held_out',)
  assert made.select == 'held_out/miou'
  adam = tables.config_of(command, -1).finetune.recipe.optimizer
  assert (adam.learning_rate, adam.weight_decay) == (3e-4, 3e-4)


def test_a_row_has_a_column_for_each_number():
  for table, row, command, count in rows():
    made, result = tables.cells(command)
    assert made.report == 'val/miou', (table, row)
    assert len(made.seeds) == 10, (table, row)
    if count > 1:
      assert len(result) == count, (table, row)


def test_all_tables_and_figures_are_there():
  counts = collections.Counter(table for table, _, _, _ in rows())
  assert counts == {
    'Table 1': 2,
    'Table 2': 3,
    'Fig. 3': 1,
    'Fig. 5, left': 2,
    'Fig. 5, right': 4,
    'Table 3': 6,
    'Table 4': 2,
    'Fig. 6': 7,
    'Table 5': 1,
    'Table 6 and Fig. 1': 6,
    'Fig. 7': 6,
    'Table 7': 3,
  }


def facts(config):
  """Returns the settings in which rows differ."""
  denoises = 'denoise' in config.stages
  noise = config.denoise.noise
  also = config.denoise.also if 'also' in config.denoise else ()
  return {
    'stages': config.stages,
    'trained': config.denoise.trained if denoises else None,
    'width': config.network.decoder.width_multiplier,
    'encoder': config.network.encoder.name,
    'labeled': config.finetune.data.name,
    'denoised': (config.denoise.data.name, len(also)) if denoises else None,
    'kind': noise.kind if denoises else None,
    'target': noise.target if denoises else None,
    'strength': (noise.gamma, noise.sigma, noise.gamma_range)
    if denoises
    else None,
    'steps': config.denoise.recipe.num_steps if denoises else None,
    'lr': config.denoise.recipe.optimizer.learning_rate if denoises else None,
    'takes': config.finetune.start.take,
    'scales': len(config.evaluate.protocol.scales),
    'tiling': config.evaluate.protocol.tiling,
  }


def test_rows_of_a_table_differ():
  settings = collections.defaultdict(list)
  for table, _, command, _ in rows():
    settings[table].append(facts(tables.config_of(command, 0)))
  for table, result in settings.items():
    assert len({repr(fact) for fact in result}) == len(result), table


WEIGHTS = ('encoder',)
IMAGENET_STEPS = 2_488_930  # 100 · 12,743,321 / 512
FIXED = (0.95, 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
  ('table', 'row', 'expected'),
  [
    (
      'Table 1',
      'predict x',
      {'target': 'x', 'kind': 'simple', 'trained': WHOLE},
    ),
    ('Table 1', 'predict eps', {'target': 'eps', 'kind': 'simple'}),
    (
      'Table 2',
      'denoising',
      {
        'trained': WHOLE,
        'denoised': ('cityscapes/fine', 1),
        'kind': 'simple',
        'strength': (0.0, 0.8, (0.0, 0.0)),
        'steps': 269_215,  # 6000 · 22,973 / 512, rounded up
        'tiling': 'halves',
        'scales': 1,
      },
    ),
    ('Table 2', 'no pretraining', {'takes': (), 'trained': None}),
    ('Table 2', 'supervised', {'takes': WEIGHTS, 'trained': None}),
    ('Fig. 5, right', 'ADE20K, simple', {'kind': 'simple', 'strength': FIXED}),
    ('Fig. 5, right', 'ADE20K, scaled', {'kind': 'scaled', 'strength': FIXED}),
    (
      'Table 3',
      'Pascal Context, Pascal VOC',
      {'denoised': ('voc2012', 0), 'steps': IMAGENET_STEPS},
    ),
    ('Table 3', 'ADE20K, ADE20K', {'denoised': ('ade20k', 0)}),
    (
      'Table 3',
      'Cityscapes, fine and coarse',
      {'denoised': ('cityscapes/fine', 1), 'trained': DECODER},
    ),
    (
      'Table 4',
      'variable',
      {'width': 3, 'strength': (0.0, 0.0, (0.9, 0.95)), 'lr': 6e-5},
    ),
    ('Table 4', 'fixed', {'width': 3, 'strength': FIXED}),
    ('Fig. 6', 'DeP 1x', {'trained': WHOLE, 'kind': 'scaled'}),
    (
      'Fig. 6',
      'DDeP 2x',
      {'width': 2, 'lr': 1e-4, 'takes': ('encoder', 'decoder')},
    ),
    (
      'Table 6 and Fig. 1',
      'DDeP 1x',
      {
        'lr': 6e-5,
        'scales': 6,
        'steps': IMAGENET_STEPS,
        'denoised': ('imagenet/21k', 0),
        'trained': DECODER,
        'target': 'eps',
        'labeled': 'pascal_context',
      },
    ),
    ('Fig. 7', 'supervised 3x', {'width': 3, 'labeled': 'ade20k'}),
    (
      'Table 7',
      'DDeP',
      {'encoder': 'bit', 'scales': 1, 'tiling': 'sliding_window'},
    ),
  ],
)
def test_a_row_is_what_it_says(table, row, expected):
  [command] = [c for t, r, c, _ in rows() if (t, r) == (table, row)]
  for column in (0, -1):
    actual = facts(tables.config_of(command, column))
    assert {name: actual[name] for name in expected} == expected


def test_columns_differ_in_what_is_varied_last():
  by_name = {(t, r): c for t, r, c, _ in rows()}
  table_6 = by_name['Table 6 and Fig. 1', 'DDeP 1x']
  assert tables.config_of(table_6, 0).finetune.subset.fraction == 1.0
  assert tables.config_of(table_6, -1).finetune.subset.fraction == 0.01
  fig_6 = by_name['Fig. 6', 'DDeP 1x']
  assert tables.config_of(fig_6, 0).finetune.subset.labels == 2975
  assert tables.config_of(fig_6, -1).finetune.subset.labels == 100
  gammas = by_name['Fig. 5, left', 'ADE20K, gamma']
  assert tables.config_of(gammas, 0).denoise.noise.gamma == 0.999
  assert tables.config_of(gammas, -1).denoise.noise.gamma == 0.6
