"""Config files: refusals, defaults that are added, and overrides of them."""

import pytest

from ddep import main as ddep_main
from runtime import errors, options
from segcore.experiment import command, config_file
from tests.support import runs

SHAPES = f'{runs.ROOT}/configs/ddep_shapes.py'


def overridden(*flags):
  return command.parse_command(['main', f'--config={SHAPES}', *flags]).config


def test_what_a_config_leaves_out_can_be_overridden():
  """Fields with plain defaults, in blocks that the config does not have."""
  config = overridden(
    '--config.data_dir=7',
    '--config.operation.reading.threads=3',
    '--config.finetune.recipe.optimizer.eps=1e-3',
    '--config.evaluate.protocol.flip',
    "--config.finetune.follow=('test',)",
    '--config.network.decoder.skips=(2, 4)',
  )
  # A string stays one, though it reads as a number.
  assert config.data_dir == '7'
  assert config.operation.reading.threads == 3
  assert config.finetune.recipe.optimizer.eps == 1e-3
  assert config.evaluate.protocol.flip is True
  assert config.finetune.follow == ('test',)
  assert config.network.decoder.skips == (2, 4)
  assert config.is_locked


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    (
      '--config.finetune.recipe.num_stps=3',
      'config.finetune.recipe.num_stps: unknown name, did you mean num_steps?',
    ),
    ('--config.finetun.recipe.seed=3', 'Did you mean "finetune"'),
    (
      '--config.network.decoder.layuot=B',
      'config.network.decoder.layuot: unknown name, did you mean layout?',
    ),
    ('--config.operation.save_every=soon', 'config.operation.save_every'),
    ('--config.evaluate.protocol.tiling=x', 'expected one of'),
    (
      '--config.network.decoder.norm_epsilon=small',
      'config.network.decoder.norm_epsilon',
    ),
  ],
)
def test_a_field_that_is_wrong_is_named(flag, message):
  with pytest.raises(errors.UserError) as caught:
    ddep_main.PROGRAM.build_stages(overridden(flag))
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_completing_changes_no_experiment():
  stated = runs.ROOT / 'configs' / 'ddep_shapes.py'
  scope = {}
  exec(stated.read_text(), scope)  # As stated, without the defaults.
  stated = scope['get_config']()
  cls = ddep_main.PROGRAM.experiment
  assert 'operation' not in stated
  assert options.build_options(cls, stated, 'config') == options.build_options(
    cls, config_file.complete_config(stated), 'config'
  )


def write(folder, text):
  path = folder / 'config.py'
  path.write_text(text)
  return str(path)


def test_files_that_are_no_config(tmp_path):
  with pytest.raises(errors.UserError, match='nowhere.py'):
    config_file.load_config('nowhere.py')
  with pytest.raises(errors.UserError, match='expected a Python file'):
    config_file.load_config(str(tmp_path))
  refusing = write(
    tmp_path, 'def get_config(x):\n  raise ValueError("not " + x)'
  )
  with pytest.raises(errors.UserError, match=r'config\.py:abc: not abc'):
    config_file.load_config(f'{refusing}:abc')
  # A mistake in the file keeps its traceback.
  broken = write(tmp_path, 'def get_config():\n  return {}["program"]')
  with pytest.raises(RuntimeError, match='get_config failed') as caught:
    config_file.load_config(broken)
  assert isinstance(caught.value.__cause__, KeyError)


def test_a_program_that_is_no_module(tmp_path):
  text = (
    'import ml_collections\n'
    'def get_config():\n'
    '  return ml_collections.ConfigDict({"program": "dddep.main"})\n'
  )
  with pytest.raises(errors.UserError, match='config.program: expected a mod'):
    config_file.load_config(write(tmp_path, text))
