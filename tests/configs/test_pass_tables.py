"""Rows of docs/methods/pass_tables.md: experiments of the LUSS paper."""

import collections

from configs import luss_objectives
from pass_luss import main
from tests.support import tables


def rows():
  return tables.read('pass_tables.md')


def test_all_rows_are_there():
  assert collections.Counter(row.table for row in rows()) == {
    'Distance matching, ImageNet-S 300': 8,
    'Semi-supervised, ImageNet-S 300': 8,
    'ImageNet-S 919': 2,
  }
  titles = list(luss_objectives.TITLES.values())
  for table in ('Distance matching', 'Semi-supervised'):
    names = [row.name for row in rows() if row.table.startswith(table)]
    assert sorted(names) == sorted(titles)


def test_every_command_is_an_experiment_of_its_row():
  for row in rows():
    config = tables.config_of(row.command, 0)
    assert set(main.PROGRAM.build(config)) > {'represent', 'distance', 'semi'}
    assert config.stages == ('represent', 'distance', 'semi', 'segment_semi')
    names = {v: k for k, v in luss_objectives.TITLES.items()}
    learn = config.represent.learn
    assert learn[names[row.name.partition(',')[0]]] is not None
    made, _ = tables.cells(row.command)
    is_semi = 'semi' in (row.table + row.name).lower()
    stage = 'segment_semi' if is_semi else 'distance'
    assert made.report == f'{stage}.val/miou'
