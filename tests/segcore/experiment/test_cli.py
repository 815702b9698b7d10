"""The command line, in this process: messages, exit status, work folders."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from ddep import main as ddep_main
from runtime import console, exit_status
from segcore.experiment import cli, command, hosts, stage
from segcore.train import workspace as workspace_lib
from tests.support import runs

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
SHAPES = f'--config={CONFIGS}/ddep_shapes.py'
# Most tests build all stages of an experiment.
pytestmark = pytest.mark.usefixtures('equal_networks_checked_once')


@pytest.fixture(autouse=True)
def _no_group(monkeypatch):
  # These tests start no devices of their own: the suite's are up already.
  monkeypatch.setattr(hosts, '_start_alone', lambda: None)


def error_of(capsys, *arguments, program=ddep_main.PROGRAM):
  """Runs a command line that must fail; returns its one line of error."""
  status = cli.run_command_line(program, ['main', *arguments])
  err = capsys.readouterr().err
  assert status == exit_status.USER_ERROR, err
  assert err.startswith('error: ')
  assert err.count('\n') == 1, err
  return err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--config: expected a file such as'),
    (['--config=nowhere.py'], 'nowhere.py'),
    ([SHAPES, '--confg=3'], "Unknown command line flag 'confg'"),
    ([SHAPES, '--data_dir=x'], "Unknown command line flag 'data_dir'"),
    ([SHAPES, 'rest'], "expected --name=value, got 'rest'"),
    ([f'{SHAPES}:init=dddep'], 'init=dddep: expected one of ddep, dep'),
    (
      [f'{SHAPES}:lables=3'],
      "config option 'lables' is unknown; did you mean 'labels'?",
    ),
    ([f'{SHAPES}:labels=many'], 'labels=many: expected int'),
    ([SHAPES, '--config.progam=3'], 'did you mean program?'),
    ([SHAPES, '--config.finetune.recipe.seed=x'], 'seed'),
    (
      [f'{SHAPES}:labels=50,fraction=0.1'],
      'labels=50 and fraction=0.1 contradict each other: set one of them',
    ),
    (
      [SHAPES, '--config.denoise.noise.sigma=0.2'],
      'expected exactly one of gamma, sigma and gamma_range, got gamma=0.7',
    ),
    (
      [SHAPES, '--config.denoise.recipe.batch_size=30'],
      'config.denoise.recipe.batch_size: expected a multiple of the 8 devices, '
      'got 30',
    ),
    (
      [SHAPES, '--config.denoise.recipe.accumulate=3'],
      'config.denoise.recipe.accumulate: expected a divisor of 2',
    ),
    (
      [
        f'{SHAPES}:network=transunet',
        '--config.denoise.crop.size=(60, 64)',
      ],
      'config.denoise.crop.size = (60, 64) does not fit the network: '
      'images: expected sides that are multiples of 16, got 60x64',
    ),
    (
      [SHAPES, '--config.network.decoder.widths=(8, 8)'],
      'config.denoise.crop.size',
    ),
    (
      [SHAPES, '--config.network.encoder.name=resnett'],
      'config.network.encoder.name: unknown name, did you mean resnet?',
    ),
    (
      [SHAPES, "--config.stages=('finetune', 'evalute')"],
      "got ('finetune', 'evalute')",
    ),
    (
      [SHAPES, "--config.stages=('evaluate',)"],
      'config.stages: evaluate needs finetune',
    ),
    (
      [SHAPES, '--config.operation.fsdp=3'],
      'fsdp: expected a divisor of the 8 devices, got 3',
    ),
    (
      [SHAPES, '--config.finetune.data.name=voc'],
      'name: expected a data set of shapes, camvid',
    ),
    (
      [f'--config={CONFIGS}/ddep_folder.py:source=nowhere'],
      'nowhere',
    ),
    (
      [f'{SHAPES}:encoder=nowhere/classify'],
      'config.denoise.start.path: nowhere/classify does not exist',
    ),
    ([f'{SHAPES}:seed=-1'], 'seed: expected 0 to 2**31 - 1, got -1'),
    (
      [SHAPES, '--config.finetune.recipe.num_steps=50'],
      'optimizer.warmup_steps: expected fewer than num_steps = 50, got 50',
    ),
    ([f'{SHAPES}:width=0'], 'does not fit the network'),
    (
      [SHAPES, "--config.stages=('finetune', 'denoise', 'classify')"],
      'finetune needs denoise, which must come before it',
    ),
    (
      [SHAPES, '--config.program=u2pl.main'],
      "config.program: expected 'ddep.main', got 'u2pl.main'",
    ),
    ([SHAPES, '--images=x'], '--images and --out are for --stage=predict'),
    ([SHAPES, '--stage=predict,finetune'], 'expected predict alone'),
    (
      [SHAPES, '--stage=predict', '--out=x'],
      '--stage=predict needs a folder',
    ),
    (
      [SHAPES, '--stage=predict', '--images=x', '--out=x/found'],
      '--out: expected a folder outside of --images=x, got x/found',
    ),
    (
      [SHAPES, '--stage=predict', '--images=x', '--out=y'],
      'predict needs finetune, which is not finished',
    ),
    (
      [SHAPES, '--stage=predict', '--images=x', f'--out={CONFIGS}'],
      '--out: expected a new folder or one of predictions, got',
    ),
    ([SHAPES, '--stage=finetun'], '--stage: expected one of classify'),
    (
      [SHAPES, '--stage=finetune'],
      'finetune needs denoise, which is not finished',
    ),
  ],
)
def test_what_a_user_can_mend_is_one_line(capsys, tmp_path, arguments, message):
  error = error_of(capsys, *arguments, f'--workdir={tmp_path}/run')
  assert 'Traceback' not in error
  assert message in error, error


def test_camvid_without_photographs_says_where_they_are_looked_for(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)
  error = error_of(
    capsys,
    f'--config={CONFIGS}/ddep_camvid.py',
    f'--config.data_dir={tmp_path}',
    f'--workdir={tmp_path}/run',
  )
  assert 'camvid' in error
  assert 'SEG_DATA_DIR' in error


def one_stage(run):
  def build_stages(config, devices=None, workdir=None):
    return [stage.Stage('only', {'seed': config.finetune.recipe.seed}, run)]

  return types.SimpleNamespace(
    build_stages=build_stages, load_model=lambda: None
  )


def test_exit_status_of_each_ending(capsys, tmp_path):
  def status(run, name='w'):
    arguments = ['main', SHAPES, f'--workdir={tmp_path / name}']
    return cli.run_command_line(one_stage(run), arguments)

  def preempted(place):
    raise workspace_lib.Preempted('only saved at step 7')

  def interrupted(place):
    raise KeyboardInterrupt

  assert status(preempted) == 75
  assert 'only saved at step 7; run the same command' in capsys.readouterr().out
  assert status(interrupted) == 130
  assert status(lambda place: []) == 0
  assert (tmp_path / 'w' / 'only' / 'DONE.json').exists()


def test_a_bug_is_not_dressed_up_as_a_users_mistake(tmp_path):
  def breaks(place):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    cli.run_command_line(
      one_stage(breaks), ['main', SHAPES, f'--workdir={tmp_path}/w']
    )


def test_a_full_disk_anywhere_is_one_line(capsys, tmp_path):
  def full(place):
    raise OSError(28, 'No space left on device')

  error = error_of(
    capsys, SHAPES, f'--workdir={tmp_path}/w', program=one_stage(full)
  )
  assert 'is full: nothing is lost; free some space' in error


def test_a_used_workdir_with_another_config_is_refused(capsys, tmp_path):
  program = one_stage(lambda place: [])
  workdir = f'--workdir={tmp_path}/w'
  assert cli.run_command_line(program, ['main', SHAPES, workdir]) == 0
  error = error_of(capsys, f'{SHAPES}:seed=3', workdir, program=program)
  assert 'settings.seed: 0 -> 3' in error


def test_predictions_go_into_the_work_folder_by_default(tmp_path):
  arguments = ['main', SHAPES, '--stage=predict', '--images=a/photos.2']
  parsed = command.parse_command([*arguments, f'--workdir={tmp_path}'])
  assert parsed.request.out == tmp_path / 'predictions' / 'photos.2'
  parsed = command.parse_command([*arguments, '--out=x'])
  assert parsed.request.out == pathlib.Path('x')


def test_default_workdirs_tell_configs_apart():
  assert command.default_workdir('configs/ddep_shapes.py') == 'runs/ddep_shapes'
  assert (
    command.default_workdir('configs/ddep_shapes.py:init=dep,labels=50')
    == 'runs/ddep_shapes-init=dep,labels=50'
  )
  assert (
    command.default_workdir('a/b.py:encoder=/x/y z') == 'runs/b-encoder=_x_y_z'
  )


def test_help_lists_the_flags(capsys):
  assert cli.run_command_line(ddep_main.PROGRAM, ['main', '--help']) == 0
  out = capsys.readouterr().out
  for flag in ('--config', '--workdir', '--stage'):
    assert flag in out


def test_only_host_0_speaks(capsys, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  console.print_line('hello')
  assert capsys.readouterr().out == ''
  assert 'tensorflow' not in sys.modules


def test_nobody_has_to_read_everything():
  command = f'{sys.executable} -m ddep.main --dry_run'
  done = subprocess.run(
    f'{command} --config=configs/ddep_shapes.py | head -2; echo $PIPESTATUS',
    shell=True,
    executable='/bin/bash',
    cwd=runs.ROOT,
    env=os.environ | {'PYTHONUNBUFFERED': '1'},
    capture_output=True,
    text=True,
  )
  *first, status = done.stdout.splitlines()
  assert any('classify' in line for line in first)
  assert (done.stderr, status) == ('', '141')
