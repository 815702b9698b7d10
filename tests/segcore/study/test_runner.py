"""Studies of an experiment whose results are known, in real processes."""

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

from segcore.study import runner
from tests.support import fake_program

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = ROOT / 'tests' / 'support' / 'fake_program.py'
AXES = ('--vary=init=none,ddep', '--vary=labels=50,100')


def command(workdir, *arguments, options=''):
  given = f'log={workdir}.log,{options}'.rstrip(',')
  return [
    f'--config={CONFIG}:{given}',
    f'--workdir={workdir}',
    *arguments,
  ]


def runs_of(workdir):
  """How often each stage was run, by name and init."""
  lines = pathlib.Path(f'{workdir}.log').read_text().splitlines()
  return collections.Counter(lines)


def table_of(workdir, metric='test/miou'):
  with open(workdir / 'table.csv') as file:
    return {
      (row['row'], row['labels']): row
      for row in csv.DictReader(file)
      if row['metric'] == metric
    }


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A study with a sweep, two runs at once."""
  workdir = tmp_path_factory.mktemp('study') / 'work'
  arguments = command(
    workdir,
    *AXES,
    *('--seeds=2', '--sweep=lr=1,2,3', '--sweep_at=100', '--jobs=2'),
    *('--baseline=init=none', '--also=pretrain.val/accuracy,val/miou'),
  )
  assert runner.main(arguments) == 0
  return workdir, arguments


def test_the_table_holds_what_the_runs_found(finished):
  workdir, _ = finished
  table = table_of(workdir)
  assert list(table) == [
    *[('init=none', '50'), ('init=none', '100')],
    *[('init=ddep', '50'), ('init=ddep', '100')],
  ]
  for (row, labels), line in table.items():
    init = row.removeprefix('init=')
    rate = {'none': 2.0, 'ddep': 3.0}[init]
    found = [fake_program.score(init, int(labels), s, rate) for s in (0, 1)]
    expected = 100 * (sum(found) / 2 + 0.01)
    assert float(line['mean']) == pytest.approx(expected)
    assert line['n'] == '2'
    assert line['swept'] == {'none': '2', 'ddep': '3'}[init]
  # Stages before the last one report, too.
  also = table_of(workdir, 'pretrain.val/accuracy')
  for (row, _), line in also.items():
    accuracy = fake_program.INITS[row.removeprefix('init=')]
    assert float(line['mean']) == pytest.approx(100 * accuracy)
  assert len(also) == 4
  text = (workdir / 'table.md').read_text()
  assert '| pretrain.val/accuracy, % | labels=50 | labels=100 |' in text
  # The difference of each pair is 10 points.
  assert '| init=ddep | +10.0 [+10.0, +10.0] (2) |' in text


def test_the_sweep_is_decided_on_val_and_written_down(finished):
  workdir, _ = finished
  sweep = json.loads((workdir / 'sweep.json').read_text())
  assert sweep['chosen'] == {'init=none,100': '2', 'init=ddep,100': '3'}
  assert len(sweep['tried']) == 6
  assert all('val/miou' in tried for tried in sweep['tried'])


def test_shared_stages_ran_once_and_cells_once(finished):
  workdir, _ = finished
  found = runs_of(workdir)
  assert found['pretrain none'] == found['pretrain ddep'] == 1
  # Three of the sweep, of which one is a cell; three more cells.
  assert found['evaluate none'] == found['evaluate ddep'] == 6


def test_a_cell_says_how_it_was_made(finished):
  workdir, _ = finished
  name = 'init=ddep,labels=50,seed=1,lr=3'
  cell = json.loads((workdir / 'cells' / f'{name}.json').read_text())
  assert cell['given'] == {
    'init': 'ddep',
    'labels': '50',
    'seed': '1',
    'lr': '3',
  }
  assert set(cell['digests']) == {'pretrain', 'evaluate'}
  value = fake_program.score('ddep', 50, 1, 3.0)
  assert [(p['step'], p['test/miou']) for p in cell['curve']] == [
    (1, pytest.approx(value / 2)),
    (2, pytest.approx(value)),
  ]
  assert (workdir / 'cells' / name / 'evaluate' / 'DONE.json').exists()


def test_finished_cells_are_not_run_again(finished, capsys):
  workdir, arguments = finished
  before = runs_of(workdir)
  table = (workdir / 'table.csv').read_text()
  assert runner.main(arguments) == 0
  assert runs_of(workdir) == before
  assert 'study: 8 runs, of which 8 are finished' in capsys.readouterr().out
  # Without its result the run is asked again, and has nothing left to do.
  (workdir / 'cells' / 'init=none,labels=50,seed=0,lr=2.json').unlink()
  assert runner.main(arguments) == 0
  assert runs_of(workdir) == before
  assert (workdir / 'table.csv').read_text() == table


def test_results_of_another_config_are_refused(finished, capsys):
  _, arguments = finished
  path = sorted(finished[0].glob('cells/*.json'))[0]
  before = path.read_text()
  cell = json.loads(before)
  cell['digests']['evaluate'] = 'other'
  path.write_text(json.dumps(cell))
  assert runner.main(arguments) == 2
  path.write_text(before)
  assert 'was made with other settings' in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
  workdir = tmp_path / 'work'
  arguments = command(workdir, *AXES, options='breaks=ddep')
  assert runner.main(arguments) == 2
  err = capsys.readouterr().err
  assert 'error: init=ddep,labels=50,seed=0: error: ddep cannot be' in err
  assert f'see {workdir}/cells/init=ddep,labels=50,seed=0.log' in err
  assert list(table_of(workdir)) == [('init=none', '50'), ('init=none', '100')]


def test_fields_of_the_config_can_be_varied_and_set(tmp_path):
  workdir = tmp_path / 'work'
  vary = ('--vary=init=none', '--vary=nested.bonus=0.0,0.25')
  assert runner.main(command(workdir, *vary, '--config.lr=2.0')) == 0
  with open(workdir / 'table.csv') as file:
    found = [float(row['mean']) for row in csv.DictReader(file)]
  plain = 100 * (fake_program.score('none', 50, 0, 2.0) + 0.01)
  assert found == pytest.approx([plain, plain + 25])
  # One only: its encoder was trained alone and became the shared one.
  assert runs_of(workdir)['pretrain none'] == 1


def test_more_seeds_use_what_the_first_one_had_trained_alone(tmp_path):
  workdir = tmp_path / 'work'
  vary = ('--vary=labels=50',)
  assert runner.main(command(workdir, *vary)) == 0
  assert runner.main(command(workdir, *vary, '--seeds=3')) == 0
  assert runs_of(workdir) == {'pretrain none': 1, 'evaluate none': 3}
  assert [row['n'] for row in table_of(workdir).values()] == ['3']
  assert list(table_of(workdir)) == [('fake_program', '50')]


def test_a_single_axis_is_swept_at_one_value_for_all(tmp_path):
  workdir = tmp_path / 'work'
  sweeps = ('--sweep=lr=1,2', '--sweep=nested.bonus=0.25,0.0')
  arguments = ('--vary=labels=50,200', *sweeps, '--sweep_at=200')
  assert runner.main(command(workdir, *arguments)) == 0
  table = table_of(workdir)
  assert list(table) == [('fake_program', '50'), ('fake_program', '200')]
  assert [row['swept'] for row in table.values()] == ['2,0.25', '2,0.25']
  best = fake_program.score('none', 50, 0, 2.0) + 0.25 + 0.01
  found = float(table['fake_program', '50']['mean'])
  assert found == pytest.approx(100 * best)
  # All combinations were tried.
  tried = json.loads((workdir / 'sweep.json').read_text())['tried']
  assert [(t['lr'], t['nested.bonus']) for t in tried] == [
    *[('1', '0.25'), ('1', '0.0')],
    *[('2', '0.25'), ('2', '0.0')],
  ]


def test_a_metric_that_is_not_there_stops_the_study(tmp_path, capsys):
  workdir = tmp_path / 'work'
  assert runner.main(command(workdir, *AXES, '--report=test/mIoU')) == 2
  err = capsys.readouterr().err
  assert 'found test/mIoU, expected one of pretrain.val/accuracy, test/' in err
  assert err.count('\n') == 1
  assert runs_of(workdir)['evaluate ddep'] == 0


def test_an_experiment_without_results_stops_the_study(tmp_path, capsys):
  workdir = tmp_path / 'work'
  arguments = command(workdir, '--vary=labels=50', options='silent')
  assert runner.main(arguments) == 2
  err = capsys.readouterr().err
  assert 'the last stage, evaluate, leaves no ' in err
  assert err.count('\n') == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
  (tmp_path / 'file').touch()
  workdir = tmp_path / 'file' / 'work'
  assert runner.main(command(workdir, '--vary=labels=50')) == 2
  err = capsys.readouterr().err
  assert err.startswith(f'error: cannot write to {workdir} (Not a directory)')


def test_sigterm_stops_the_runs_and_the_next_call_goes_on(tmp_path, capsys):
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
  # The second evaluation has begun; it waits until it is asked to stop.
  log = pathlib.Path(f'{workdir}.log')
  while not log.exists() or runs_of(workdir)['evaluate none'] < 2:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  # Nobody else may work in the folder meanwhile.
  assert runner.main(arguments) == 2
  assert 'another study works in' in capsys.readouterr().err
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 75, out
  assert 'stopped: 2 run(s) are left; run the same command again' in out
  assert not (workdir / 'table.csv').exists()
  go.touch()
  assert runner.main(arguments) == 0
  assert len(table_of(workdir)) == 3
  assert runs_of(workdir) == {'pretrain none': 1, 'evaluate none': 4}


def test_each_run_at_once_has_its_own_value_of_a_variable(tmp_path):
  workdir = tmp_path / 'work'
  vary = ('--vary=init=none,ddep', '--vary=labels=50')
  assert runner.main(command(workdir, *vary, '--each=CARD=0,3')) == 0
  cards = {line.split()[2] for line in runs_of(workdir)}
  assert cards == {'0', '3'}


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
    ((*AXES, '--seeds=0'), '--seeds: found 0, expected >= 1'),
    ((*AXES, '--jobs=0'), '--jobs: found 0, expected >= 1'),
    ((*AXES, '--sed=3'), "'--sed=3' is no flag"),
    (('--vary=labels=many,few',), 'labels=many: expected int'),
    (('--vary=color=red',), "'color' is unknown"),
    (
      (*AXES, '--config.program=nope.main'),
      "expected a module such as ddep.main, got 'nope.main'",
    ),
  ],
)
def test_what_a_user_can_mend_is_one_line(arguments, message, tmp_path, capsys):
  assert runner.main(command(tmp_path / 'work', *arguments)) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert not (tmp_path / 'work.log').exists()
