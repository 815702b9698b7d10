"""Command line of studies: one experiment over options and seeds.

  python -m segcore.study --config=configs/ddep_shapes.py \
    --vary=init=none,supervised,dep,ddep --vary=labels=50,100,200 \
    --seeds=5 --sweep=lr=1e-4,3e-4,1e-3 --workdir=runs/study

A cell is one run of the experiment's own command line. It writes
`cells/<options>.json`, and is not run again. Stages that several cells have in
common (pretraining) are run once, in `shared/`. `--sweep` chooses values with
the first seed, by the metric of `--select`, and keeps them for the other seeds;
several `--sweep`s are tried in all combinations.
"""

import argparse
import contextlib
import fcntl
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from runtime import console, errors, exit_status, signals
from segcore.study import jobs, runner, spec
from segcore.train import workspace as workspace_lib


class Command(NamedTuple):
  """A parsed command line.

  Attributes:
    study: study to run.
    workdir: absolute path of the folder of all runs and the report.
    environments: environment variables of each worker.
  """

  study: spec.Study
  workdir: pathlib.Path
  environments: list[dict[str, str]]


def run_study_command(argv: Sequence[str]) -> int:
  """Runs the command line of a study; returns the exit status."""
  # This process only reads configs; the devices are for its runs.
  jax.config.update('jax_platforms', 'cpu')
  workers = jobs.Workers([])
  try:
    command = parse_study_command(argv)
    workers.environments = command.environments
    with _handling_signals(workers), _locked(command.workdir) as workers.lock:
      runner.run_study(command.study, command.workdir, workers)
  except errors.UserError as error:
    errors.print_user_error(error)
    return exit_status.USER_ERROR
  except workspace_lib.Preempted as stopped:
    console.print_line(
      f'stopped: {stopped}; run the same command again to resume'
    )
    return workers.stopping
  for name, reason in workers.failed.items():
    errors.print_user_error(f'{name}: {reason}')
  return exit_status.USER_ERROR if workers.failed else 0


def parse_study_command(argv: Sequence[str]) -> Command:
  """Parses the command line of a study.

  Raises:
    UserError: a flag is unknown, or its value is not allowed.
  """
  arguments, fields = _parser().parse_known_args(argv)
  environments = _environments(arguments)
  workdir = pathlib.Path(arguments.workdir).expanduser().absolute()
  return Command(_study(arguments, fields), workdir, environments)


@contextlib.contextmanager
def _handling_signals(workers: jobs.Workers) -> Iterator[None]:
  """Makes signals that ask to stop set `workers.stopping`."""

  def stop(number: int, _) -> None:
    interrupted = number == signal.SIGINT
    workers.stopping = (
      exit_status.INTERRUPTED if interrupted else exit_status.PREEMPTED
    )

  # SIGHUP is sent when the terminal is closed.
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  with signals.handling_signals(numbers, stop):
    yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[int]:
  """Locks the folder for this study and its runs; yields the file descriptor.

  Raises:
    UserError: another study, or a run that it left behind, uses the folder.
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
      f'another study uses {workdir}, or a run that it left behind: wait for '
      'it, or stop it'
    ) from None
  finally:
    os.close(lock)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    'segcore.study', description=__doc__.partition('\n')[0]
  )
  add = parser.add_argument
  add(
    '--config', required=True, help='config file, with the options of all cells'
  )
  add('--workdir', required=True, help='folder of all runs and the report')
  add(
    '--vary',
    action='append',
    required=True,
    metavar='NAME=VALUE,…',
    help='option of the config, or path of a field; repeatable: the last one '
    'has the columns of the table and the axis of the plot',
  )
  add('--seeds', type=int, default=1, help='number of seeds of each cell')
  add('--first_seed', type=int, default=0)
  _add_sweep_flags(parser)
  add(
    '--report',
    default='',
    help='SPLIT/METRIC of the table; the mIoU of test by default, or of the '
    'first split that is reported',
  )
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
    help='a worker for each value of an environment variable: '
    'CUDA_VISIBLE_DEVICES=0,1',
  )
  return parser


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags about hyperparameters that the study chooses."""
  add = parser.add_argument
  add(
    '--sweep',
    action='append',
    default=[],
    metavar='NAME=VALUE,…',
    help='hyperparameter chosen with the first seed; repeatable: all '
    'combinations are tried',
  )
  add(
    '--sweep_at',
    default='',
    metavar='VALUE',
    help='value of the last --vary at which a row is swept; all by default',
  )
  add(
    '--select',
    default='',
    help='SPLIT/METRIC by which the sweep chooses; the mIoU of val, or of '
    'held_out, by default',
  )


def _study(arguments: argparse.Namespace, fields: Sequence[str]) -> spec.Study:
  for flag in fields:
    if not flag.startswith('--config.'):
      raise errors.UserError(
        f'unknown flag: expected --config.FIELD=VALUE, got {flag!r}; --help '
        'lists the flags'
      )
  if arguments.seeds < 1:
    raise errors.UserError(f'--seeds: expected >= 1, got {arguments.seeds}')
  first = arguments.first_seed
  return spec.Study(
    config=arguments.config,
    fields=tuple(fields),
    vary=tuple(map(spec.Axis.parse, arguments.vary)),
    seeds=tuple(range(first, first + arguments.seeds)),
    sweep=tuple(map(spec.Axis.parse, arguments.sweep)),
    sweep_at=arguments.sweep_at,
    select=arguments.select,
    report=arguments.report,
    baseline=arguments.baseline,
    also=tuple(filter(None, arguments.also.split(','))),
  )


def _environments(arguments: argparse.Namespace) -> list[dict[str, str]]:
  """Returns the environment variables of each worker."""
  if arguments.jobs < 1:
    raise errors.UserError(f'--jobs: expected >= 1, got {arguments.jobs}')
  if not arguments.each:
    return [{} for _ in range(arguments.jobs)]
  axis = spec.Axis.parse(arguments.each)
  return [{axis.name: value} for value in axis.values]
