"""Studies: one experiment over options and seeds, as a table and a plot.

  python -m segcore.study --config=configs/ddep_shapes.py \
    --vary=init=none,supervised,dep,ddep --vary=labels=50,100,200 \
    --seeds=5 --sweep=lr=1e-4,3e-4,1e-3 --workdir=runs/study

A cell is one run of the experiment's own command line; it leaves
`cells/<options>.json`, and is not run again. What several cells would compute
alike (pretraining) is run once, in `shared/`. With `--sweep` a value is chosen
with the first seed on the split of `--select`, then kept for the other seeds;
of several `--sweep`s all combinations are tried.
"""

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import functools
import importlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from runtime import (
  console,
  errors,
  exit_status,
  json_files,
  metrics_file,
  options,
)
from segcore.experiment import command, config_file, stage
from segcore.study import report
from segcore.train import workspace as workspace_lib

_POLL_SECONDS = 0.2
# Between lines that say how far the running processes are.
_STATUS_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Axis:
  """An option and the values it takes.

  Attributes:
    name: of a config option ('labels'), or of a field with its path
      ('finetune.recipe.num_steps').
    values: as they are written on a command line.
  """

  name: str
  values: tuple[str, ...]

  @classmethod
  def parse(cls, text: str) -> 'Axis':
    """Reads 'name=value,value'.

    >>> Axis.parse('labels=50,100')
    Axis(name='labels', values=('50', '100'))
    """
    name, equals, values = text.partition('=')
    found = tuple(values.split(','))
    if not (name and equals and all(found)) or len(set(found)) < len(found):
      raise errors.UserError(
        f'found {text!r}, expected NAME=VALUE,VALUE,… of different values'
      )
    return cls(name, found)


@dataclasses.dataclass(frozen=True)
class Study:
  """What is varied, and how it is judged.

  Attributes:
    config: file and options that all cells share.
    fields: further flags of all cells: '--config.a.b=c'.
    vary: axes of the table; the last one is across.
    seeds: each cell of the table is run with each.
    sweep: decided together with the first seed, for each cell of the table.
    sweep_at: value of the last axis at which a row is swept; '' sweeps at all.
    select: '<split>/<metric>' that decides the sweep.
    report: '<split>/<metric>' of the table; of a stage before the last that
      evaluates, too: '<stage>.<split>/<metric>'.
    also: further ones.
    baseline: the row that others are compared with: 'init=supervised'.
  """

  config: str
  fields: tuple[str, ...]
  vary: tuple[Axis, ...]
  seeds: tuple[int, ...]
  sweep: tuple[Axis, ...] = ()
  sweep_at: str = ''
  select: str = 'val/miou'
  report: str = 'test/miou'
  baseline: str = ''
  also: tuple[str, ...] = ()

  def __post_init__(self):
    names = [axis.name for axis in (*self.vary, *self.sweep)] + ['seed']
    if len(set(names)) < len(names):
      raise errors.UserError(
        f'--vary, --sweep: found {", ".join(names)}, expected each name once '
        '(seed is varied by --seeds)'
      )
    if self.sweep_at and not (
      self.sweep and self.sweep_at in self.vary[-1].values
    ):
      raise errors.UserError(
        f'--sweep_at: found {self.sweep_at}, expected a --sweep, and one of '
        f'{", ".join(self.vary[-1].values)}'
      )
    for flag, name in self.named():
      if '/' not in name:
        raise errors.UserError(
          f'--{flag}: found {name!r}, expected SPLIT/METRIC such as val/miou'
        )
    rows = {self.row(point) for point in self.points()}
    if self.baseline and self.baseline not in rows:
      raise errors.UserError(
        f'--baseline: found {self.baseline}, expected one of '
        f'{", ".join(sorted(rows))}'
      )

  def named(self) -> list[tuple[str, str]]:
    """Flag and name of each metric that is asked for."""
    found = [('report', self.report), *(('also', name) for name in self.also)]
    return [('select', self.select), *found] if self.sweep else found

  def points(self) -> list[dict[str, str]]:
    """The cells of the table, by their options."""
    axes = [[(a.name, value) for value in a.values] for a in self.vary]
    return [dict(point) for point in itertools.product(*axes)]

  def row(self, point: Mapping[str, str]) -> str:
    """Name of the row of a cell of the table."""
    found = [f'{axis.name}={point[axis.name]}' for axis in self.vary[:-1]]
    if not found:  # The only row.
      return pathlib.Path(self.config.partition(':')[0]).stem
    return ','.join(found)

  def swept_cells(self) -> list['Cell']:
    """What the sweep runs."""
    if not self.sweep:
      return []
    points = [
      point
      for point in self.points()
      if not self.sweep_at or self._column(point) == self.sweep_at
    ]
    combinations = itertools.product(*(axis.values for axis in self.sweep))
    return [
      self._cell(point, self.seeds[0], ','.join(values))
      for point, values in itertools.product(points, combinations)
    ]

  def final_cells(self, chosen: Mapping[tuple[str, str], str]) -> list['Cell']:
    """What the table shows.

    Args:
      chosen: the swept values for each row and column, joined by commas; what
        is missing is left out.
    """
    cells = []
    for seed, point in itertools.product(self.seeds, self.points()):
      key = self.row(point), self.sweep_at or self._column(point)
      if self.sweep and key not in chosen:
        continue
      cells.append(self._cell(point, seed, chosen.get(key, '')))
    return cells

  def swept(self, values: str) -> dict[str, str]:
    """The swept options by name, from their values joined by commas."""
    if not self.sweep:
      return {}
    names = [axis.name for axis in self.sweep]
    return dict(zip(names, values.split(','), strict=True))

  def _column(self, point: Mapping[str, str]) -> str:
    return point[self.vary[-1].name]

  def _cell(self, point: Mapping[str, str], seed: int, swept: str) -> 'Cell':
    given = {**point, 'seed': str(seed)}
    given.update(self.swept(swept))
    return Cell(
      self.row(point), self._column(point), seed, swept, tuple(given.items())
    )


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    row: of the table.
    column: of the table.
    seed: of the run.
    swept: values of the swept options, joined by commas.
    given: its options, with the values as text.
  """

  row: str
  column: str
  seed: int
  swept: str
  given: tuple[tuple[str, str], ...]

  @property
  def name(self) -> str:
    """Name of its files.

    >>> Cell('init=dep', '50', 0, '', (('init', 'dep'), ('seed', '0'))).name
    'init=dep,seed=0'
    """
    text = ','.join(f'{name}={value}' for name, value in self.given)
    return re.sub(r'[^\w.,=-]', '_', text)

  def arguments(self, study: Study) -> list[str]:
    """Flags of the experiment's command line."""
    file, _, shared = study.config.partition(':')
    in_file = [f'{n}={v}' for n, v in self.given if '.' not in n]
    fields = [f'--config.{n}={v}' for n, v in self.given if '.' in n]
    given = ','.join(filter(None, [shared, *in_file]))
    return [f'--config={file}:{given}', *study.fields, *fields]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a cell is run, found from its config alone.

  Attributes:
    cell: which.
    program: module whose command line runs it.
    digests: of its stages, in order.
  """

  cell: Cell
  program: str
  digests: Mapping[str, str]

  @property
  def keys(self) -> dict[str, str]:
    """Name of each stage's folder, should it be shared."""
    return {name: f'{name}-{d[:8]}' for name, d in self.digests.items()}


def plan(study: Study, cell: Cell) -> Plan:
  """Builds the cell's stages; opens no data.

  Raises:
    UserError: the config does not take these options.
  """
  arguments = cell.arguments(study)
  config = command.parse(['study', *arguments]).config
  # Only for this process, which has one device; it decides no result.
  config.operation.fsdp = 1
  program = config_file.program_of(config)
  stages = importlib.import_module(program).PROGRAM.build_stages(config)
  settings = stage.all_settings(stages)
  return Plan(
    cell,
    program,
    {name: options.digest(found) for name, found in settings.items()},
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A process to run.

  Attributes:
    name: for people, unique.
    command: of the process.
    log: file of what it prints.
    needs: names of jobs that must end well before.
    prepare: called right before the start.
    finish: called after it ended well.
  """

  name: str
  command: tuple[str, ...]
  log: pathlib.Path
  needs: tuple[str, ...] = ()
  prepare: Callable[[], None] = lambda: None
  finish: Callable[[float], None] = lambda seconds: None


@dataclasses.dataclass
class Workers:
  """Runs jobs, several at once.

  Attributes:
    environments: what each place adds to the environment of its process; as
      many jobs run at once.
    lock: file descriptor that every process inherits, or -1: as long as one of
      them lives, the file stays locked.
    stopping: exit status that stops the work, once a signal has set it.
    failed: names of jobs that did not end well, and the last line they said.
  """

  environments: Sequence[Mapping[str, str]]
  lock: int = -1
  stopping: int = 0
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  def run(self, jobs: Sequence[Job]) -> None:
    """Runs the jobs in their order, as what they need is done.

    Stops when `stopping` is set: running processes are asked to save.

    Raises:
      Preempted: it was stopped.
    """
    running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
    try:
      self._run(list(jobs), running)
    finally:  # Whatever went wrong, nothing goes on unseen.
      for _, process, _ in running.values():
        process.terminate()
      for _, process, _ in running.values():
        process.wait()

  def _run(
    self,
    waiting: list[Job],
    running: dict[int, tuple[Job, subprocess.Popen, float]],
  ) -> None:
    done: set[str] = set()
    interrupted = 0
    told, last_status = False, time.monotonic()
    while waiting or running:
      if self.stopping and not told:
        told = True
        for _, process, _ in running.values():
          process.send_signal(signal.SIGTERM)
        console.log(f'stopping: {len(running)} run(s) save first')
      if self.stopping and not running:
        left = len(waiting) + interrupted
        raise workspace_lib.Preempted(f'{left} run(s) are left')
      for place in range(len(self.environments)):
        if place in running or self.stopping:
          continue
        if job := self._next(waiting, done):
          waiting.remove(job)
          job.prepare()
          process = self._start(job, place)
          running[place] = (job, process, time.monotonic())
      if not running and not self.stopping:
        return  # What is left needs something that failed.
      time.sleep(_POLL_SECONDS)
      if time.monotonic() - last_status > _STATUS_SECONDS:
        last_status = time.monotonic()
        for job, _, _ in running.values():
          console.log(f'  {job.name}: {_last_line(job.log)}')
      for place, (job, process, start) in list(running.items()):
        if process.poll() is None:
          continue
        del running[place]
        if process.returncode == 0:
          done.add(job.name)
          job.finish(time.monotonic() - start)
        elif self.stopping:
          interrupted += 1
        else:
          self._fail(job, process.returncode)

  def _next(self, waiting: list[Job], done: set[str]) -> Job | None:
    for job in list(waiting):
      broken = [name for name in job.needs if name in self.failed]
      if broken:
        waiting.remove(job)
        self.failed[job.name] = f'needs {broken[0]}, which failed'
      elif set(job.needs) <= done:
        return job
    return None

  def _start(self, job: Job, place: int) -> subprocess.Popen:
    with open(job.log, 'a') as log:
      process = subprocess.Popen(
        job.command,
        env={**os.environ, **self.environments[place]},
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for the study, which asks its runs to save.
        start_new_session=True,
        pass_fds=() if self.lock < 0 else (self.lock,),
      )
    count = len(self.environments)
    if count > 1 and hasattr(os, 'sched_setaffinity'):  # Linux.
      cores = sorted(os.sched_getaffinity(0))
      if len(cores) >= count:
        os.sched_setaffinity(process.pid, cores[place::count])
    return process

  def _fail(self, job: Job, status: int) -> None:
    self.failed[job.name] = f'{_last_line(job.log)}; see {job.log}'
    console.log(f'{job.name} failed ({status}): {self.failed[job.name]}')


def _last_line(log: pathlib.Path) -> str:
  """What a process said last; progress bars write over their own line."""
  text = re.sub(r'\x1b\[\w', '\n', log.read_text())
  return (text.strip().splitlines() or ['starting'])[-1].strip()


@dataclasses.dataclass
class Runner:
  """Runs the cells of a study that are not finished yet."""

  study: Study
  workdir: pathlib.Path
  workers: Workers
  _seconds: list[float] = dataclasses.field(default_factory=list)
  _left: int = 0

  def run(self, cells: Sequence[Cell], what: str) -> list[report.Finished]:
    """The results of the cells, in their order; failed ones are missing.

    Raises:
      UserError: a config is wrong, or a result was made with another one.
      Preempted: asked to stop.
    """
    plans = [plan(self.study, cell) for cell in cells]
    todo = [p for p in plans if not self._is_finished(p)]
    console.log(
      f'{what}: {len(plans)} runs, of which {len(plans) - len(todo)} are '
      'finished'
    )
    self._left = len(todo)
    if todo:
      self.workers.run(self._jobs(plans, todo))
    found = [self._read(p.cell) for p in plans if self._path(p.cell).exists()]
    for cell in found:
      self._require(cell)
    return found

  def _jobs(self, plans: Sequence[Plan], todo: Sequence[Plan]) -> list[Job]:
    """Shared stages first, each once; then the cells."""
    counts = collections.Counter(k for p in plans for k in p.keys.values())
    of_cell = {
      p.cell.name: [
        (name, key)
        for name, key in p.keys.items()
        if counts[key] > 1 or self._shared(key).exists()
      ]
      for p in plans
    }
    for cell, shared in of_cell.items():
      for name, key in shared:
        self._adopt(self.workdir / 'cells' / cell / name, key)
    jobs: dict[str, Job] = {}
    cells = []
    for p in todo:
      folder = self.workdir / 'cells' / p.cell.name
      shared = of_cell[p.cell.name]
      for i, (name, key) in enumerate(shared):
        if key not in jobs:
          # In a folder of its own, where only links to shared stages are.
          alone = self.workdir / 'shared' / 'runs' / key
          jobs[key] = Job(
            key,
            (*self._command(p, alone), f'--stage={name}'),
            self.workdir / 'shared' / f'{key}.log',
            tuple(before for _, before in shared[:i]),
            functools.partial(self._link, alone, shared[: i + 1]),
          )
      cells.append(
        Job(
          p.cell.name,
          self._command(p, folder),
          self.workdir / 'cells' / f'{p.cell.name}.log',
          tuple(key for _, key in shared),
          functools.partial(self._link, folder, shared),
          functools.partial(self._finish, p),
        )
      )
    return [*jobs.values(), *cells]

  def _command(self, p: Plan, folder: pathlib.Path) -> tuple[str, ...]:
    return (
      *(sys.executable, '-m', p.program),
      *p.cell.arguments(self.study),
      f'--workdir={folder}',
    )

  def _adopt(self, own: pathlib.Path, key: str) -> None:
    """A stage that a cell began alone becomes the shared one."""
    if own.is_dir() and not own.is_symlink() and not self._shared(key).exists():
      own.rename(self._shared(key))
      own.symlink_to(os.path.relpath(self._shared(key), own.parent))

  def _link(
    self, folder: pathlib.Path, shared: Sequence[tuple[str, str]]
  ) -> None:
    """Makes shared stages appear in a cell's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in shared:
      self._shared(key).mkdir(parents=True, exist_ok=True)
      link = folder / name
      if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(self._shared(key), folder))

  def _shared(self, key: str) -> pathlib.Path:
    return self.workdir / 'shared' / key

  def _path(self, cell: Cell) -> pathlib.Path:
    return self.workdir / 'cells' / f'{cell.name}.json'

  def _is_finished(self, p: Plan) -> bool:
    path = self._path(p.cell)
    if not path.exists():
      return False
    if json_files.read(path)['digests'] != dict(p.digests):
      raise errors.UserError(
        f'{path} was made with other settings than the config has now: choose '
        'another --workdir'
      )
    return True

  def _finish(self, p: Plan, seconds: float) -> None:
    """Keeps what the cell found, and says how far the study is."""
    folder = self.workdir / 'cells' / p.cell.name
    results = {}
    for name in p.digests:
      last = name == list(p.digests)[-1]
      path = folder / name / 'results.json'
      if path.exists():
        splits = json_files.read(path)['splits']
        results |= {
          split if last else f'{name}.{split}': found['metrics']
          for split, found in splits.items()
        }
      elif last:
        raise errors.UserError(
          f'the last stage, {name}, leaves no {path}: expected an evaluation'
        )
    content = {
      'row': p.cell.row,
      'column': p.cell.column,
      'seed': p.cell.seed,
      'swept': p.cell.swept,
      'given': dict(p.cell.given),
      'program': p.program,
      'digests': dict(p.digests),
      'seconds': round(seconds, 1),
      'results': results,
      'curve': self._curve(folder, list(p.digests)),
    }
    json_files.write(self._path(p.cell), content)
    self._seconds.append(seconds)
    self._left -= 1
    found = self._read(p.cell)
    self._require(found)
    mean = sum(self._seconds) / len(self._seconds)
    eta = mean * self._left / len(self.workers.environments)
    shown = {name for _, name in self.study.named()}
    console.log(
      f'{p.cell.name}  '
      + '  '.join(f'{n} {100 * found.value(n):.1f} %' for n in sorted(shown))
      + f'  {console.format_duration(seconds)}  {self._left} left'
      + (f'  ETA {console.format_duration(eta)}' if self._left else '')
    )

  def _require(self, found: report.Finished) -> None:
    """Raises UserError unless the study's metrics are among the results."""
    named = [
      f'{split}/{metric}'
      for split, metrics in found.results.items()
      for metric in metrics
    ]
    for flag, name in self.study.named():
      if name not in named:
        raise errors.UserError(
          f'--{flag}: found {name}, expected one of {", ".join(named)}'
        )

  def _curve(
    self, folder: pathlib.Path, stages: Sequence[str]
  ) -> list[dict[str, Any]]:
    """The reported metric of each split along the way."""
    metric = self.study.report.partition('/')[2]
    lines = []
    for name in stages:
      path = folder / name / 'metrics.jsonl'
      for line in metrics_file.read(path) if path.exists() else []:
        found = {k: v for k, v in line.items() if k.endswith(f'/{metric}')}
        if found:
          lines.append({'step': line['step'], **found})
    return lines

  def _read(self, cell: Cell) -> report.Finished:
    found = json_files.read(self._path(cell))
    return report.Finished(
      **{
        field.name: found[field.name]
        for field in dataclasses.fields(report.Finished)
      }
    )


def run(
  study: Study, workdir: pathlib.Path, workers: Workers
) -> list[report.Finished]:
  """Runs what is missing, decides the sweep, writes the report.

  Raises:
    UserError: a config is wrong, or the results lack what is asked for.
    Preempted: asked to stop.
  """
  runner = Runner(study, workdir, workers)
  for name in ('cells', 'shared'):
    (workdir / name).mkdir(parents=True, exist_ok=True)
  chosen: dict[tuple[str, str], str] = {}
  if study.sweep:
    names = ' and '.join(axis.name for axis in study.sweep)
    swept = runner.run(study.swept_cells(), f'sweep of {names}')
    chosen = report.choose_swept(swept, study.select)
    missing = {(c.row, c.column) for c in study.swept_cells()} - set(chosen)
    for row, column in sorted(missing):
      console.log(f'{row},{column}: no run of the sweep has a {study.select}')
    decided = {f'{row},{column}': v for (row, column), v in chosen.items()}
    json_files.write(
      workdir / 'sweep.json',
      {
        'chosen': decided,
        'tried': [
          {
            'row': cell.row,
            'column': cell.column,
            **study.swept(cell.swept),
            study.select: 100 * cell.value(study.select),
          }
          for cell in swept
        ],
      },
    )
    for where, values in decided.items():
      for axis, value in zip(study.sweep, values.split(','), strict=True):
        at_end = value in (axis.values[0], axis.values[-1])
        console.log(
          f'{where}: {axis.name}={value}'
          + (
            ', an end of the values tried: a wider sweep may do better'
            if at_end
            else ''
          )
        )
  found = runner.run(study.final_cells(chosen), 'study')
  if found:
    axis = study.vary[-1].name
    made = report.write(
      *(workdir, found, study.report, axis, study.baseline, study.also)
    )
    print((workdir / 'table.md').read_text())
    console.log('written: ' + ', '.join(map(str, made)))
    console.log(
      f'panels: {workdir}/cells/*/evaluate/pictures; curves: tensorboard '
      f'--logdir={workdir}/cells'
    )
  return found


def main(argv: Sequence[str]) -> int:
  """Runs a command line; returns the exit status."""
  # This process only reads configs; the devices are for its runs.
  jax.config.update('jax_platforms', 'cpu')
  workers = Workers([])
  try:
    arguments, fields = _parser().parse_known_args(argv)
    workers.environments = _environments(arguments)
    workdir = pathlib.Path(arguments.workdir).expanduser().absolute()
    study = _study(arguments, fields)
    with _heard(workers), _locked(workdir) as workers.lock:
      run(study, workdir, workers)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return exit_status.USER_ERROR
  except workspace_lib.Preempted as stopped:
    console.log(f'stopped: {stopped}; run the same command again to go on')
    return workers.stopping
  for name, reason in workers.failed.items():
    print(f'error: {name}: {reason}', file=sys.stderr, flush=True)
  return exit_status.USER_ERROR if workers.failed else 0


@contextlib.contextmanager
def _heard(workers: Workers) -> Iterator[None]:
  """Signals that ask to stop are told to the workers."""

  def ask(number: int, _) -> None:
    workers.stopping = 130 if number == signal.SIGINT else exit_status.PREEMPTED

  # SIGHUP: the terminal was closed.
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = {number: signal.signal(number, ask) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[int]:
  """A file descriptor that locks the folder for this study and its runs.

  Raises:
    UserError: another study, or a run it left behind, works there.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = os.open(workdir / 'lock', os.O_RDWR | os.O_CREAT)
  except OSError as error:
    raise errors.UserError(
      f'cannot write to {workdir} ({error.strerror}): choose another --workdir'
    ) from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield lock
  except BlockingIOError:
    raise errors.UserError(
      f'another study works in {workdir}, or a run that one left behind: wait '
      'for it, or stop it'
    ) from None
  finally:
    os.close(lock)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    'segcore.study', description=__doc__.partition('\n')[0]
  )
  add = parser.add_argument
  add('--config', required=True, help='experiment, with options of all cells')
  add('--workdir', required=True, help='folder of all runs and the report')
  add(
    '--vary',
    action='append',
    required=True,
    metavar='NAME=VALUE,…',
    help='an option of the config, or a field with its path; repeatable: the '
    'last one is the axis of the plot',
  )
  add('--seeds', type=int, default=1, help='runs of each cell')
  add('--first_seed', type=int, default=0)
  add(
    '--sweep',
    action='append',
    default=[],
    metavar='NAME=VALUE,…',
    help='decided with the first seed; repeatable: all combinations',
  )
  add(
    '--sweep_at',
    default='',
    metavar='VALUE',
    help='value of the last --vary at which a row is swept; all by default',
  )
  add('--select', default='val/miou', help='what decides the sweep')
  add('--report', default='test/miou', help='what the table shows')
  add(
    '--also',
    default='',
    metavar='NAME,…',
    help='further metrics of the table; STAGE.SPLIT/METRIC of a stage before '
    'the last',
  )
  add('--baseline', default='', help='row that the others are compared with')
  add('--jobs', type=int, default=1, help='runs at once')
  add(
    '--each',
    default='',
    metavar='VARIABLE=VALUE,…',
    help='one run at once for each value of an environment variable: '
    'CUDA_VISIBLE_DEVICES=0,1',
  )
  return parser


def _study(arguments: argparse.Namespace, fields: Sequence[str]) -> Study:
  for flag in fields:
    if not flag.startswith('--config.'):
      raise errors.UserError(
        f'{flag!r} is no flag: expected --config.FIELD=VALUE, or see --help'
      )
  if arguments.seeds < 1:
    raise errors.UserError(f'--seeds: found {arguments.seeds}, expected >= 1')
  first = arguments.first_seed
  return Study(
    config=arguments.config,
    fields=tuple(fields),
    vary=tuple(map(Axis.parse, arguments.vary)),
    seeds=tuple(range(first, first + arguments.seeds)),
    sweep=tuple(map(Axis.parse, arguments.sweep)),
    sweep_at=arguments.sweep_at,
    select=arguments.select,
    report=arguments.report,
    baseline=arguments.baseline,
    also=tuple(filter(None, arguments.also.split(','))),
  )


def _environments(arguments: argparse.Namespace) -> list[dict[str, str]]:
  """What each of the runs at once adds to its environment."""
  if arguments.jobs < 1:
    raise errors.UserError(f'--jobs: found {arguments.jobs}, expected >= 1')
  if not arguments.each:
    return [{} for _ in range(arguments.jobs)]
  axis = Axis.parse(arguments.each)
  return [{axis.name: value} for value in axis.values]
