"""Rows of docs/methods/semi_tables.md: experiments beside U2PL's own."""

import collections

import pytest

from tests.support import tables
from u2pl import main as u2pl_main

ROWS = tables.read('semi_tables.md')
LABELS = {
  'Mean teacher': [662, 1323, 2646, 5291],
  'Mean teacher on Cityscapes': [186, 372, 744, 1488],
  'CPS': [662, 1323, 2646, 5291],
  'CPS on Cityscapes': [186, 372, 744, 1488],
  'CCT and GCT': [662, 1323, 2646, 5291],
  'CCT and GCT on Cityscapes': [186, 372, 744, 1488],
  'PseudoSeg and PC2Seg': [92, 183, 366, 732, 1464],
  'UniMatch': [92, 183, 366, 732, 1464],
  'UniMatch on Cityscapes': [186, 372, 744, 1488],
  'AEL': [662, 1323, 2646, 5291],
  'AEL on Cityscapes': [186, 372, 744, 1488],
}


def test_all_tables_are_there():
  assert collections.Counter(row.table for row in ROWS) == {
    'Mean teacher': 1,
    'Mean teacher on Cityscapes': 1,
    'CPS': 5,
    'CPS on Cityscapes': 5,
    'CCT and GCT': 4,
    'CCT and GCT on Cityscapes': 2,
    'PseudoSeg and PC2Seg': 2,
    'UniMatch': 3,
    'UniMatch on Cityscapes': 3,
    'AEL': 1,
    'AEL on Cityscapes': 4,
  }


@pytest.mark.parametrize(
  'row', ROWS, ids=lambda row: f'{row.table}, {row.name}'
)
def test_a_row_is_the_experiment_that_it_names(row):
  study, cells = tables.cells(row.command)
  assert (study.report, len(study.seeds)) == ('val/miou', 3)
  assert row.num_values in (1, len(cells))
  configs = [tables.config_of(row.command, i) for i in range(len(cells))]
  labels = [config.train.subset.labels for config in configs]
  assert labels == LABELS[row.table]
  learn = configs[0].train.learn
  name = row.name.partition(',')[0]
  assert learn.name == {
    'Mean teacher': 'mt_mse',
    'UniMatch V2': 'unimatch_v2',
    'UniMatch': 'unimatch',
    'CCT': 'cct',
    'GCT': 'gct',
    'PseudoSeg': 'pseudoseg',
    'PC2Seg-like': 'pc2seg',
    'AEL': 'ael',
    'U2PL on AEL': 'u2pl_ael',
    'U2PL+ on AEL': 'u2pl_ael',
  }.get(name, 'cps')
  assert (configs[0].network.decoder.name == 'psp') == ('PSPNet' in row.name)
  if learn.name == 'cps':
    assert learn.cutmix == ('CutMix' in name)
  if learn.name == 'u2pl_ael':
    assert (learn.denoise == 'raw') == ('U2PL+' in name)
    released = learn.entropy_drop == 'lowest_released'
    assert released == ('as released' in row.name)
  encoder = configs[0].network.encoder
  assert (encoder.name == 'vit') == ('ViT' in row.name)
  if encoder.name != 'vit':
    depth = 50 if 'ResNet-50' in row.name else 101
    blocks = encoder.get('blocks', (3, 4, 23, 3))
    assert blocks == ((3, 4, 6, 3) if depth == 50 else (3, 4, 23, 3))
  assert [*u2pl_main.PROGRAM.build(configs[0])] == ['train', 'evaluate']
