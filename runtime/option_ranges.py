"""Ranges of the numbers in options, stated in the types of their fields.

  @dataclasses.dataclass(frozen=True)
  class SwavOptions(option_ranges.CheckedOptions):
    temperature: Positive[float] = 0.1
    queue: NonNegative[int] = 0
    decay: UnitInterval = 0.99

A number out of its range is refused where the options are built.
"""

import dataclasses
from typing import Annotated, Any, TypeVar

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Range:
  """Range of a number, in the metadata of an `Annotated` type.

  Attributes:
    least: lower bound.
    most: inclusive upper bound; None for no bound.
    exclusive: whether the lower bound is outside of the range.
  """

  least: int | float
  most: int | float | None = None
  exclusive: bool = False

  def check(self, name: str, value: int | float) -> None:
    """Checks that a number is in the range.

    Args:
      name: name of the field, for the message.
      value: its value.

    Raises:
      ValueError: the number is out of range.
    """
    if self.exclusive:
      accepted, expected = value > self.least, f'more than {self.least}'
    elif self.most is None:
      accepted, expected = value >= self.least, f'{self.least} or more'
    else:
      accepted = self.least <= value <= self.most
      expected = f'{self.least} to {self.most}'
    if not accepted:  # Not a number is in no range.
      raise ValueError(f'{name}: expected {expected}, got {value}')


Positive = Annotated[T, Range(0, exclusive=True)]
NonNegative = Annotated[T, Range(0)]
AtLeastOne = Annotated[int, Range(1)]
UnitInterval = Annotated[float, Range(0, 1)]


class CheckedOptions:
  """Base class of dataclasses whose fields are in the ranges of their types.

  A subclass with further checks calls `super().__post_init__()` first.
  """

  def __post_init__(self):
    """Raises ValueError that names the first field out of its range."""
    for field in dataclasses.fields(self):
      for check in _ranges_of(field.type):
        check.check(field.name, getattr(self, field.name))


def _ranges_of(hint: Any) -> list[Range]:
  """Returns the ranges in the metadata of a type; [] of a plain type."""
  return [
    each for each in getattr(hint, '__metadata__', ()) if type(each) is Range
  ]
