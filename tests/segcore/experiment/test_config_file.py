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
    (
      '--config.finetun.recipe.seed=3',
      'config.finetun: unknown name, did you mean finetune? Allowed: classify',
    ),
    ('--config.without_mask=x', 'config.without_mask: unknown name'),
    ('--config.data.without_mask=x', 'config.data: unknown name'),
    (
      '--config.finetune.without_mask=x',
      'config.finetune.without_mask: unknown name',
    ),
    ('--config.items=x', 'config.items: unknown name'),
    ('--config.network.encoder.items=x', 'config.network.encoder.items: unk'),
    (
      '--config.finetune.recipe.seed.x=3',
      '--config.finetune.recipe.seed.x: expected config.finetune.recipe.seed '
      'to be a block of fields, got 0',
    ),
    (
      '--config.denoise.also[0].split=x',
      'config.denoise.also: expected an index below 0',
    ),
    ('--config.a-b=3', 'expected names of fields joined by dots'),
    ('--config.=3', '--config.: expected names of fields joined by dots'),
    ('--config.qqqq=3', 'config.qqqq: unknown name. Allowed: classify'),
    (
      '--config.network.encoder.name=bitt',
      'config.network.encoder.name: unknown name, did you mean bit?',
    ),
    ('--config.finetune=3', 'config.finetune: expected a block of fields'),
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


def test_a_block_with_another_name_has_its_own_fields():
  name = '--config.network.encoder.name=bit'
  widths = '--config.network.encoder.blocks=(1, 1)'
  for flags in ((name, widths), (widths, name), (*name.split('='), widths)):
    encoder = overridden(*flags).network.encoder
    assert encoder.to_dict() == {'name': 'bit', 'blocks': (1, 1)}
  same = overridden('--config.network.encoder.name=resnet', widths)
  assert same.network.encoder.width == 16
  # The fields of other blocks do not depend on a name.
  optimizer = overridden('--config.finetune.recipe.optimizer.name=sgd')
  assert optimizer.finetune.recipe.optimizer.learning_rate == 1.5e-3


def test_a_whole_block_is_replaced():
  crop = "{'name': 'random', 'size': (32, 32)}"
  config = overridden(f'--config.denoise.crop={crop}', '--config.classify=None')
  assert config.denoise.crop.to_dict() == {'name': 'random', 'size': (32, 32)}
  assert config.classify is None
  overriding = '--config=configs/pass_shapes.py:tiny'
  with pytest.raises(errors.UserError) as caught:
    command.parse_command(
      ['main', overriding, '--config.segment_on.data.name=camvid']
    )
  assert 'got None: set it as a whole, --config.segment_on="{' in str(
    caught.value
  )


def test_what_a_block_may_hold_is_said():
  config = overridden('--config.network.encoder.name=hybrid_vit')
  config.unlock()
  config.network.encoder.layers = 3
  with pytest.raises(errors.UserError) as caught:
    ddep_main.PROGRAM.build_stages(config)
  assert 'config.network.encoder.layers: unknown name' in str(caught.value)
  assert 'num_layers' in str(caught.value).partition('Allowed: ')[2]


def test_the_config_of_a_run_stands_for_its_file(tmp_path):
  config = overridden('--config.finetune.recipe.seed=3')
  workdir = tmp_path / 'run'
  config_file.save_config(config, workdir, replaces=True)
  config_file.save_config(overridden(), workdir, replaces=False)
  parsed = command.parse_command(
    ['main', f'--workdir={workdir}', '--config.evaluate.protocol.flip=True']
  )
  assert parsed.workdir == workdir
  assert parsed.config.evaluate.protocol.flip is True
  with parsed.config.unlocked():
    parsed.config.evaluate.protocol.flip = False
  assert parsed.config.to_dict() == config.to_dict()
  given = command.parse_command(['main', f'--config={workdir}/config.json'])
  assert given.workdir == workdir
  with pytest.raises(errors.UserError, match='has no config.json of an earli'):
    command.parse_command(['main', f'--workdir={tmp_path}', '--stage=predict'])


def test_completing_changes_no_experiment():
  stated = runs.ROOT / 'configs' / 'ddep_shapes.py'
  scope = {}
  exec(stated.read_text(), scope)  # As stated, without the defaults.
  stated = scope['get_config']()
  cls = ddep_main.PROGRAM.parts.experiment
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


@pytest.mark.parametrize('program', ['dddep.main', '../..', 'json.nothing'])
def test_a_program_that_is_no_module(tmp_path, program):
  text = (
    'import ml_collections\n'
    'def get_config():\n'
    f'  return ml_collections.ConfigDict({{"program": "{program}"}})\n'
  )
  with pytest.raises(errors.UserError, match='config.program: expected a mod'):
    config_file.load_config(write(tmp_path, text))
