"""Frozen dataclasses from the blocks of a config, with checked fields.

A config dict is opened here and nowhere below: a stage is built from
dataclasses whose fields are named, typed and documented.

  noise = options.build_options(
    noise.NoiseOptions, config.noise, 'config.noise'
  )
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from runtime import errors

T = TypeVar('T')

# Fields that flax adds to every module; configs do not set them.
_FLAX = {'parent', 'name'}
# Key of the metadata of a field that is a location.
_LOCATION = 'location'


def build_options(cls: type[T], block: Any, path: str, **fixed: Any) -> T:
  """Builds a dataclass from a mapping, recursively.

  Args:
    cls: dataclass to build; its fields may be dataclasses, tuples, literals,
      unions with None, mappings and plain types. An int is accepted for a
      float. Of a union of dataclasses the field `name` of the block selects
      one, which declares it as a Literal; a block without it is the first one.
    block: mapping (a ConfigDict, for instance) from field to value.
    path: path of the block in the config, for messages: 'config.noise'.
    **fixed: values of fields that the program sets and the block must not.

  Raises:
    UserError: a field is unknown or missing, its type is wrong, or the
      dataclass raises a ValueError; the message names the field.
  """
  if not isinstance(block, Mapping) and not hasattr(block, 'items'):
    raise errors.UserError(f'{path}: expected a block of fields, got {block!r}')
  given = dict(block.items())
  fields = {
    field.name: field for field in dataclasses.fields(cls) if field.init
  }
  # Only modules have both. To ask flax itself, it would have to be imported.
  if fields.keys() >= _FLAX:
    fields = {name: fields[name] for name in fields if name not in _FLAX}
  for name in given:
    if name in fixed:
      raise errors.UserError(f'{path}.{name}: set elsewhere, remove it here')
    if name not in fields:
      raise errors.UserError(
        f'{path}.{name}: {describe_unknown_name(name, list(fields))}'
      )
  hints = _hints(cls)
  values = {
    name: _convert(hints[name], value, f'{path}.{name}')
    for name, value in given.items()
  }
  values.update(fixed)
  for name, field in fields.items():
    required = (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    )
    if required and name not in values:
      hint = hints[name]
      expected = hint.__name__ if isinstance(hint, type) else hint
      raise errors.UserError(
        f'{path}.{name}: missing, expected {expected}; the block may hold '
        f'{", ".join(fields)}'
      )
  try:
    return cls(**values)
  except ValueError as error:
    raise errors.UserError(f'{path}: {error}') from error


def build_named_options(
  table: Mapping[str, type[T]],
  block: Mapping[str, Any],
  path: str,
  **fixed: Any,
) -> T:
  """Builds an object of the class that the field `name` of a block selects.

  Args:
    table: classes by name.
    block: mapping with the field `name` and the fields of that class.
    path: path of the block in the config, for messages.
    **fixed: values of fields that the program sets and the block must not.

  Raises:
    UserError: the name is missing or not in the table, or `build_options`
      refuses the block.
  """
  values = dict(block.items())
  if 'name' not in values:
    raise errors.UserError(
      f'{path}.name: missing, expected one of {", ".join(table)}'
    )
  name = values.pop('name')
  if name not in table:
    raise errors.UserError(
      f'{path}.name: {describe_unknown_name(name, list(table))}'
    )
  return build_options(table[name], values, path, **fixed)


def is_option_chosen_by_name(cls: type, path: str) -> bool:
  """Returns whether the class of a block is chosen by its field `name`.

  Such a block is a mapping, as that of an encoder: with another name it has
  other fields.

  Args:
    cls: dataclass of the outermost block.
    path: path of the block in the outermost one: 'network.encoder'.
  """
  *parents, last = path.split('.')
  for name in parents:
    nested = _dataclasses_of(_hints(cls).get(name))
    if not nested:
      return False
    cls = nested[0]
  hint = _hints(cls).get(last)
  return any(
    (typing.get_origin(h) or h) is Mapping
    for h in (hint, *typing.get_args(hint))
  )


def complete_options(cls: type, block: Any) -> Any:
  """Adds the fields that a block leaves out, with their defaults.

  A command line can then override any field of an experiment, though its config
  states only what differs from the defaults. The fields are checked later, by
  `build_options`.

  Args:
    cls: dataclass of the block.
    block: mapping from field to value; any other value is returned unchanged.

  Returns:
    A dict of all fields. Nested blocks are complete too, except those whose
    class is chosen by a name, such as an encoder.
  """
  if not hasattr(block, 'items'):
    return block
  values, hints = _to_block(block), _hints(cls)
  for field in dataclasses.fields(cls):
    if field.name not in values:
      if field.default is not dataclasses.MISSING:
        values[field.name] = _to_block(field.default)
      elif field.default_factory is not dataclasses.MISSING:
        values[field.name] = _to_block(field.default_factory())
      continue
    nested = _class_of_block(hints[field.name], values[field.name])
    if nested is not None:
      values[field.name] = complete_options(nested, values[field.name])
  return values


def _class_of_block(hint: Any, block: Any) -> type | None:
  """Returns the dataclass that a hint has for a block; None if it has none.

  Of several in a union it is the one whose field `name`, a Literal, may have
  the block's `name`; the first one for a block without a name.
  """
  return _choose_class(_dataclasses_of(hint), block)


def _choose_class(classes: list[type], block: Any) -> type | None:
  name = block.get('name') if hasattr(block, 'get') else None
  named = [each for each in classes if name in _names_of(each)]
  return next(iter(named or classes), None)


def _dataclasses_of(hint: Any) -> list[type]:
  return [
    each
    for each in (hint, *typing.get_args(hint))
    if dataclasses.is_dataclass(each)
  ]


def _names_of(cls: type) -> tuple[Any, ...]:
  """Returns the values of a dataclass's field `name`; () without one."""
  return typing.get_args(_hints(cls).get('name'))


def _items(value: Any) -> dict[Any, Any] | None:
  """Returns the items of a dataclass or a mapping; None for other values."""
  if dataclasses.is_dataclass(value):
    fields = dataclasses.fields(value)
    return {field.name: getattr(value, field.name) for field in fields}
  return dict(value.items()) if hasattr(value, 'items') else None


def _to_block(value: Any) -> Any:
  """Copies a value, with dataclasses and mappings as dicts."""
  if (items := _items(value)) is not None:
    return {name: _to_block(item) for name, item in items.items()}
  if isinstance(value, tuple):
    return tuple(_to_block(item) for item in value)
  return value


def options_to_dict(value: Any) -> Any:
  """Copies dataclasses, tuples and mappings to dicts and lists, as in JSON."""
  if (items := _items(value)) is not None:
    return {str(name): options_to_dict(item) for name, item in items.items()}
  if isinstance(value, tuple | list):
    return [options_to_dict(item) for item in value]
  return value


def options_digest(value: Any) -> str:
  """Computes 16 hexadecimal digits of a hash of the settings."""
  text = json.dumps(options_to_dict(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def option_differences(old: Any, new: Any) -> list[str]:
  """Lists the differences of two nested dicts, each as 'a.b: 1 -> 2'."""
  return [
    f'{path}: {before} -> {after}'
    for path, (before, after) in differing_options(old, new).items()
  ]


def differing_options(
  old: Any, new: Any, path: str = ''
) -> dict[str, tuple[Any, Any]]:
  """Returns the fields in which two nested dicts differ, by their path.

  Args:
    old: dict, list of dicts, or a leaf value: the first of a pair.
    new: dict, list of dicts, or a leaf value: the second of a pair.
    path: path of both in the outermost dicts, joined by dots.

  >>> differing_options({'a': {'b': 1}, 'c': 3}, {'a': {'b': 2}, 'c': 3})
  {'a.b': (1, 2)}
  """
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    names = sorted({*old, *new})
    pairs = [(name, old.get(name), new.get(name)) for name in names]
  elif _are_blocks(old) and _are_blocks(new) and len(old) == len(new):
    pairs = [(i, *pair) for i, pair in enumerate(zip(old, new, strict=True))]
  else:
    return {} if old == new else {path: (old, new)}
  return {
    inner: values
    for name, before, after in pairs
    for inner, values in differing_options(
      before, after, f'{path}.{name}'.lstrip('.')
    ).items()
  }


def _are_blocks(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, Mapping) for x in value)


def location_option(**field: Any) -> Any:
  """Declares a field of a dataclass as the location of a file or a folder.

  Its value is no setting: the same files may lie elsewhere.

  Args:
    **field: arguments of `dataclasses.field`, such as `default`.
  """
  return dataclasses.field(metadata={_LOCATION: True}, **field)


def location_option_paths(value: Any, path: str = '') -> set[str]:
  """Returns the paths of all fields that `location_option` has declared.

  Args:
    value: dataclasses, mappings and tuples, nested.
    path: path of the value, joined by dots.
  """
  inner: dict[Any, Any] = {}
  paths = set()
  if dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      inner[field.name] = getattr(value, field.name)
      if _LOCATION in field.metadata:
        paths.add(f'{path}.{field.name}'.lstrip('.'))
  elif hasattr(value, 'items'):
    inner = dict(value.items())
  elif isinstance(value, tuple | list):
    inner = dict(enumerate(value))
  for name, item in inner.items():
    paths |= location_option_paths(item, f'{path}.{name}'.lstrip('.'))
  return paths


def omit_option_fields(options: Any, *names: str) -> dict[str, Any]:
  """Returns the fields of a dataclass as a dict, without some of them."""
  return {
    field.name: getattr(options, field.name)
    for field in dataclasses.fields(options)
    if field.name not in names
  }


def describe_unknown_name(name: str, allowed: list[str]) -> str:
  """Describes, for a message, that a name is not among those allowed."""
  hint = suggest_name(name, allowed) or '.'
  return f'unknown name{hint} Allowed: {", ".join(allowed)}'


def suggest_name(name: str, allowed: Iterable[str]) -> str:
  """Returns the end of a message with the nearest name; '' if none is near.

  >>> suggest_name('camvd', ['camvid', 'shapes'])
  ', did you mean camvid?'
  """
  close = difflib.get_close_matches(name, allowed, 1)
  return f', did you mean {close[0]}?' if close else ''


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns the value converted to the type of a hint.

  Raises:
    UserError: the value is of another type.
  """
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin is typing.Literal:
    if value in arguments:
      return value
    allowed = ', '.join(map(repr, arguments))
    expected = f'one of {allowed}' if len(arguments) > 1 else allowed
    raise _wrong(value, expected, path)
  if origin in (typing.Union, types.UnionType):
    return _convert_union(arguments, value, path)
  if origin is tuple:
    return _convert_tuple(arguments, value, path)
  if dataclasses.is_dataclass(hint):
    return (
      value if isinstance(value, hint) else build_options(hint, value, path)
    )
  if (origin or hint) is Sequence:
    return _convert_tuple((*arguments, Ellipsis), value, path)
  if (origin or hint) is Mapping:
    if hasattr(value, 'items'):
      return options_to_dict(value)
    raise _wrong(value, 'a block of fields', path)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise _wrong(value, 'float', path) from None
  # No comparison with a bound would refuse it.
  if isinstance(value, float) and math.isnan(value):
    raise _wrong(value, 'a number', path)
  if isinstance(hint, type):
    exact = not isinstance(value, bool) or hint is bool
    if isinstance(value, hint) and exact:
      return value
    raise _wrong(value, hint.__name__, path)
  # The hint is no class, as that of a dtype: only the program sets such fields.
  return value


def _convert_union(arguments: Any, value: Any, path: str) -> Any:
  classes = [each for each in arguments if dataclasses.is_dataclass(each)]
  if len(classes) > 1 and hasattr(value, 'items'):
    return _build_chosen_options(classes, value, path)
  for hint in arguments:
    if hint is type(None):
      if value is None:
        return None
      continue
    try:
      return _convert(hint, value, path)
    except errors.UserError as error:
      last = error
  if sum(hint is not type(None) for hint in arguments) == 1:
    # `X | None`: the message about X is more specific than 'expected X'.
    raise last
  names = [
    'None' if hint is type(None) else getattr(hint, '__name__', str(hint))
    for hint in arguments
  ]
  raise _wrong(value, ' or '.join(names), path)


def _build_chosen_options(classes: list[type], block: Any, path: str) -> Any:
  """Builds the dataclass of a union that the field `name` of a block selects.

  Raises:
    UserError: none has the name, or `build_options` refuses the block.
  """
  names = [name for each in classes for name in _names_of(each)]
  name = block.get('name')
  if name is not None and name not in names:
    raise errors.UserError(f'{path}.name: {describe_unknown_name(name, names)}')
  return build_options(_choose_class(classes, block), block, path)


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
    f'{path}: expected {expected}, got {value!r} ({type(value).__name__})'
  )
