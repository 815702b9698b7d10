import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
import pytest

from runtime import errors, options


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float
  sizes: tuple[int, ...] = ()

  def __post_init__(self):
    if self.rate < 0:
      raise ValueError(f'rate: expected 0 or more, got {self.rate}')


@dataclasses.dataclass(frozen=True)
class Outer:
  kind: Literal['a', 'b']
  inner: Inner
  pair: tuple[float, float] = (0.0, 1.0)
  maybe: int | tuple[int, int, int] | None = None
  free: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  flag: bool = False


@dataclasses.dataclass(frozen=True)
class Whole:
  kind: str
  inner: Inner
  maybe: Inner | None = None
  others: tuple[Inner, ...] = (Inner(3.0, (4,)),)
  free: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def config(**fields):
  return ml_collections.ConfigDict(
    {'kind': 'a', 'inner': {'rate': 1}, **fields}
  )


def test_builds_nested_blocks_and_widens_ints():
  actual = options.build_options(
    Outer,
    config(inner={'rate': 2, 'sizes': (3, 4)}, pair=(1, 2), free={'x': 1}),
    'config',
  )
  expected = Outer('a', Inner(2.0, (3, 4)), pair=(1.0, 2.0), free={'x': 1})
  assert actual == expected
  assert isinstance(actual.inner.rate, float)


def test_completes_a_block_with_defaults():
  completed = options.complete_options(Whole, config(maybe={'rate': 2.0}))
  assert completed == {
    'kind': 'a',
    'inner': {'rate': 1, 'sizes': ()},
    'maybe': {'rate': 2.0, 'sizes': ()},
    'others': ({'rate': 3.0, 'sizes': (4,)},),
    'free': {},
  }
  # What no mapping is, and unknown fields, are left for `build` to refuse.
  assert options.complete_options(Whole, 3) == 3
  broken = options.complete_options(Whole, config(iner={'rate': 1}))
  with pytest.raises(errors.UserError, match='did you mean inner'):
    options.build_options(Whole, broken, 'config')


@dataclasses.dataclass(frozen=True)
class Named:
  name: Literal['other']
  size: int = 3


@dataclasses.dataclass(frozen=True)
class Chosen:
  inner: Inner | Named


@pytest.mark.parametrize(
  ('block', 'expected'),
  [({'rate': 1}, Inner(1.0)), ({'name': 'other'}, Named('other'))],
)
def test_a_name_selects_one_of_several_classes(block, expected):
  completed = options.complete_options(Chosen, {'inner': block})
  assert completed['inner'].keys() == options.options_to_dict(expected).keys()
  for each in (completed, {'inner': block}):
    assert options.build_options(Chosen, each, 'config').inner == expected


@pytest.mark.parametrize(
  ('block', 'message'),
  [
    ({'name': 'othr'}, r'config.inner.name: unknown name, did you mean other'),
    ({'name': 'other', 'rate': 1}, r'config.inner.rate: unknown name'),
    ({'size': 1}, r'config.inner.size: unknown name'),
  ],
)
def test_fields_of_another_class_are_refused(block, message):
  with pytest.raises(errors.UserError, match=message):
    options.build_options(Chosen, {'inner': block}, 'config')


@pytest.mark.parametrize('fields', [{}, {'maybe': {'rate': 1}}, {'others': ()}])
def test_complete_blocks_build_the_same(fields):
  block = config(**fields)
  completed = options.complete_options(Whole, block)
  assert options.build_options(
    Whole, completed, 'config'
  ) == options.build_options(Whole, block, 'config')


@pytest.mark.parametrize('value', [None, 7, (1, 2, 3)])
def test_unions_accept_each_alternative(value):
  assert (
    options.build_options(Outer, config(maybe=value), 'config').maybe == value
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'iner': {}}, r'config\.iner: unknown name, did you mean inner\? Allowed'),
    (
      {'inner': {'rate': 1, 'size': ()}},
      r'config\.inner\.size: unknown name, did you mean sizes\?',
    ),
    (
      {'inner': {}},
      r'rate: missing, expected float; the block may hold rate, sizes',
    ),
    (
      {'inner': {'rate': 'x'}},
      r"config\.inner\.rate: expected float, got 'x' \(str\)",
    ),
    ({'inner': {'rate': True}}, r'expected float, got True \(bool\)'),
    ({'inner': {'rate': float('nan')}}, 'rate: expected a number, got nan'),
    ({'inner': {'rate': 10**400}}, r'rate: expected float, got 10+ \(int\)'),
    (
      {'inner': {'rate': -1}},
      r'config\.inner: rate: expected 0 or more, got -1\.0',
    ),
    ({'inner': 3}, r'config\.inner: expected a block of fields, got 3'),
    ({'kind': 'c'}, r"config\.kind: expected one of 'a', 'b', got 'c'"),
    ({'pair': (1, 2, 3)}, r'config\.pair: expected 2 values'),
    ({'pair': (1, 'x')}, r"config\.pair\[1\]: expected float, got 'x'"),
    ({'maybe': 'x'}, r"config\.maybe: expected int or tuple or None, got 'x'"),
    ({'flag': 1}, r'config\.flag: expected bool, got 1 \(int\)'),
  ],
)
def test_the_error_names_the_wrong_field(fields, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    options.build_options(Outer, config(**fields), 'config')
  assert '\n' not in str(caught.value)


def test_build_named_selects_a_class_by_name():
  table = {'inner': Inner}
  actual = options.build_named_options(
    table, {'name': 'inner', 'rate': 1.0}, 'net'
  )
  assert actual == Inner(1.0)
  with pytest.raises(errors.UserError, match='net.name: unknown name, did you'):
    options.build_named_options(table, {'name': 'iner'}, 'net')
  with pytest.raises(errors.UserError, match='net.name: missing'):
    options.build_named_options(table, {'rate': 1.0}, 'net')
  with pytest.raises(errors.UserError, match='net.rate: set elsewhere'):
    options.build_named_options(
      table, {'name': 'inner', 'rate': 1.0}, 'net', rate=2.0
    )


def test_digest_depends_on_content_alone():
  one = options.options_digest(Inner(1.0, (1, 2)))
  assert one == options.options_digest({'sizes': [1, 2], 'rate': 1.0})
  assert one != options.options_digest(Inner(1.0, (2, 1)))


def test_differences_name_the_paths():
  old = {'a': 1, 'b': {'c': 2, 'd': 3}}
  new = {'a': 1, 'b': {'c': 5}, 'e': 4}
  assert options.option_differences(old, new) == [
    'b.c: 2 -> 5',
    'b.d: 3 -> None',
    'e: None -> 4',
  ]


@dataclasses.dataclass(frozen=True)
class Source:
  name: str
  folder: str = options.location_option(default='')


def test_locations_are_found_by_their_paths():
  settings = {
    'data': Source('a', 'x'),
    'also': ({'data': Source('b', 'y')},),
    'rate': 1.0,
  }
  assert options.location_option_paths({'settings': settings}) == {
    'settings.data.folder',
    'settings.also.0.data.folder',
  }
  moved = {**settings, 'also': ({'data': Source('b', 'z')},)}
  old, new = map(options.options_to_dict, (settings, moved))
  assert options.differing_options(old, new) == {
    'also.0.data.folder': ('y', 'z')
  }
  assert options.omit_option_fields(settings['data'], 'folder') == {'name': 'a'}


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('free', True),
    ('inner', False),
    ('kind', False),
    ('inner.rate', False),
    ('nowhere.at.all', False),
  ],
)
def test_blocks_whose_class_is_chosen_by_a_name(path, expected):
  assert options.is_option_chosen_by_name(Whole, path) is expected
