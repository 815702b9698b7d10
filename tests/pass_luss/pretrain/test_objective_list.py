"""Objectives as a config states them."""

import pytest

from pass_luss.pretrain import (
  comparator_options,
  objective_choice,
  objective_list,
  objective_options,
)
from tests.pass_luss.pretrain import training

SIZES = objective_options.HeadSizes(8, 6, 5)


@pytest.mark.parametrize(
  ('options', 'names', 'head_names'),
  [
    (
      objective_choice.ObjectiveOptions(),
      ('swav', 'd2s', 'p2p'),
      {'clusters', 'shallow3', 'pixels'},
    ),
    (
      objective_choice.ObjectiveOptions(
        alignment=None,
        shallow=objective_options.D2SOptions((3, 2)),
        pixpro=objective_options.PixproOptions(),
      ),
      ('swav', 'd2s', 'pixpro'),
      {'clusters', 'shallow3', 'shallow2', 'pixpro'},
    ),
    (
      objective_choice.ObjectiveOptions(
        clusters=None,
        alignment=None,
        shallow=objective_options.D2SOptions(()),
        pixpro=objective_options.PixproOptions(),
      ),
      ('pixpro',),
      {'pixpro'},
    ),
  ],
)
def test_objectives_and_their_heads(options, names, head_names):
  objectives = objective_list.build_objectives(options, SIZES)
  assert tuple(o.name for o in objectives) == names
  assert (
    set(objective_list.build_objective_heads(objectives, 'float32'))
    == head_names
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'clusters': None},
      'clusters: expected them or one of pixpro, .*, got None everywhere',
    ),
    (
      {'clusters': None, 'pixpro': objective_options.PixproOptions()},
      r'shallow.stages: expected \(\) without clusters.*got \(3,\)',
    ),
    (
      {
        'clusters': None,
        'pixpro': objective_options.PixproOptions(),
        'shallow': objective_options.D2SOptions(()),
        'alignment': objective_options.P2POptions('clustering'),
      },
      "alignment.kind: expected one without prototypes.*got 'clustering'",
    ),
    (
      {
        'moco': comparator_options.MocoOptions(),
        'byol': comparator_options.ByolOptions(),
      },
      'byol: expected None beside moco, as at most one of .* is trained',
    ),
    (
      {
        'pixpro': objective_options.PixproOptions(),
        'simclr': comparator_options.SimclrOptions(),
      },
      'simclr: expected None beside pixpro',
    ),
  ],
)
def test_contradictions_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    objective_choice.ObjectiveOptions(**fields)


@pytest.mark.parametrize('name', training.COMPARED)
def test_options_say_how_many_views_their_objectives_read(name):
  options = training.compared_options(name)
  (own,) = options.trained.values()
  (built,) = objective_list.build_objectives(options, SIZES)
  keys = built.momentum_views if built.needs_momentum else ()
  assert own.num_views == 1 + max({*built.views, *keys})
  assert [*options.trained] == [built.name]


def test_each_field_of_a_method_has_an_objective():
  assert tuple(objective_list.METHODS) == objective_choice.METHODS


@pytest.mark.parametrize('name', training.COMPARED)
def test_each_objective_takes_p2p_and_swav_with_d2s(name):
  alone = objective_list.build_objectives(
    training.compared_options(name), SIZES
  )
  assert [each.name for each in alone] == [name]
  together = training.compared_options(
    name,
    clusters=training.CLUSTERS,
    alignment=objective_options.P2POptions(),
    shallow=objective_options.D2SOptions((3,)),
  )
  names = [
    each.name for each in objective_list.build_objectives(together, SIZES)
  ]
  assert names == ['swav', 'd2s', 'p2p', name]


def test_a_head_without_width_is_refused():
  with pytest.raises(ValueError, match='prototypes: expected 2 or more, got 1'):
    objective_options.HeadSizes(prototypes=1)
