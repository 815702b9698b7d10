"""Config files: loaded with their options, completed with the defaults.

A config states what its experiment chooses. Before the command line overrides
fields, all others are added with the defaults of the program's options.
"""

import importlib
import importlib.util

import ml_collections
from absl import flags

from runtime import errors


def load_config(argument: str) -> ml_collections.ConfigDict:
  """Loads a config file, completes it and returns it unlocked.

  Args:
    argument: path of a config file, with options after a colon, if any:
      'configs/ddep_shapes.py:init=dep,tiny'.

  Raises:
    UserError: there is no such file, or it refuses its options.
  """
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
  except ModuleNotFoundError:  # Its package is missing.
    exists = False
  if not exists:
    raise errors.UserError(
      f'config.program: expected a module such as ddep.main, got {program!r}'
    )
  return program


class Parser(flags.ArgumentParser):
  """Parses the flag --config."""

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Loads the config file that the flag names."""
    return load_config(argument)

  def flag_type(self) -> str:
    """Returns the type of the flag's value, for the help text."""
    return 'config file'
