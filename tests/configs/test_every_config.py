"""Laws that hold for every config."""

import difflib
import importlib
import inspect
import itertools
import pathlib
import re

import pytest

from configs import options, shared
from runtime import options as options_lib
from segcore.experiment import config_file

FOLDER = pathlib.Path(shared.__file__).parent
NAMES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if 'def get_config(' in path.read_text()
)


def module_of(name):
  return importlib.import_module(f'configs.{name}')


def experiment_of(config):
  program = importlib.import_module(config.program).PROGRAM
  return options_lib.build_options(program.parts.experiment, config, 'config')


def test_there_are_configs_of_each_method():
  methods = {name.partition('_')[0] for name in NAMES}
  assert methods == {'ddep', 'u2pl', 'pass', 'transfer'}
  assert len(NAMES) == 24


@pytest.mark.parametrize('name', NAMES)
def test_completing_changes_no_experiment(name):
  stated = module_of(name).get_config()
  completed = config_file.complete_config(stated)
  assert experiment_of(stated) == experiment_of(completed)
  assert len(str(completed)) > len(str(stated))


def blocks_of(value):
  """All blocks within a config."""
  for field in value.values():
    if hasattr(field, 'values'):
      yield field
      yield from blocks_of(field)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['', 'tiny'])
def test_no_block_is_that_of_two_stages(name, argument):
  """Else an override of one would change the other."""
  stated = module_of(name).get_config(argument)
  for config in (stated, config_file.complete_config(stated)):
    blocks = [id(block) for block in blocks_of(config)]
    assert len({*blocks}) == len(blocks)


@pytest.mark.parametrize('name', NAMES)
def test_the_text_of_a_config_names_its_command_and_its_cost(name):
  lines = module_of(name).__doc__.splitlines()
  assert re.fullmatch(r'[A-Z].* (on|of) .*\.', lines[0])
  text = '\n'.join(lines[1:])
  assert re.search(
    rf'^Run:    ?python -m (\w+)\.main[\s\\]+--config=configs/{name}\.py',
    text,
    re.MULTILINE,
  )
  assert re.search(r'^Cost:   ?\S', text, re.MULTILINE)
  published = 'shared' not in text and name.endswith(('pascal', 'voc', 's50'))
  assert not published or re.search(r'^Paper:  ?\S', text, re.MULTILINE)


@pytest.mark.parametrize('name', NAMES)
def test_a_misspelt_option_names_the_nearest_one(name):
  with pytest.raises(ValueError, match="'seeed' is unknown; did you mean 'see"):
    module_of(name).get_config('seeed=3')


def code_of(name):
  """The lines of a config without docstring, comments and blank lines."""
  text = inspect.getsource(module_of(name)).partition('"""\n')[2]
  text = text[text.index('from configs') :]
  lines = (line.partition('  #')[0].strip() for line in text.splitlines())
  return [line for line in lines if line and not line.startswith('#')]


def test_no_two_configs_are_alike():
  for one, other in itertools.combinations(NAMES, 2):
    matcher = difflib.SequenceMatcher(None, code_of(one), code_of(other), False)
    assert matcher.ratio() <= 0.6, (one, other)


def test_modules_are_short():
  for path in FOLDER.glob('*.py'):
    assert len(path.read_text().splitlines()) <= 500, path


def test_options_are_typed():
  defaults = {'kind': ['a', 'b'], 'count': 3, 'rate': 0.5, 'flag': False}
  found = options.parse('kind=b,count=4,flag', **defaults)
  assert vars(found) == {'kind': 'b', 'count': 4, 'rate': 0.5, 'flag': True}
  assert vars(options.parse(None, **defaults)) == {**defaults, 'kind': 'a'}
  for text, message in (
    ('cont=4', "'cont' is unknown; did you mean 'count'. Expected .* count, "),
    ('other', "'other' is unknown, expected some of count, flag, kind, rate"),
    ('kind=c', 'kind=c: expected one of a, b'),
    ('count=x', 'count=x: expected int'),
    ('flag=yes', 'flag=yes: expected true or false'),
  ):
    with pytest.raises(ValueError, match=message):
      options.parse(text, **defaults)
