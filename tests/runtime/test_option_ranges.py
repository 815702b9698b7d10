"""Ranges of options: refused values, and the classes that state them."""

import dataclasses
from typing import Annotated

import pytest

from runtime import option_ranges
from runtime.option_ranges import (
  AtLeastOne,
  NonNegative,
  Positive,
  Range,
  UnitInterval,
)


@dataclasses.dataclass(frozen=True)
class Outer(option_ranges.CheckedOptions):
  rate: Positive[float] = 0.5
  steps: NonNegative[int] = 0
  batch: AtLeastOne = 1
  decay: UnitInterval = 1.0
  hue: Annotated[float, Range(0, 0.4)] = 0.4
  name: str = ''


@dataclasses.dataclass(frozen=True)
class Inner(Outer):
  steps: AtLeastOne = 2

  def __post_init__(self):
    super().__post_init__()
    if self.name == 'taken':
      raise ValueError('name: expected another one')


def test_bounds_are_in_the_range():
  bounds = {'rate': 1e-9, 'steps': 0, 'batch': 1, 'decay': 0, 'hue': 0}
  accepted = dataclasses.asdict(Outer(**bounds))
  assert accepted == {**bounds, 'name': ''}
  assert Outer(decay=1, hue=0.4).decay == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rate': 0.0}, 'rate: expected more than 0, got 0.0'),
    ({'steps': -1}, 'steps: expected 0 or more, got -1'),
    ({'batch': 0}, 'batch: expected 1 or more, got 0'),
    ({'decay': 1.5}, 'decay: expected 0 to 1, got 1.5'),
    ({'hue': 0.5}, 'hue: expected 0 to 0.4, got 0.5'),
    # Not a number is neither above nor below a bound.
    ({'rate': float('nan')}, 'rate: expected more than 0, got nan'),
    ({'steps': float('nan')}, 'steps: expected 0 or more, got nan'),
    ({'decay': float('nan')}, 'decay: expected 0 to 1, got nan'),
  ],
)
def test_numbers_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    Outer(**fields)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rate': 0.0}, 'rate: expected more than 0'),
    ({'steps': 0}, 'steps: expected 1 or more'),
    ({'name': 'taken'}, 'name: expected another one'),
  ],
)
def test_a_subclass_inherits_and_redeclares_ranges(fields, message):
  with pytest.raises(ValueError, match=message):
    Inner(**fields)
