"""Turns a block of a config into a frozen dataclass, or says what is wrong.

Below this line of a program there are no config dicts: a stage is built from
dataclasses whose fields are named, typed and documented.

  noise = options.build(noise.NoiseOptions, config.noise, 'config.noise')
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn

from runtime import errors

T = TypeVar('T')

# Fields that flax adds to every module; not for configs.
_FLAX = ('parent', 'name')


def build(cls: type[T], block: Any, path: str, **fixed: Any) -> T:
  """Builds a dataclass from a mapping, recursively.

  Args:
    cls: a dataclass; fields may be dataclasses, tuples, literals, unions with
      None, mappings and plain types. An int is accepted where a float is due.
    block: a mapping (a ConfigDict, for instance) from field to value.
    path: where the block stands, for messages: 'config.noise'.
    **fixed: fields that the program sets; the block may not.

  Raises:
    UserError: an unknown or missing field, a wrong type, or whatever the
      dataclass itself refuses; the message names the field.
  """
  if not isinstance(block, Mapping) and not hasattr(block, 'items'):
    raise errors.UserError(
      f'{path}: found {block!r}, expected a block of fields'
    )
  found = dict(block.items())
  fields = {
    field.name: field
    for field in dataclasses.fields(cls)
    if field.init and not (issubclass(cls, nn.Module) and field.name in _FLAX)
  }
  for name in found:
    if name in fixed:
      raise errors.UserError(f'{path}.{name}: set elsewhere, remove it here')
    if name not in fields:
      raise errors.UserError(f'{path}.{name}: {_unknown(name, list(fields))}')
  hints = _hints(cls)
  values = {
    name: _convert(hints[name], value, f'{path}.{name}')
    for name, value in found.items()
  }
  values.update(fixed)
  for name, field in fields.items():
    required = (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    )
    if required and name not in values:
      raise errors.UserError(f'{path}.{name}: missing, expected {hints[name]}')
  try:
    return cls(**values)
  except ValueError as error:
    raise errors.UserError(f'{path}: {error}') from error


def build_named(
  table: Mapping[str, type[T]],
  block: Mapping[str, Any],
  path: str,
  **fixed: Any,
) -> T:
  """Builds the class that `block['name']` names in the table.

  `fixed` fields come from the program, not from the config.
  """
  values = dict(block.items())
  if 'name' not in values:
    raise errors.UserError(
      f'{path}.name: missing, expected one of {", ".join(table)}'
    )
  name = values.pop('name')
  if name not in table:
    raise errors.UserError(f'{path}.name: {_unknown(name, list(table))}')
  return build(table[name], values, path, **fixed)


def complete(cls: type, block: Any) -> Any:
  """Adds the fields that a block leaves out, with their defaults.

  A command line can then override any field of an experiment, though its config
  states only what differs from the defaults. Nothing is checked; see `build`.

  Args:
    cls: a dataclass, as for `build`.
    block: a mapping from field to value; anything else is returned unchanged.

  Returns:
    A dict. Nested blocks are complete too, except those whose class is chosen
    by a name, such as an encoder.
  """
  if not hasattr(block, 'items'):
    return block
  values, hints = dict(block.items()), _hints(cls)
  for field in dataclasses.fields(cls):
    if field.name not in values:
      if field.default is not dataclasses.MISSING:
        values[field.name] = _to_block(field.default)
      elif field.default_factory is not dataclasses.MISSING:
        values[field.name] = _to_block(field.default_factory())
      continue
    hint = hints[field.name]
    for nested in (hint, *typing.get_args(hint)):
      if dataclasses.is_dataclass(nested):
        values[field.name] = complete(nested, values[field.name])
  return values


def _to_block(value: Any) -> Any:
  """Returns the value with dataclasses as dicts of their fields."""
  if dataclasses.is_dataclass(value):
    return {
      field.name: _to_block(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, tuple):
    return tuple(_to_block(item) for item in value)
  return value


def to_dict(value: Any) -> Any:
  """A JSON-like copy of dataclasses, tuples and mappings."""
  if dataclasses.is_dataclass(value):
    return {
      field.name: to_dict(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if hasattr(value, 'items'):
    return {str(name): to_dict(item) for name, item in value.items()}
  if isinstance(value, tuple | list):
    return [to_dict(item) for item in value]
  return value


def digest(value: Any) -> str:
  """16 hex digits that change whenever the settings do."""
  text = json.dumps(to_dict(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, path: str = '') -> list[str]:
  """Paths at which two JSON-like trees differ, as 'a.b: 1 -> 2'."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    return [
      line
      for name in sorted({*old, *new})
      for line in differences(
        old.get(name), new.get(name), f'{path}.{name}'.lstrip('.')
      )
    ]
  return [] if old == new else [f'{path}: {old} -> {new}']


def _unknown(name: str, allowed: list[str]) -> str:
  close = difflib.get_close_matches(name, allowed, 1)
  hint = f', did you mean {close[0]}?' if close else ''
  return f'unknown name{hint} Allowed: {", ".join(allowed)}'


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns the value as the hint wants it, or raises UserError."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin is typing.Literal:
    if value in arguments:
      return value
    raise _wrong(value, f'one of {", ".join(map(repr, arguments))}', path)
  if origin in (typing.Union, types.UnionType):
    return _convert_union(arguments, value, path)
  if origin is tuple:
    return _convert_tuple(arguments, value, path)
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else build(hint, value, path)
  if (origin or hint) is Sequence:
    return _convert_tuple((*arguments, Ellipsis), value, path)
  if (origin or hint) is Mapping:
    if hasattr(value, 'items'):
      return to_dict(value)
    raise _wrong(value, 'a block of fields', path)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type):
    exact = not isinstance(value, bool) or hint is bool
    if isinstance(value, hint) and exact:
      return value
    raise _wrong(value, hint.__name__, path)
  return value  # Types that only the program sets, such as arrays' dtypes.


def _convert_union(arguments: Any, value: Any, path: str) -> Any:
  for hint in arguments:
    if hint is type(None):
      if value is None:
        return None
      continue
    try:
      return _convert(hint, value, path)
    except errors.UserError as error:
      # The message of the last alternative, if it is the only one.
      message = error
  if sum(hint is not type(None) for hint in arguments) == 1:
    raise message
  names = [getattr(hint, '__name__', str(hint)) for hint in arguments]
  raise _wrong(value, ' or '.join(names), path)


def _convert_tuple(arguments: Any, value: Any, path: str) -> tuple:
  if not isinstance(value, tuple | list):
    raise _wrong(value, 'a tuple', path)
  if len(arguments) == 2 and arguments[1] is Ellipsis:
    arguments = (arguments[0],) * len(value)
  if len(arguments) != len(value):
    raise _wrong(value, f'{len(arguments)} values', path)
  return tuple(
    _convert(hint, item, f'{path}[{i}]')
    for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
  )


def _wrong(value: Any, expected: str, path: str) -> errors.UserError:
  return errors.UserError(
    f'{path}: found {value!r} ({type(value).__name__}), expected {expected}'
  )
