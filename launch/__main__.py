"""Runs a job on other machines and deletes them at the end.

  python -m launch --backend=queued --accelerator=v5e-64 --provisioning=spot \
    --zone=us-west4-a --project=mine --workdir=gs://bucket/run -- \
    -m ddep.main --config=configs/ddep_pascal.py

The same command again attaches to the job; --dry_run prints all steps without
running them. Exits with the status of the job: 0 done, 75 to be run again
(saved and interrupted, or a worker hung), 2 a user error, explained in one
line.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from launch import backends, console, flags, shell, source
from launch import job as jobs
from launch import supervisor as supervisor_lib
from launch.backends import registry
from runtime import errors, exit_status

# The flags that choose the machines: part of a job's digest, in this order.
_MACHINE_FLAGS = (
  'backend',
  'accelerator',
  'provisioning',
  'reservation',
  'runtime',
  'hosts',
  'gres',
  'partition',
  'time',
  'also',
)


def main(argv: Sequence[str]) -> int:
  """Runs a command line; returns the exit status."""
  run = shell.Shell()
  try:
    usage = __doc__.partition('\n')[0]
    arguments, command = flags.parse_launch_flags(
      argv, usage, list(registry.BACKENDS)
    )
    job = _build_job(arguments, command)
    backend = registry.build_backend(arguments, job, run)
    with run.handling_signals(console.print_launcher_message):
      if arguments.dry_run and arguments.delete:
        steps = backend.deletion_steps(arguments.commit or 'COMMIT')
        return _print_steps(job.name, steps)
      if arguments.dry_run:
        commit = source.resolve_code_commit(run, arguments.commit)
        title = f'{job.name}: commit {commit}'
        return _print_steps(title, backend.steps(commit))
      if arguments.delete:
        return _delete(backend)
      return _launch(arguments, backend, run)
  except errors.UserError as error:
    errors.print_user_error(errors.format_on_one_line(str(error)))
    return exit_status.USER_ERROR
  except shell.Interrupted:
    return exit_status.INTERRUPTED


def _launch(
  arguments: argparse.Namespace, backend: backends.Backend, run: shell.Shell
) -> int:
  archives: list[pathlib.Path] = []

  def pack(commit: str) -> pathlib.Path:
    path = source.code_archive_path(backend.job.name, commit)
    archives.append(path)
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      result = run(source.code_archive_command(commit, path))
      if result.code:
        path.unlink(missing_ok=True)
        raise errors.UserError(
          f'cannot pack commit {commit}: {result.error_line}'
        )
    return path

  limits = supervisor_lib.Limits(
    retries=arguments.retries,
    backoff=arguments.backoff,
    backoff_max=arguments.backoff_max,
    poll=arguments.poll,
    grace=arguments.grace,
    keep=arguments.keep,
  )
  supervisor = supervisor_lib.Supervisor(
    backend,
    run,
    limits,
    resolve_commit=lambda: source.resolve_code_commit(run, arguments.commit),
    pack=pack,
    is_commit_named=bool(arguments.commit),
  )
  try:
    return supervisor()
  finally:
    for path in archives:
      path.unlink(missing_ok=True)


def _print_steps(title: str, steps: Sequence[backends.Step]) -> int:
  print(f'# {title}')
  for number, step in enumerate(steps, 1):
    print(f'\n# {number}. {step.title}\n{step.text.rstrip()}')
  return 0


def _delete(backend: backends.Backend) -> int:
  """Deletes what an earlier command created."""
  name = backend.job.name
  existing = backend.find()
  if existing is None:
    console.print_launcher_message(f'{name} does not exist: {backend.location}')
    return 0
  if not existing.digest:
    raise errors.UserError(
      f'--name: {name} was not created by this command: delete it by hand'
    )
  if problem := backend.delete():
    raise errors.UserError(f'deleting {name} failed: {problem}')
  console.print_launcher_message(f'deleted: {name}')
  return 0


def _build_job(
  arguments: argparse.Namespace, command: Sequence[str]
) -> jobs.Job:
  """Builds the job of a command line; its name suffices to delete it."""
  workdir = _parse_workdir(arguments.workdir)
  if not arguments.delete or command or not arguments.name:
    machines = [
      f'--{flag}={getattr(arguments, flag)}'
      for flag in _MACHINE_FLAGS
      if getattr(arguments, flag)
    ]
    name = arguments.name or ''
    return jobs.job_from_command(
      command, workdir, arguments.env, name, machines
    )
  backend = registry.BACKENDS[arguments.backend]
  if not workdir and backend.deletes_in_workdir:
    raise errors.UserError(
      f'--workdir is missing: --backend={arguments.backend} keeps files there '
      'that have to be deleted'
    )
  if 'accelerator' in backend.required:
    # Any value serves: what exists is deleted.
    arguments.accelerator = arguments.accelerator or 'v4-8'
  return jobs.Job(arguments.name, (), workdir)


def _parse_workdir(text: str) -> str:
  """Returns the work folder as every worker names it; local ones absolute."""
  if re.match(r'\w{2,}:/(?!/)', text):
    raise errors.UserError(
      f'--workdir: expected two slashes after the colon, got {text}'
    )
  if not text or '://' in text:
    return text
  return str(pathlib.Path(text).expanduser().absolute())


if __name__ == '__main__':
  exit_status.exit_with_status(lambda: main(sys.argv[1:]))
