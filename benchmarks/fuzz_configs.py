"""Command lines of training with mutated options and fields.

`run(seed)` takes one of the project's configs, mutates names, types or values,
parses the command line and builds the stages, as a run does before it opens
data. It returns an outcome:

  accepted       the stages are built
  not run        the same, and the field is of a stage that is not run: it is
                 checked where its stage is
  refused        a message that names a field or an option
  traceback      an exception that is no UserError               (a fault)
  silent change  a name or a type that is wrong was accepted     (a fault)
  bad message    a message that names nothing                    (a fault)
"""

import functools
import importlib
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from runtime import errors
from segcore.experiment import command, config_file, stage

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_NAMES = sorted(
  path.stem
  for path in _CONFIGS.glob('*.py')
  if 'def get_config(' in path.read_text()
)
# Values that no field of another type may take, and odd ones of each type.
_WRONG_TYPE = {
  int: ("'many'", '(1, 2)', '2.5', 'x'),
  float: ("'many'", '(1, 2)', 'x'),
  bool: ("'maybe'", '3', '(True,)'),
  str: (),
  tuple: ("'x'", '((),)'),  # A single 7 is read as (7,), and {} as ().
}
_NUMBERS = ('0', '-1', '1', '7', '1000000007', '-2147483649')
_ODD = {
  int: _NUMBERS,
  float: (
    *_NUMBERS,
    'nan',
    'inf',
    '-inf',
    '1e300',
    '1e-300',
    '0.999',
    f'1{0:0400}',
  ),
  bool: ('true', 'false'),
  str: ("''", 'x', '../..', 'é\u0301', "'a b'", 'nan', '{split}', '%s', '0'),
  tuple: (
    '()',
    '(0,)',
    '(-1, -1)',
    '(1,)',
    '(3, 5, 7)',
    '(64, 64)',
    '(1e9, 1)',
  ),
}


class _Mutated(Exception):
  """A mutation that does not apply."""


@functools.cache
def _fields(name: str) -> dict[str, Any]:
  """Returns the value of each field of a config by its path."""
  config = config_file.load_config(f'{_CONFIGS}/{name}.py:tiny')
  return dict(_leaves(config.to_dict(), ''))


@functools.cache
def _program(name: str) -> Any:
  """Returns the program whose command line runs a config."""
  module = _fields(name)['.program']
  return importlib.import_module(module).PROGRAM


def _leaves(block: Any, path: str) -> Iterator[tuple[str, Any]]:
  for name, value in block.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{path}.{name}')
    else:
      yield f'{path}.{name}', value


def _misspelt(rng: random.Random, name: str) -> str:
  """Returns a name with a letter changed, left out, doubled or swapped."""
  at = rng.randrange(len(name))
  return rng.choice(
    (
      name[:at] + name[at + 1 :],
      name[:at] + name[at] + name[at:],
      name[:at] + rng.choice('abcxyz_') + name[at + 1 :],
      name.upper(),
      name + '_',
      name + 's',
    )
  )


def _field_name(rng: random.Random, name: str) -> tuple[str, bool]:
  """Misspells the name of a field; True: it must be refused."""
  path, value = rng.choice([*_fields(name).items()])
  *outer, last = path.split('.')
  wrong = _misspelt(rng, last)
  path = '.'.join([*outer, wrong])
  is_wrong = path not in _fields(name)
  return f'--config{path}={value!r}', is_wrong


def _block_name(rng: random.Random, name: str) -> tuple[str, bool]:
  """Misspells the name of a block."""
  path, value = rng.choice([*_fields(name).items()])
  parts = path.split('.')[1:]
  if len(parts) < 2:
    raise _Mutated
  at = rng.randrange(len(parts) - 1)
  parts[at] = _misspelt(rng, parts[at])
  return f'--config.{".".join(parts)}={value!r}', True


def _type(rng: random.Random, name: str) -> tuple[str, bool]:
  """Gives a field a value of another type."""
  path, value = rng.choice([*_fields(name).items()])
  wrong = _WRONG_TYPE.get(type(value))
  if not wrong or _holds_text(value):
    raise _Mutated
  return f'--config{path}={rng.choice(wrong)}', True


def _holds_text(value: Any) -> bool:
  """Returns whether a value may be a tuple of strings, as which 'x' is read."""
  if not isinstance(value, tuple):
    return False
  return not value or any(isinstance(x, str) for x in value)


def _value(rng: random.Random, name: str) -> tuple[str, bool]:
  """Gives a field an odd value of its type; it may be right."""
  path, value = rng.choice([*_fields(name).items()])
  odd = _ODD.get(type(value))
  if not odd:
    raise _Mutated
  text = rng.choice(odd)
  return f'--config{path}={text}', isinstance(value, float) and text == 'nan'


def _whole_block(rng: random.Random, name: str) -> tuple[str, bool]:
  """Replaces a block by a value."""
  path, _ = rng.choice([*_fields(name).items()])
  parts = path.split('.')
  if len(parts) < 3:
    raise _Mutated
  block = '.'.join(parts[: rng.randrange(2, len(parts))])
  return f'--config{block}={rng.choice(("3", "x", "(1, 2)"))}', True


def _option(rng: random.Random, name: str) -> tuple[str, bool]:
  """Returns options after the colon that are wrong or odd."""
  options = ('labels', 'seed', 'tiny', 'network', 'init', 'fraction', 'encoder')
  option = rng.choice(options)
  return rng.choice(
    (
      (f':{_misspelt(rng, option)}=3', False),
      (f':{option}=', False),
      (f':{option}=-1', False),
      (f':{option}=1e99', False),
      (f':{option}={option}', False),
      (f':{option}=0', False),
      (f':={option}', True),
      (f':,,{option},', False),
      (f':tiny,{option}=ä', False),
    )
  )


_MUTATIONS: tuple[Callable[[random.Random, str], tuple[str, bool]], ...] = (
  *(_field_name, _block_name, _type, _value, _value, _whole_block, _option),
)


def run(seed: int) -> tuple[str, str]:
  """Mutates a command line and builds its stages.

  Args:
    seed: seed of the mutation.

  Returns:
    Outcome and description.
  """
  rng = random.Random(seed)
  while True:
    name = rng.choice(_NAMES)
    try:
      text, is_wrong = rng.choice(_MUTATIONS)(rng, name)
      break
    except _Mutated:
      continue
  config = f'--config={_CONFIGS}/{name}.py'
  arguments = (
    [f'{config}{text}'] if text[0] == ':' else [f'{config}:tiny', text]
  )
  text = f'{name} {text}'
  try:
    parsed = command.parse_command(['main', *arguments])
    program = _program(name)
    stage.settings_by_stage(program.build_stages(parsed.config))
  except errors.UserError as error:
    message = str(error)
    if ':' not in message or 'Traceback' in message:
      return 'bad message', f'{text}: {message}'
    return 'refused', text
  except Exception as error:
    return 'traceback', f'{text}: {type(error).__name__}: {error}'
  if is_wrong and _is_unused(text, program, parsed.config):
    return 'not run', text
  return ('silent change' if is_wrong else 'accepted'), text


def _is_unused(text: str, program: Any, config: Any) -> bool:
  """Returns whether a field belongs to a stage that the config does not run."""
  block = text.partition('--config.')[2].partition('.')[0]
  return block in program.registry and block not in config.stages
