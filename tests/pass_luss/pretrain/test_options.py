"""Objectives as a config states them."""

import pytest

from pass_luss.pretrain import heads
from pass_luss.pretrain import options as options_lib
from pass_luss.pretrain.objectives import (
  byol,
  d2s,
  moco,
  p2p,
  pixpro,
  simclr,
)
from tests.pass_luss.pretrain import training

SIZES = heads.HeadSizes(8, 6, 5)


@pytest.mark.parametrize(
  ('options', 'names', 'head_names'),
  [
    (
      options_lib.ObjectiveOptions(),
      ('swav', 'd2s', 'p2p'),
      {'clusters', 'shallow3', 'pixels'},
    ),
    (
      options_lib.ObjectiveOptions(
        alignment=None,
        shallow=d2s.D2SOptions((3, 2)),
        pixpro=pixpro.PixproOptions(),
      ),
      ('swav', 'd2s', 'pixpro'),
      {'clusters', 'shallow3', 'shallow2', 'pixpro'},
    ),
    (
      options_lib.ObjectiveOptions(
        clusters=None,
        alignment=None,
        shallow=d2s.D2SOptions(()),
        pixpro=pixpro.PixproOptions(),
      ),
      ('pixpro',),
      {'pixpro'},
    ),
  ],
)
def test_objectives_and_their_heads(options, names, head_names):
  objectives = options_lib.build_objectives(options, SIZES)
  assert tuple(o.name for o in objectives) == names
  assert (
    set(options_lib.build_objective_heads(objectives, 'float32')) == head_names
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'clusters': None},
      'clusters: expected them or one of pixpro, .*, got None everywhere',
    ),
    (
      {'clusters': None, 'pixpro': pixpro.PixproOptions()},
      r'shallow.stages: expected \(\) without clusters.*got \(3,\)',
    ),
    (
      {
        'clusters': None,
        'pixpro': pixpro.PixproOptions(),
        'shallow': d2s.D2SOptions(()),
        'alignment': p2p.P2POptions('clustering'),
      },
      "alignment.kind: expected one without prototypes.*got 'clustering'",
    ),
    (
      {'moco': moco.MocoOptions(), 'byol': byol.ByolOptions()},
      'byol: expected None beside moco, as at most one of .* is trained',
    ),
    (
      {
        'pixpro': pixpro.PixproOptions(),
        'simclr': simclr.SimclrOptions(),
      },
      'simclr: expected None beside pixpro',
    ),
  ],
)
def test_contradictions_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    options_lib.ObjectiveOptions(**fields)


@pytest.mark.parametrize('name', training.COMPARED)
def test_each_objective_takes_p2p_and_swav_with_d2s(name):
  alone = options_lib.build_objectives(training.compared_options(name), SIZES)
  assert [each.name for each in alone] == [name]
  together = training.compared_options(
    name,
    clusters=training.CLUSTERS,
    alignment=p2p.P2POptions(),
    shallow=d2s.D2SOptions((3,)),
  )
  names = [each.name for each in options_lib.build_objectives(together, SIZES)]
  assert names == ['swav', 'd2s', 'p2p', name]


def test_a_head_without_width_is_refused():
  with pytest.raises(ValueError, match='prototypes: expected 2 or more, got 1'):
    heads.HeadSizes(prototypes=1)
