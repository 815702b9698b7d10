"""The job to run, and the meaning of its exit statuses."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from runtime import errors, exit_status

# In place of the exit status of a process that vanished without one, because
# its machine rebooted: no process can exit with it.
LOST = -1

_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')


@dataclasses.dataclass(frozen=True)
class Job:
  """A Python command line and the name under which it runs.

  Attributes:
    name: name of everything that is created for the job: lower-case letters,
      digits and hyphens.
    arguments: arguments of Python: ('-m', 'ddep.main', '--config=…',
      '--workdir=…').
    workdir: work folder, accessible from every worker.
    environment: pairs (name, value) of environment variables.
    machines: flags that choose the machines.
  """

  name: str
  arguments: tuple[str, ...]
  workdir: str
  environment: tuple[tuple[str, str], ...] = ()
  machines: tuple[str, ...] = ()

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise errors.UserError(
        '--name: expected at most 40 of a-z, 0-9 and -, beginning with a '
        f'letter, got {self.name!r}'
      )
    for name, _ in self.environment:
      if not re.fullmatch(r'[A-Za-z_]\w*', name, re.ASCII):
        raise errors.UserError(
          '--env: expected NAME=VALUE with a name of letters, digits and _, '
          f'got {name!r}'
        )

  @property
  def digest(self) -> str:
    """Returns a digest of command and machines; differs for another job."""
    return job_digest(self.arguments, self.environment, self.machines)


def job_digest(*content: Sequence) -> str:
  """Computes ten hexadecimal digits of a hash of the content."""
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def job_from_command(
  command: Sequence[str],
  workdir: str,
  environment: Sequence[str] = (),
  name: str = '',
  machines: Sequence[str] = (),
) -> Job:
  """Builds the job of a command line.

  Args:
    command: arguments of Python: '-m', the module and its flags, without
      --workdir.
    workdir: work folder, which is appended as --workdir.
    environment: environment variables, each 'NAME=VALUE'.
    name: name of the job; '' derives one from the config and the command.
    machines: flags that choose the machines.

  Raises:
    UserError: an argument is missing or malformed.
  """
  if len(command) < 2 or command[0] != '-m':
    raise errors.UserError(
      'expected -m MODULE and its flags after --, such as -m ddep.main '
      f'--config=configs/ddep_shapes.py, got {" ".join(command)!r}'
    )
  if any(re.match(r'--?workdir\b', argument) for argument in command):
    raise errors.UserError(
      '--workdir: expected before --, got it after --; it is passed on'
    )
  if not workdir:
    raise errors.UserError(
      '--workdir is missing: expected a folder that every worker can access'
    )
  # By default glibc has one arena for every few threads, and memory grows for
  # days.
  pairs = [('MALLOC_ARENA_MAX', '2')]
  for text in environment:
    variable, equals, value = text.partition('=')
    if not equals:
      raise errors.UserError(f'--env: expected NAME=VALUE, got {text!r}')
    pairs = [pair for pair in pairs if pair[0] != variable]
    pairs.append((variable, value))
  arguments = (*command, f'--workdir={workdir}')
  return Job(
    name or _default_name(arguments, pairs),
    arguments,
    workdir,
    tuple(pairs),
    tuple(machines),
  )


def _default_name(arguments: Sequence[str], environment: Sequence) -> str:
  """Derives a name from the command, so that the same command finds its job."""
  config = next((a for a in arguments if a.startswith('--config=')), '')
  stem = pathlib.Path(config.partition('=')[2].partition(':')[0]).stem
  words = re.sub('[^a-z0-9]+', '-', (stem or arguments[1]).lower()).strip('-')
  if not words[:1].isalpha():
    words = f'run-{words}'
  return f'{words[:29].strip("-")}-{job_digest(arguments, environment)[:6]}'


def combine_worker_exit_codes(exit_codes: Mapping[str, int | None]) -> int:
  """Combines the exit statuses of all workers into that of the job.

  A user error (2) takes precedence over other failures, and other failures over
  a request to be restarted (75). A worker that hung had to be killed and has no
  status (None): the job is restarted if another worker asks for it, and has
  failed if all others were done.

  >>> combine_worker_exit_codes({'a': 0, 'b': 75})
  75
  >>> combine_worker_exit_codes({'a': 0})
  0
  >>> combine_worker_exit_codes({'a': 75, 'b': 1})
  1
  >>> [combine_worker_exit_codes({'a': code, 'b': None}) for code in (75, 0)]
  [75, 1]
  """
  codes = [*exit_codes.values()]
  if exit_status.USER_ERROR in codes:
    return exit_status.USER_ERROR
  failures = [
    code
    for code in codes
    if code not in (exit_status.SUCCESS, exit_status.PREEMPTED, LOST, None)
  ]
  if failures:
    return failures[0]
  if None in codes and not {exit_status.PREEMPTED, LOST} & {*codes}:
    return exit_status.FAILURE
  all_succeeded = codes and not any(codes)
  return exit_status.SUCCESS if all_succeeded else exit_status.PREEMPTED


def format_worker_exit_codes(exit_codes: Mapping[str, int | None]) -> str:
  """Formats the exit statuses, with the workers of equal status together.

  >>> format_worker_exit_codes({'w-0': 0, 'w-1': 75, 'w-2': 0})
  'w-0, w-2: 0; w-1: 75'
  """
  words = {None: 'killed', LOST: 'lost'}
  groups: dict[str, list[str]] = {}
  for worker, code in exit_codes.items():
    groups.setdefault(words.get(code, str(code)), []).append(worker)
  return '; '.join(f'{", ".join(w)}: {code}' for code, w in groups.items())
