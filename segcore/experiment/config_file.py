"""Config files: loaded with their options, completed with the defaults.

A config states what its experiment chooses. Before the command line overrides
fields, all others are added with the defaults of the program's options. A run
leaves its whole config in its work folder, which stands for the file later on.
"""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_flags import config_path

from runtime import errors, files, json_files
from runtime import options as options_lib
from segcore.experiment import placement

# --config.FIELD=VALUE; the value may be the next argument.
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)(?:=(.*))?', re.DOTALL)


def load_config(argument: str) -> ml_collections.ConfigDict:
  """Loads a config file, completes it and returns it unlocked.

  Args:
    argument: path of a config file, with options after a colon, if any:
      'configs/ddep_shapes.py:init=dep,tiny'; or the config that a run has
      left, 'runs/ddep_shapes/config.json'.

  Raises:
    UserError: there is no such file, or it refuses its options.
  """
  if argument.endswith('.json'):
    return _load_saved_config(argument)
  path, _, options = argument.partition(':')
  try:
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  except (OSError, AttributeError) as error:  # No spec where it is not .py.
    raise errors.UserError(
      f'--config={argument}: expected a Python file, got {path}: {error}'
    ) from error
  try:
    config = module.get_config(options) if options else module.get_config()
  except ValueError as error:
    raise errors.UserError(f'--config={argument}: {error}') from error
  except Exception as error:
    # A mistake in the file, not in the command line: the traceback helps.
    raise RuntimeError(f'--config={argument}: get_config failed') from error
  return complete_config(config)


def save_config(
  config: ml_collections.ConfigDict, workdir: files.Path, replaces: bool
) -> None:
  """Writes a whole config into a work folder, from host 0.

  Args:
    config: the config.
    workdir: the folder.
    replaces: whether to replace an earlier one.
  """
  path = workdir / placement.CONFIG_FILE
  if replaces or not path.exists():
    json_files.write_json(path, options_lib.options_to_dict(config))


def _load_saved_config(argument: str) -> ml_collections.ConfigDict:
  """Loads what `save_config` has written.

  Raises:
    UserError: there is no such file, or it is damaged.
  """
  path = files.parse_file_path(argument, '--config')
  if not path.is_file():
    raise errors.UserError(
      f'--config={argument}: expected the config of a run, got no such file'
    )
  return complete_config(
    ml_collections.ConfigDict(_lists_to_tuples(json_files.read_json(path)))
  )


def _lists_to_tuples(value: Any) -> Any:
  """Copies what JSON holds, with its lists as the tuples that they were."""
  if isinstance(value, dict):
    return {name: _lists_to_tuples(item) for name, item in value.items()}
  if isinstance(value, list):
    return tuple(_lists_to_tuples(item) for item in value)
  return value


def complete_config(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Adds the fields that a config leaves out, with their defaults.

  Raises:
    UserError: `config.program` is missing or no module.
  """
  program = importlib.import_module(program_of_config(config)).PROGRAM
  return ml_collections.ConfigDict(program.complete(config))


def program_of_config(config: ml_collections.ConfigDict) -> str:
  """Returns the module whose command line runs an experiment: 'ddep.main'.

  Raises:
    UserError: `config.program` is missing or no module.
  """
  program = config.program if 'program' in config else ''
  try:
    exists = bool(program) and importlib.util.find_spec(program) is not None
  except (ImportError, ValueError):  # Its package is missing, or it is none.
    exists = False
  if not exists:
    raise errors.UserError(
      f'config.program: expected a module such as ddep.main, got {program!r}'
    )
  return program


class Parser(flags.ArgumentParser):
  """Parses the flag --config, and prepares the config for its overrides."""

  def __init__(self, argv: Sequence[str]):
    """Takes the whole command line, whose overrides absl parses later."""
    self._argv = argv

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Loads the config file that the flag names.

    Raises:
      UserError: the file does not load, or an override names no field.
    """
    config = load_config(argument)
    prepare_config_overrides(config, self._argv)
    return config

  def flag_type(self) -> str:
    """Returns the type of the flag's value, for the help text."""
    return 'config file'


def prepare_config_overrides(
  config: ml_collections.ConfigDict, argv: Sequence[str]
) -> None:
  """Checks that overrides name fields, and removes what they replace.

  A block that is replaced as a whole loses the fields of the old one; so does
  one whose class is chosen by its field `name`, where another name is given.

  Args:
    config: complete config, which is changed.
    argv: whole command line.

  Raises:
    UserError: an override names a field that does not exist.
  """
  overrides = dict(_list_overrides(argv))
  program = importlib.import_module(program_of_config(config)).PROGRAM
  for path, value in overrides.items():
    *parents, last = _split_path(path)
    block = _find_block(config, parents, path)
    block_path = '.'.join(map(str, parents))
    chosen = bool(parents) and program.is_chosen_by_name(block_path)
    # A method of ConfigDict must not be hidden by a field.
    if last not in block and (not chosen or hasattr(block, str(last))):
      raise errors.UserError(
        f'config.{path}: '
        + options_lib.describe_unknown_name(str(last), list(block))
      )
    if chosen and last == 'name' and value not in (None, block.get('name')):
      for name in {*block} - {'name'}:
        del block[name]
    is_block = block.get(last, '') is None or hasattr(block.get(last), 'items')
    if is_block and not any(p.startswith(f'{path}.') for p in overrides):
      # Its value may then be a block, or None, whatever it was.
      del block[last]


def _list_overrides(argv: Sequence[str]) -> list[tuple[str, str | None]]:
  """Lists the path and the value of each override of a command line."""
  listed = []
  for argument, following in zip(argv, [*argv[1:], None], strict=True):
    match = _OVERRIDE.fullmatch(argument)
    if match:
      path, value = match.groups()
      listed.append((path, following if value is None else value))
  return listed


def _split_path(path: str) -> tuple[Any, ...]:
  """Splits 'denoise.also[0].split' into names and indices."""
  try:
    return config_path.split(path)
  except ValueError as error:
    raise errors.UserError(
      f'--config.{path}: expected names of fields joined by dots, as '
      'config.finetune.recipe.seed'
    ) from error


def _find_block(
  config: ml_collections.ConfigDict, parents: Sequence[Any], path: str
) -> ml_collections.ConfigDict:
  """Returns the block that holds the field of an override.

  Raises:
    UserError: there is no such block.
  """
  block, known = config, 'config'
  for name in parents:
    if isinstance(name, int) and isinstance(block, tuple):
      if name >= len(block):
        raise errors.UserError(
          f'{known}: expected an index below {len(block)}, got --config.{path}'
        )
      block, known = block[name], f'{known}[{name}]'
      continue
    if not hasattr(block, 'items'):
      break
    if name not in block:
      raise errors.UserError(
        f'{known}.{name}: '
        + options_lib.describe_unknown_name(str(name), list(block))
      )
    block, known = block[name], f'{known}.{name}'
  if not hasattr(block, 'items'):
    raise errors.UserError(
      f'--config.{path}: expected {known} to be a block of fields, got '
      f'{block!r}'
      + (f': set it as a whole, --{known}="{{…}}"' if block is None else '')
    )
  return block
