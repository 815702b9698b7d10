"""One command that runs a job elsewhere, and cleans up after it.

  python -m launch --backend=queued --accelerator=v5e-64 --provisioning=spot \
    --zone=us-west4-a --project=mine --workdir=gs://bucket/run -- \
    -m ddep.main --config=configs/ddep_pascal.py

The same command again finds the job and attaches to it; --dry_run shows what
would be done. Exits with the status of the job: 0 done, 75 to be run again
(saved and interrupted, or a worker hung), 2 something to be mended, said in one
line.
"""

import argparse
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from launch import accelerators, backends, shell, source, supervise
from launch import job as jobs
from launch.backends import gke, local, slurm, tpu
from runtime import errors, exit_status

# Flags that only some backends take; the first group has to be given.
_NEEDED = {
  'local': (),
  'tpu_vm': ('accelerator', 'zone', 'project'),
  'queued': ('accelerator', 'zone', 'project'),
  'gke': ('accelerator',),
  'slurm': (),
}
_TAKEN = {
  'local': ('hosts', 'port'),
  'tpu_vm': ('provisioning', 'runtime', 'also', 'mounted'),
  'queued': ('provisioning', 'runtime', 'also', 'mounted'),
  'gke': (
    *('provisioning', 'reservation', 'context', 'namespace', 'image'),
    *('fetch_image', 'service_account'),
  ),
  'slurm': (
    *('hosts', 'gres', 'partition', 'account', 'time', 'python', 'extra'),
    'also',
  ),
}
# Those that say on what the job runs: it is not another's to take over.
_PLACE = (
  *('backend', 'accelerator', 'provisioning', 'reservation', 'runtime'),
  *('hosts', 'gres', 'partition', 'time', 'also'),
)
_PROVISIONING = ('on_demand', 'spot', 'reserved')


def main(argv: Sequence[str]) -> int:
  """Runs a command line; returns the exit status."""
  run = shell.Shell()
  try:
    arguments, command = _parse(argv)
    job = _job(arguments, command)
    backend = _backend(arguments, job, run)
    with run.heard(supervise.say):
      if arguments.dry_run and arguments.delete:
        return _show(job.name, backend.deletion(arguments.commit or 'COMMIT'))
      if arguments.dry_run:
        commit = source.resolve(run, arguments.commit)
        return _show(f'{job.name}: commit {commit}', backend.steps(commit))
      if arguments.delete:
        return _delete(backend)
      return _launch(arguments, backend, run)
  except errors.UserError as error:
    print(f'error: {errors.one_line(str(error))}', file=sys.stderr, flush=True)
    return jobs.USER_ERROR
  except shell.Interrupted:
    return 130


def _launch(
  arguments: argparse.Namespace, backend: backends.Backend, run: shell.Shell
) -> int:
  archives: list[pathlib.Path] = []

  def archive(commit: str) -> pathlib.Path:
    path = source.archive_path(backend.job.name, commit)
    archives.append(path)
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      result = run(source.archive_command(commit, path))
      if result.code:
        path.unlink(missing_ok=True)
        raise errors.UserError(
          f'cannot pack commit {commit}: {result.last_line}'
        )
    return path

  limits = supervise.Limits(
    arguments.retries,
    arguments.backoff,
    arguments.backoff_max,
    arguments.poll,
    arguments.grace,
    arguments.keep,
  )
  try:
    return supervise.Supervisor(
      backend,
      run,
      limits,
      lambda: source.resolve(run, arguments.commit),
      archive,
      bool(arguments.commit),
    )()
  finally:
    for path in archives:
      path.unlink(missing_ok=True)


def _show(title: str, steps: Sequence[backends.Step]) -> int:
  """Prints what would be done; does nothing."""
  print(f'# {title}')
  for number, step in enumerate(steps, 1):
    print(f'\n# {number}. {step.title}\n{step.text.rstrip()}')
  return 0


def _delete(backend: backends.Backend) -> int:
  """Deletes what an earlier call has made."""
  name = backend.job.name
  found = backend.find()
  if found is None:
    supervise.say(f'{name} is not there: {backend.where}')
    return 0
  if not found.digest:
    raise errors.UserError(
      f'--name: {name} was not made by this command: delete it by hand'
    )
  if problem := backend.delete():
    raise errors.UserError(f'{name} could not be deleted: {problem}')
  supervise.say(f'deleted: {name}')
  return 0


def _job(arguments: argparse.Namespace, command: Sequence[str]) -> jobs.Job:
  """The job of a command line; to delete one, its name is enough."""
  workdir = _workdir(arguments)
  if not arguments.delete or command or not arguments.name:
    return jobs.make(
      *(command, workdir, arguments.env),
      *(arguments.name or '', _place(arguments)),
    )
  if not workdir and arguments.backend not in ('tpu_vm', 'queued'):
    raise errors.UserError(
      f'--workdir is missing: --backend={arguments.backend} keeps there what '
      'is to be deleted'
    )
  if 'accelerator' in _NEEDED[arguments.backend]:
    # Any will do: whatever is there is deleted.
    arguments.accelerator = arguments.accelerator or 'v4-8'
  return jobs.Job(arguments.name, (), workdir)


def _workdir(arguments: argparse.Namespace) -> str:
  """The folder as every worker names it; absolute, if it is one of here."""
  text = arguments.workdir
  if re.match(r'\w{2,}:/(?!/)', text):
    raise errors.UserError(
      f'--workdir: found {text}, expected two slashes after the colon'
    )
  if not text or '://' in text:
    return text
  return str(pathlib.Path(text).expanduser().absolute())


def _place(arguments: argparse.Namespace) -> list[str]:
  """What the job is to run on, as flags."""
  found = {flag: getattr(arguments, flag) for flag in _PLACE}
  return [f'--{flag}={value}' for flag, value in found.items() if value]


def _backend(
  arguments: argparse.Namespace, job: jobs.Job, run: shell.Shell
) -> backends.Backend:
  """The place that was asked for.

  Raises:
    UserError: flags are missing, or contradict it.
  """
  name = arguments.backend
  taken = {*_NEEDED[name], *_TAKEN[name]}
  some = {*_NEEDED.values(), *_TAKEN.values()}
  for flag in sorted({flag for group in some for flag in group}):
    if getattr(arguments, flag) is not None and flag not in taken:
      known = ', '.join(f'--{flag}' for flag in (*_NEEDED[name], *_TAKEN[name]))
      raise errors.UserError(
        f'--{flag} is not of --backend={name}, which takes {known}'
      )
  for flag in _NEEDED[name]:
    if not getattr(arguments, flag):
      raise errors.UserError(f'--{flag} is missing: --backend={name} needs it')
  given = {
    flag: getattr(arguments, flag)
    for flag in taken
    if getattr(arguments, flag) is not None
  }
  if 'accelerator' in given:
    given['accelerator'] = accelerators.parse(given['accelerator'])
  if arguments.wait is not None:
    given['wait_seconds'] = arguments.wait
  return _make(name, given, arguments, job, run)


def _make(
  name: str,
  given: Mapping,
  arguments: argparse.Namespace,
  job: jobs.Job,
  run: shell.Shell,
) -> backends.Backend:
  patience = {'retries': arguments.retries, 'grace': arguments.grace}
  if name == 'local':
    return local.Local(job, run, **given)
  if name == 'tpu_vm':
    return tpu.TpuVm(job, run, pause=min(arguments.poll, 10.0), **given)
  if name == 'queued':
    given = {'wait_seconds': 86400.0, **given}
    return tpu.Queued(job, run, pause=min(arguments.poll, 10.0), **given)
  if name == 'gke':
    pause = min(arguments.poll, 2.0)
    return gke.Gke(job, run, pause=pause, **patience, **given)
  return slurm.Slurm(job, run, **patience, **given)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and the command after `--`."""
  own = list(argv)
  command: list[str] = []
  if '--' in own:
    i = own.index('--')
    own, command = own[:i], own[i + 1 :]
  return _parser().parse_args(own), command


class _Parser(argparse.ArgumentParser):
  """Complains in one line, as everything here does."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(message.removeprefix('argument '))


def _at_least(least: float, kind: type = float) -> Callable[[str], int | float]:
  """Reads a number of a flag; the least one is allowed."""

  def read(text: str) -> int | float:
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not least <= value < math.inf:
      what = 'a whole number' if kind is int else 'a number'
      raise argparse.ArgumentTypeError(
        f'found {text}, expected {what} >= {least:g}'
      )
    return value

  return read


def _port(text: str) -> int:
  if not text.isdigit() or not 1 <= int(text) <= 65535:
    raise argparse.ArgumentTypeError(f'found {text}, expected 1 to 65535')
  return int(text)


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    'python -m launch',
    usage='%(prog)s --backend=… --workdir=… [flags] -- -m MODULE [its flags]',
    description=__doc__.partition('\n')[0],
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--backend', required=True, choices=list(_NEEDED))
  add('--workdir', default='', help="the run's folder, passed on to it")
  add('--name', help='of the job and its machines; by default, of the command')
  add('--commit', default='', help='code to ship; by default HEAD, if clean')
  add(
    '--env',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='a variable of the job; repeatable',
  )
  add('--dry_run', action='store_true', help='print what would be done')
  add('--delete', action='store_true', help='delete what is there, and end')
  add('--keep', action='store_true', help='delete nothing at the end')
  number, whole = _at_least(0.0), _at_least(0.0, int)
  add('--wait', type=number, help='seconds until the job can start; 0: any')
  add('--retries', type=whole, default=50, help='after 75 and preemption')
  add('--backoff', type=number, default=30.0, help='seconds before the first')
  add('--backoff_max', type=number, default=600.0, help='it doubles up to this')
  look = _at_least(0.1)
  add('--poll', type=look, default=15.0, help='seconds between two looks')
  add('--grace', type=number, default=120.0, help='seconds for saving')
  group = parser.add_argument_group('TPUs')
  add = group.add_argument
  add('--accelerator', help='v5e-64, v4-8, …')
  add('--zone')
  add('--project')
  add('--provisioning', choices=_PROVISIONING)
  add('--runtime', help='software of TPU VMs, if not the usual one')
  add(
    '--mounted',
    action='store_const',
    const=True,
    help='--workdir is a folder that all TPU VMs mount',
  )
  group = parser.add_argument_group('GKE')
  add = group.add_argument
  add('--reservation', help='name of the reservation')
  add('--context', help='of kubectl')
  add('--namespace')
  add('--image', help='of the pods: Python 3.11 and bash')
  add('--fetch_image', help='that fetches the code: gcloud')
  add('--service_account', help='of Kubernetes; reads and writes the bucket')
  group = parser.add_argument_group('SLURM and local')
  add = group.add_argument
  add(
    '--hosts',
    type=_at_least(1.0, int),
    help='nodes, or processes on this machine',
  )
  add('--port', type=_port, help='local: where the processes find each other')
  add('--gres', help='of each node: gpu:8')
  add('--partition')
  add('--account')
  add('--time', help='before it is requeued: 24:00:00')
  add('--python', help='3.11, on the nodes')
  add('--extra', choices=['cuda', 'tpu'], help='what to install')
  parser.add_argument(
    '--also',
    action='append',
    metavar='FLAG',
    help='one more flag of gcloud create, or of sbatch; repeatable',
  )
  return parser


if __name__ == '__main__':
  exit_status.run(lambda: main(sys.argv[1:]))
