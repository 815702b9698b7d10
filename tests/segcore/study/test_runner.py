"""Studies of an experiment whose results are a formula, in real processes."""

import collections
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from runtime import errors
from segcore.study import cli, spec
from tests.support import fake_program

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = ROOT / 'tests' / 'support' / 'fake_program.py'
AXES = ('--vary=init=none,ddep', '--vary=labels=50,100')


def command(workdir, *arguments, options=''):
  options = f'log={workdir}.log,{options}'.rstrip(',')
  return [
    f'--config={CONFIG}:{options}',
    f'--workdir={workdir}',
    *arguments,
  ]


def count_runs(workdir):
  """Counts the runs of each stage, by name and init."""
  return collections.Counter(' '.join(run[:2]) for run in read_runs(workdir))


def read_runs(workdir):
  """Returns the words of each run of a stage: name, init and card, if any."""
  lines = pathlib.Path(f'{workdir}.log').read_text().splitlines()
  return [line.split() for line in lines]


def read_table(workdir, metric='test/miou'):
  with open(workdir / 'table.csv') as file:
    return {
      (row['row'], row['labels']): row
      for row in csv.DictReader(file)
      if row['metric'] == metric
    }


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Runs a study with a sweep, two runs at once."""
  workdir = tmp_path_factory.mktemp('study') / 'work'
  arguments = command(
    workdir,
    *('--vary=init=none,ddep', '--vary=labels=100'),
    '--seeds=2',
    '--sweep=lr=2,3',
    '--each=CARD=0,3',
    '--baseline=init=none',
    '--also=pretrain.val/accuracy,val/miou',
  )
  assert cli.run_study_command(arguments) == 0
  return workdir, arguments


def test_table_has_the_results_of_the_runs(finished):
  workdir, _ = finished
  table = read_table(workdir)
  assert list(table) == [('init=none', '100'), ('init=ddep', '100')]
  for (row, labels), line in table.items():
    init = row.removeprefix('init=')
    rate = {'none': 2.0, 'ddep': 3.0}[init]
    scores = [fake_program.score(init, int(labels), s, rate) for s in (0, 1)]
    expected = 100 * (sum(scores) / 2 + 0.01)
    assert float(line['mean']) == pytest.approx(expected)
    assert line['n'] == '2'
    assert line['swept'] == {'none': '2', 'ddep': '3'}[init]
  # Metrics of stages before the last one.
  also = read_table(workdir, 'pretrain.val/accuracy')
  for (row, _), line in also.items():
    accuracy = fake_program.INITS[row.removeprefix('init=')]
    assert float(line['mean']) == pytest.approx(100 * accuracy)
  assert len(also) == 2
  text = (workdir / 'table.md').read_text()
  assert '| pretrain.val/accuracy, % | labels=100 |' in text
  # The difference of each pair is 10 points.
  assert '| init=ddep | +10.0 [+10.0, +10.0] (2) |' in text


def test_sweep_chooses_on_val_and_is_written(finished):
  workdir, _ = finished
  sweep = json.loads((workdir / 'sweep.json').read_text())
  assert sweep['chosen'] == {'init=none,100': '2', 'init=ddep,100': '3'}
  assert len(sweep['tried']) == 4
  assert all('val/miou' in tried for tried in sweep['tried'])


def test_shared_stages_and_cells_run_once(finished):
  workdir, _ = finished
  counts = count_runs(workdir)
  assert counts['pretrain none'] == counts['pretrain ddep'] == 1
  # Two of the sweep, of which one is a cell of the table; the second seed.
  assert counts['evaluate none'] == counts['evaluate ddep'] == 3


def test_result_of_a_cell_has_its_options_and_curve(finished):
  workdir, _ = finished
  name = 'init=ddep,labels=100,seed=1,lr=3'
  cell = json.loads((workdir / 'cells' / f'{name}.json').read_text())
  assert cell['options'] == {
    'init': 'ddep',
    'labels': '100',
    'seed': '1',
    'lr': '3',
  }
  assert set(cell['digests']) == {'pretrain', 'evaluate'}
  value = fake_program.score('ddep', 100, 1, 3.0)
  assert [(p['step'], p['test/miou']) for p in cell['curve']] == [
    (1, pytest.approx(value / 2)),
    (2, pytest.approx(value)),
  ]
  assert (workdir / 'cells' / name / 'evaluate' / 'DONE.json').exists()


def test_finished_cells_are_not_run_again(finished, capsys):
  workdir, arguments = finished
  before = count_runs(workdir)
  table = (workdir / 'table.csv').read_text()
  assert cli.run_study_command(arguments) == 0
  assert count_runs(workdir) == before
  assert 'study: 4 runs, of which 4 are finished' in capsys.readouterr().out
  # Without its result the run is started again, and has nothing left to do.
  (workdir / 'cells' / 'init=none,labels=100,seed=0,lr=2.json').unlink()
  assert cli.run_study_command(arguments) == 0
  assert count_runs(workdir) == before
  assert (workdir / 'table.csv').read_text() == table


def test_results_of_another_config_are_refused(finished, capsys):
  _, arguments = finished
  path = sorted(finished[0].glob('cells/*.json'))[0]
  before = path.read_text()
  cell = json.loads(before)
  cell['digests']['evaluate'] = 'other'
  path.write_text(json.dumps(cell))
  assert cli.run_study_command(arguments) == 2
  path.write_text(before)
  assert 'was made with other settings' in capsys.readouterr().err


@pytest.mark.slow
def test_failed_run_is_named_and_the_others_continue(tmp_path, capsys):
  workdir = tmp_path / 'work'
  arguments = command(workdir, *AXES, options='breaks=ddep')
  assert cli.run_study_command(arguments) == 2
  err = capsys.readouterr().err
  assert 'error: init=ddep,labels=50,seed=0: error: ddep cannot be' in err
  assert f'see {workdir}/cells/init=ddep,labels=50,seed=0.log' in err
  assert list(read_table(workdir)) == [
    ('init=none', '50'),
    ('init=none', '100'),
  ]


def test_fields_of_the_config_are_varied_and_set(tmp_path):
  workdir = tmp_path / 'work'
  vary = ('--vary=init=none', '--vary=nested.bonus=0.0,0.25')
  arguments = command(workdir, *vary, '--config.lr=2.0', '--jobs=2')
  assert cli.run_study_command(arguments) == 0
  with open(workdir / 'table.csv') as file:
    means = [float(row['mean']) for row in csv.DictReader(file)]
  plain = 100 * (fake_program.score('none', 50, 0, 2.0) + 0.01)
  assert means == pytest.approx([plain, plain + 25])
  # Both cells have one pretraining in common.
  assert count_runs(workdir)['pretrain none'] == 1


@pytest.mark.slow
def test_more_seeds_share_the_pretraining_of_the_first(tmp_path):
  workdir = tmp_path / 'work'
  vary = ('--vary=labels=50',)
  assert cli.run_study_command(command(workdir, *vary)) == 0
  assert cli.run_study_command(command(workdir, *vary, '--seeds=3')) == 0
  assert count_runs(workdir) == {'pretrain none': 1, 'evaluate none': 3}
  assert [row['n'] for row in read_table(workdir).values()] == ['3']
  assert list(read_table(workdir)) == [('fake_program', '50')]


@pytest.mark.slow
def test_single_axis_is_swept_at_one_value(tmp_path):
  workdir = tmp_path / 'work'
  sweeps = ('--sweep=lr=1,2', '--sweep=nested.bonus=0.25,0.0')
  arguments = ('--vary=labels=50,200', *sweeps, '--sweep_at=200')
  assert cli.run_study_command(command(workdir, *arguments)) == 0
  table = read_table(workdir)
  assert list(table) == [('fake_program', '50'), ('fake_program', '200')]
  assert [row['swept'] for row in table.values()] == ['2,0.25', '2,0.25']
  best = fake_program.score('none', 50, 0, 2.0) + 0.25 + 0.01
  mean = float(table['fake_program', '50']['mean'])
  assert mean == pytest.approx(100 * best)
  # All combinations were tried.
  tried = json.loads((workdir / 'sweep.json').read_text())['tried']
  assert [(t['lr'], t['nested.bonus']) for t in tried] == [
    *[('1', '0.25'), ('1', '0.0')],
    *[('2', '0.25'), ('2', '0.0')],
  ]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ('--report=test/mIoU',),
      '--report: expected one of val/miou, test/miou, train/miou, got test/mI',
    ),
    (('--also=held_out/miou',), '--also: expected one of val/miou, test/miou'),
    (
      ('--sweep=lr=1,2', '--select=v/miou'),
      '--select: expected one of val/miou, test/miou, train/miou, got v/miou',
    ),
  ],
)
def test_metrics_are_checked_before_the_first_run(
  tmp_path, capsys, flags, message
):
  workdir = tmp_path / 'work'
  assert cli.run_study_command(command(workdir, *AXES, *flags)) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.count('\n') == 1
  assert not pathlib.Path(f'{workdir}.log').exists()


def test_metrics_of_the_splits_that_exist_are_chosen():
  def resolve(splits, *sweep):
    vary = spec.Axis('labels', ('50',))
    config = f'{CONFIG}:splits={splits}'
    study = spec.Study(config, (), (vary,), (0,), tuple(sweep))
    return spec.resolve_study_metrics(study)

  sweep = spec.Axis('lr', ('1', '2'))
  assert resolve('train+test').report == 'test/miou'
  assert resolve('val+train').report == 'val/miou'
  assert resolve('test+val', sweep).select == 'val/miou'
  with pytest.raises(errors.UserError, match='--select: expected one of test/'):
    resolve('test', sweep)


def test_missing_metric_stops_the_study(tmp_path, capsys):
  """A stage before the last one, whose metrics are not known before."""
  workdir = tmp_path / 'work'
  axis = '--vary=labels=50,100'
  assert (
    cli.run_study_command(command(workdir, axis, '--also=pretrain.val/x')) == 2
  )
  err = capsys.readouterr().err
  assert '--also: expected one of pretrain.val/accuracy, test/' in err
  assert 'got pretrain.val/x' in err
  assert err.count('\n') == 1
  assert count_runs(workdir)['evaluate none'] == 1


def test_missing_results_stop_the_study(tmp_path, capsys):
  workdir = tmp_path / 'work'
  arguments = command(workdir, '--vary=labels=50', options='silent')
  assert cli.run_study_command(arguments) == 2
  err = capsys.readouterr().err
  assert 'the last stage, evaluate, wrote no ' in err
  assert err.count('\n') == 1


def test_unwritable_folder_is_a_user_error(tmp_path, capsys):
  (tmp_path / 'file').touch()
  workdir = tmp_path / 'file' / 'work'
  assert cli.run_study_command(command(workdir, '--vary=labels=50')) == 2
  err = capsys.readouterr().err
  assert err.startswith(f'error: cannot write to {workdir} (Not a directory)')


@pytest.mark.slow
def test_sigterm_stops_the_runs_and_the_next_call_resumes(tmp_path, capsys):
  workdir, go = tmp_path / 'work', tmp_path / 'go'
  vary = ('--vary=init=none', '--vary=labels=50,100,200')
  arguments = command(workdir, *vary, options=f'wait={go}')
  process = subprocess.Popen(
    [sys.executable, '-m', 'segcore.study', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 120
  # The second evaluation has started; it waits for a signal.
  log = pathlib.Path(f'{workdir}.log')
  while not log.exists() or count_runs(workdir)['evaluate none'] < 2:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  # The folder is locked meanwhile.
  assert cli.run_study_command(arguments) == 2
  assert 'another study uses' in capsys.readouterr().err
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 75, out
  assert 'stopped: 2 run(s) are left; run the same command again' in out
  assert not (workdir / 'table.csv').exists()
  go.touch()
  assert cli.run_study_command(arguments) == 0
  assert len(read_table(workdir)) == 3
  assert count_runs(workdir) == {'pretrain none': 1, 'evaluate none': 4}


def test_workers_have_different_environments(finished):
  workdir, _ = finished
  assert {card for _, _, card in read_runs(workdir)} == {'0', '3'}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--vary=labels',), 'expected NAME=VALUE,VALUE'),
    (('--vary=labels=50,50',), 'of different values'),
    ((*AXES, '--vary=init=none'), 'expected each name once'),
    ((*AXES, '--sweep=lr=1', '--sweep=lr=2'), 'expected each name once'),
    (('--vary=seed=1,2',), 'seed is varied by --seeds'),
    ((*AXES, '--sweep=lr=1,2', '--sweep_at=7'), 'one of 50, 100'),
    ((*AXES, '--baseline=init=x'), 'expected one of init=ddep, init=none'),
    (('--vary=labels=50', '--baseline=labels=50'), 'expected one of fake'),
    ((*AXES, '--report=miou'), 'expected SPLIT/METRIC'),
    ((*AXES, '--seeds=0'), '--seeds: expected >= 1, got 0'),
    ((*AXES, '--jobs=0'), '--jobs: expected >= 1, got 0'),
    ((*AXES, '--sed=3'), "got '--sed=3'"),
    (('--vary=labels=many,few',), 'labels=many: expected int'),
    (('--vary=color=red',), "'color' is unknown"),
    (
      (*AXES, '--config.program=nope.main'),
      "expected a module such as ddep.main, got 'nope.main'",
    ),
  ],
)
def test_user_errors_are_one_line(arguments, message, tmp_path, capsys):
  assert cli.run_study_command(command(tmp_path / 'work', *arguments)) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert not (tmp_path / 'work.log').exists()
