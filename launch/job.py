"""What is to be run, whatever it is run on; and what its end means."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from runtime import errors

DONE = 0
FAILED = 1
USER_ERROR = 2
PREEMPTED = 75  # Interrupted, or another worker hung: the same command goes on.

# Of a worker whose process is gone without a word: its machine was restarted.
LOST = -1

_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')


@dataclasses.dataclass(frozen=True)
class Job:
  """A command line, and what it is called where it runs.

  Attributes:
    name: of everything that is made for it; lower case, digits, hyphens.
    arguments: of Python: ('-m', 'ddep.main', '--config=…', '--workdir=…').
    workdir: its folder, which every worker can reach.
    environment: variables it gets.
    place: what it is to run on, as flags say it.
  """

  name: str
  arguments: tuple[str, ...]
  workdir: str
  environment: tuple[tuple[str, str], ...] = ()
  place: tuple[str, ...] = ()

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise errors.UserError(
        f'--name: found {self.name!r}, expected at most 40 of a-z, 0-9 and -, '
        'beginning with a letter'
      )
    for name, _ in self.environment:
      if not re.fullmatch(r'[A-Za-z_]\w*', name, re.ASCII):
        raise errors.UserError(
          f'--env: found {name!r}, expected NAME=VALUE with a name of letters, '
          'digits and _'
        )

  @property
  def digest(self) -> str:
    """Of what is run and where, so that others of this name are noticed."""
    return digest(self.arguments, self.environment, self.place)


def digest(*content: Sequence) -> str:
  """Ten hexadecimal digits that stand for a content."""
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def make(
  command: Sequence[str],
  workdir: str,
  environment: Sequence[str] = (),
  name: str = '',
  place: Sequence[str] = (),
) -> Job:
  """The job of a command line.

  Args:
    command: of Python: '-m', the module, its flags; without --workdir.
    workdir: added to the flags.
    environment: 'NAME=VALUE' each.
    name: made of the config and the command, if it is empty.
    place: what it is to run on.

  Raises:
    UserError: something is missing or contradicts itself.
  """
  if len(command) < 2 or command[0] != '-m':
    raise errors.UserError(
      f'found {" ".join(command)!r} after --, expected -m MODULE and its '
      'flags, such as -m ddep.main --config=configs/ddep_shapes.py'
    )
  if any(re.match(r'--?workdir\b', argument) for argument in command):
    raise errors.UserError(
      '--workdir stands after --: give it before, once; it is passed on'
    )
  if not workdir:
    raise errors.UserError(
      '--workdir is missing: expected a folder that every worker reaches'
    )
  # Or memory grows for days: glibc gives every few threads an arena.
  pairs = [('MALLOC_ARENA_MAX', '2')]
  for text in environment:
    variable, equals, value = text.partition('=')
    if not equals:
      raise errors.UserError(f'--env: found {text!r}, expected NAME=VALUE')
    pairs = [pair for pair in pairs if pair[0] != variable]
    pairs.append((variable, value))
  arguments = (*command, f'--workdir={workdir}')
  return Job(
    name or _default_name(arguments, pairs),
    *(arguments, workdir, tuple(pairs), tuple(place)),
  )


def _default_name(arguments: Sequence[str], environment: Sequence) -> str:
  """The same for the same command, which so finds what it has started."""
  config = next((a for a in arguments if a.startswith('--config=')), '')
  stem = pathlib.Path(config.partition('=')[2].partition(':')[0]).stem
  words = re.sub('[^a-z0-9]+', '-', (stem or arguments[1]).lower()).strip('-')
  if not words[:1].isalpha():
    words = f'run-{words}'
  return f'{words[:29].strip("-")}-{digest(arguments, environment)[:6]}'


def combine(codes: Mapping[str, int | None]) -> int:
  """The exit status of all workers together.

  What a user can mend comes before other failures, those before a request to
  start again. A worker that had to be killed (None) hung: others that noticed
  ask to start again; if all others were done, it failed.

  >>> combine({'a': 0, 'b': 75}), combine({'a': 75, 'b': 1}), combine({'a': 0})
  (75, 1, 0)
  >>> combine({'a': 75, 'b': None}), combine({'a': 0, 'b': None})
  (75, 1)
  """
  found = [*codes.values()]
  if USER_ERROR in found:
    return USER_ERROR
  failures = [c for c in found if c not in (DONE, PREEMPTED, LOST, None)]
  if failures:
    return failures[0]
  if None in found and not {PREEMPTED, LOST} & {*found}:
    return FAILED
  return DONE if found and not any(found) else PREEMPTED


def told(codes: Mapping[str, int | None]) -> str:
  """The exit status of each worker, those of equal status together.

  >>> told({'w-0': 0, 'w-1': 75, 'w-2': 0})
  'w-0, w-2: 0; w-1: 75'
  """
  words = {None: 'killed', LOST: 'vanished'}
  groups: dict[str, list[str]] = {}
  for worker, code in codes.items():
    groups.setdefault(words.get(code, str(code)), []).append(worker)
  return '; '.join(f'{", ".join(w)}: {code}' for code, w in groups.items())
