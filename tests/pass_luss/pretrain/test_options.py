"""Objectives as a config states them."""

import pytest

from pass_luss.pretrain import heads
from pass_luss.pretrain import options as options_lib
from pass_luss.pretrain.objectives import d2s, p2p, pixpro

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
      'clusters and pixpro: expected one of them or both, got None twice',
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
  ],
)
def test_contradictions_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    options_lib.ObjectiveOptions(**fields)


def test_a_head_without_width_is_refused():
  with pytest.raises(ValueError, match='prototypes: expected 2 or more, got 1'):
    heads.HeadSizes(prototypes=1)
