"""The options of a config: NAME=VALUE,… after the colon of --config=FILE:…

options = options_lib.parse('init=dep,tiny', init=['ddep', 'dep'], tiny=False)
options.init, options.tiny  # 'dep', True
"""

import difflib
from types import SimpleNamespace
from typing import Any


def parse(argument: str | None, **defaults: Any) -> SimpleNamespace:
  """Parses the options that a config declares by their defaults.

  A value takes the type of its default; a bare name, or 1, sets a bool to True.
  A default that is a list declares a choice of its strings, the first by
  default.

  Args:
    argument: options of the command line; None or '' for the defaults.
    **defaults: default of each option by its name: a str, int, float, bool or
      list of str.

  Raises:
    ValueError: an option is unknown, or its value has another type.
  """
  values = {
    name: default[0] if isinstance(default, list) else default
    for name, default in defaults.items()
  }
  for item in filter(None, (argument or '').split(',')):
    name, _, text = item.partition('=')
    if name not in defaults:
      raise ValueError(_unknown(name, sorted(defaults)))
    if isinstance(defaults[name], bool):
      text = text or 'true'
    values[name] = _convert(name, text, defaults[name])
  return SimpleNamespace(**values)


def describe_unknown_value(name: str, expected: list[str], few: str) -> str:
  """Describes, after 'X is unknown', the nearest expected name and all others.

  Args:
    name: name that is unknown.
    expected: names that exist.
    few: how many of them are expected: 'one' or 'some'.
  """
  close = difflib.get_close_matches(name, expected, 1)
  hint = f'; did you mean {close[0]!r}? Expected' if close else ', expected'
  return f'is unknown{hint} {few} of {", ".join(expected)}'


def _unknown(name: str, declared: list[str]) -> str:
  hint = describe_unknown_value(name, declared, 'some')
  return f'config option {name!r} {hint}'


def _convert(name: str, text: str, default: Any) -> Any:
  """Returns the value of the text, of the type of the default."""
  if isinstance(default, list):
    if text not in default:
      raise ValueError(
        f'config option {name}={text}: expected one of '
        f'{", ".join(filter(None, default))}'
      )
    return text
  if isinstance(default, bool):
    if text not in ('true', 'false', '1', '0'):
      raise ValueError(f'config option {name}={text}: expected true or false')
    return text in ('true', '1')
  try:
    return type(default)(text)
  except ValueError:
    kind = type(default).__name__
    raise ValueError(f'config option {name}={text}: expected {kind}') from None
