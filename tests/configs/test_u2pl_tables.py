"""Rows of docs/methods/u2pl_tables.md: experiments of the papers."""

import collections
import pathlib
import re
import shlex

import pytest

from segcore.experiment import command as command_lib
from tests.configs.u2pl_settings import facts, rates
from tests.support import tables
from u2pl import main as u2pl_main

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures('networks_checked_once')


def rows():
  return tables.read('u2pl_tables.md')


def of_row(table, row, column=0):
  [command] = [c for t, r, c, _ in rows() if (t, r) == (table, row)]
  return tables.config_of(command, column)


def test_all_tables_are_there():
  assert collections.Counter(table for table, _, _, _ in rows()) == {
    'VOC 2012, classic': 7,
    'VOC 2012 with SBD, blender': 7,
    'Table II': 7,
    'Table IV': 11,
    'Table III': 4,
    'What the papers leave open': 6,
  }


def test_every_command_is_an_experiment():
  """Nothing of what they need is here: neither data nor weights."""
  for _, _, command, _ in reversed(rows()):
    stages = u2pl_main.PROGRAM.build_stages(tables.config_of(command, -1))
    assert [s.name for s in stages] == ['train', 'evaluate'], command


def test_a_row_has_a_column_for_each_number():
  for table, row, command, count in rows():
    made, found = tables.cells(command)
    voc = made.config.startswith('configs/u2pl_voc.py')
    split = 'val_framed' if voc else 'val'
    assert made.report == f'{split}/miou', (table, row)
    assert made.also == (('val/miou',) if voc else ())
    assert len(made.seeds) == 3, (table, row)
    if count > 1:
      assert len(found) == count, (table, row)
    if table == 'What the papers leave open':
      assert len(found) == row.count(' / ') + 1


def test_columns_are_the_partitions_of_the_papers():
  for table, split, labels in (
    ('VOC 2012, classic', 'train', [92, 183, 366, 732, 1464]),
    ('VOC 2012 with SBD, blender', 'train_aug', [662, 1323, 2646, 5291]),
    ('Table II', 'train', [186, 372, 744, 1488]),
  ):
    for found, _, command, _ in rows():
      if found == table:
        blocks = [
          tables.config_of(command, column).train
          for column in range(len(labels))
        ]
        assert [block.subset.labels for block in blocks] == labels
        assert {block.split for block in blocks} == {split}


def test_rows_of_a_table_differ():
  settings = collections.defaultdict(list)
  for table, _, command, _ in rows():
    if table != 'What the papers leave open':
      settings[table].append(facts(tables.config_of(command, 0)))
  for table, found in settings.items():
    assert len({repr(fact) for fact in found}) == len(found), table


def test_a_row_of_two_tables_is_computed_once():
  by_name = {(t, r): c for t, r, c, _ in rows()}
  for row, in_four in (
    ('CutMix', 'baseline (CutMix)'),
    ('U2PL', 'U2PL'),
    ('U2PL+', 'U2PL+'),
  ):
    _, blender = tables.cells(by_name['VOC 2012 with SBD, blender', row])
    _, [cell] = tables.cells(by_name['Table IV', in_four])
    assert blender[2].name == cell.name


LABELS_ALONE = {'mixing': None, 'contrast': False, 'reverse': None}
CUTMIX = {
  'mixing': 'cutmix',
  'filtered': False,
  'reverse': 0,
  'denoise': 'off',
  'contrast': False,
  'momentum': 0,
}
U2PL = {
  'mixing': 'cutmix',
  'filtered': True,
  'reverse': 0,
  'denoise': 'off',
  'contrast': True,
  'bank': True,
  'ranks': (3, 20),
  'negatives': 'unreliable',
  'anchors': 'paper',
  'weight': 0.1,
  'dynamic': True,
  'momentum': 0,
}
PLUS = {'reverse': 0.1, 'denoise': 'raw', 'momentum': 0.999}


@pytest.mark.parametrize(
  'table', ['VOC 2012, classic', 'VOC 2012 with SBD, blender', 'Table II']
)
@pytest.mark.parametrize(
  ('row', 'expected'),
  [
    ('SupOnly', LABELS_ALONE),
    ('SupOnly, equal steps', LABELS_ALONE),
    ('MT', {**CUTMIX, 'mixing': 'none'}),
    ('ClassMix', {**CUTMIX, 'mixing': 'classmix'}),
    ('CutMix', CUTMIX),
    ('U2PL', U2PL),
    ('U2PL+', {**U2PL, **PLUS}),
  ],
)
def test_systems(table, row, expected):
  for column in (0, -1):
    found = facts(of_row(table, row, column))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
  ('row', 'expected'),
  [
    ('baseline (CutMix)', CUTMIX),
    (
      'contrast',
      {
        **U2PL,
        'bank': False,
        'dynamic': False,
        'ranks': False,
        'negatives': 'reliable',
      },
    ),
    ('contrast, bank, PRT, Un', {**U2PL, 'dynamic': False}),
    ('contrast, bank, DPA, Un', {**U2PL, 'ranks': False}),
    ('contrast, bank, DPA, PRT', {**U2PL, 'negatives': 'reliable'}),
    ('U2PL', U2PL),
    ('PD', {**CUTMIX, 'denoise': 'raw'}),
    ('SCE', {**CUTMIX, 'reverse': 0.1}),
    ('PD, SCE', {**CUTMIX, 'denoise': 'raw', 'reverse': 0.1}),
    ('PD, SCE, MP', {**CUTMIX, **PLUS}),
    ('U2PL+', {**U2PL, **PLUS}),
  ],
)
def test_parts(row, expected):
  found = facts(of_row('Table IV', row))
  assert {name: found[name] for name in expected} == expected


def test_where_negatives_come_from():
  found = [
    facts(tables.config_of(command, 0))
    for table, _, command, _ in rows()
    if table == 'Table III'
  ]
  kinds = ['unreliable', 'reliable', 'all', 'none']
  assert found == [{**found[0], 'negatives': kind} for kind in kinds]


def test_what_is_left_open():
  def values(row, get):
    [command] = [c for _, r, c, _ in rows() if r.startswith(row)]
    _, found = tables.cells(command)
    return [get(tables.config_of(command, i).train) for i in range(len(found))]

  assert values('weight', lambda train: train.learn.contrast.weight) == [
    *(0.1, 0.25, 1.0)
  ]
  assert values(
    'anchors', lambda train: train.learn.contrast.anchor_entropy
  ) == ['paper', 'released']
  assert values('border', lambda train: train.crop.fill) == ['mean', 'paper']
  assert values('ξ₂', lambda train: train.learn.consistency.reverse) == [
    *(0.1, 0.5)
  ]
  assert values('distances', lambda t: t.learn.consistency.denoise) == [
    *('raw', 'l2')
  ]
  assert values('teacher', lambda train: train.learn.teacher.statistics) == [
    *('own', 'ema', 'copy')
  ]


def test_the_decoders_rate_of_the_paper():
  [flag] = re.findall(
    r'`(--config\.train\S+=".*")`', tables.path_of('u2pl_tables.md').read_text()
  )
  config = command_lib.parse_command(
    ['main', f'--config={ROOT}/configs/u2pl_cityscapes.py', *shlex.split(flag)]
  ).config
  u2pl_main.PROGRAM.build_stages(config)
  assert rates(config) == {'encoder': 1e-2, 'decoder': 1e-1, 'heads': 1e-1}
