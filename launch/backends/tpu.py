"""TPU VMs by the Cloud TPU API: created at once, or as queued resources.

Both are the same machines, which are reached by `gcloud compute tpus tpu-vm`;
they differ in who waits for room. The API gets fixes only and serves no TPU7x.
"""

import abc
import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from launch import accelerators, backends, shell, source, worker
from launch import job as jobs
from runtime import errors

_QUOTA = re.compile(r'quota', re.IGNORECASE)
_NO_ROOM = re.compile(
  r'no more capacity|not enough|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE',
  re.IGNORECASE,
)
_NOT_FOUND = re.compile(r'NOT_FOUND|not found', re.IGNORECASE)
# Looks in a row at which only some workers may answer before they count as
# gone; and how often new machines are tried. gcloud itself tries for a minute.
_FAILED_LOOKS = 20
# How often a script that fails is run.
_TRIES = 3
# ssh's own status where there is no connection.
_NO_CONNECTION = 255
# Right after the request the answer may be that there is nothing.
_ABSENT_LOOKS = 4


@dataclasses.dataclass
class Tpu(abc.ABC):
  """Machines of the Cloud TPU API.

  Attributes:
    job: what is run.
    run: runs commands.
    accelerator: what to ask for.
    zone: where.
    project: whose.
    provisioning: 'on_demand', 'spot' or 'reserved'.
    runtime: software of the machines; that of the generation if ''.
    also: more flags of the command that creates.
    mounted: whether the work folder is one that all machines mount.
    wait_seconds: until the machines are ready.
    pause: seconds before what failed is tried once more.
  """

  job: jobs.Job
  run: shell.Shell
  accelerator: accelerators.Accelerator
  zone: str
  project: str
  provisioning: str = 'on_demand'
  runtime: str = ''
  also: Sequence[str] = ()
  mounted: bool = False
  wait_seconds: float = 1800.0
  pause: float = 10.0
  restarts_itself: bool = False
  _seen: int = 0
  _failed_looks: int = 0
  _absent_looks: int = 0
  _was_there: bool = False
  _was_ready: bool = False

  def __post_init__(self):
    if not self.accelerator.generation.runtime:
      raise errors.UserError(
        f'--accelerator: the Cloud TPU API does not serve '
        f'{self.accelerator.name}: use --backend=gke'
      )
    folder = self.job.workdir
    if folder and not self.mounted and not folder.startswith('gs://'):
      raise errors.UserError(
        f'--workdir: found {folder}, expected gs://…: the disks of '
        'the machines go with them; --mounted says that all machines mount it'
      )

  # What is done, as commands.

  @property
  def where(self) -> str:
    """See `Backend`."""
    return f'zone {self.zone} of project {self.project}'

  @property
  def folder(self) -> worker.Folder:
    """Where a worker keeps the job, from its home."""
    return worker.Folder(f'launch/{self.job.name}')

  @property
  def _archive_there(self) -> str:
    return f'launch-{self.job.name}.tar.gz'

  def _gcloud(self, *words: str) -> list[str]:
    where = (f'--zone={self.zone}', f'--project={self.project}', '--quiet')
    return ['gcloud', 'compute', 'tpus', *words, *where]

  def _labels(self, commit: str) -> str:
    return f'launch-job={self.job.digest},launch-commit={commit}'

  def _create_flags(self, commit: str) -> list[str]:
    tier = {'spot': ['--spot'], 'reserved': ['--reserved']}
    return [
      f'--accelerator-type={self.accelerator.type}',
      f'--labels={self._labels(commit)}',
      *tier.get(self.provisioning, []),
      *self.also,
    ]

  @property
  def _runtime(self) -> str:
    return self.runtime or self.accelerator.generation.runtime

  @abc.abstractmethod
  def describe_command(self) -> list[str]:
    """Tells how the machines are, as JSON."""

  @abc.abstractmethod
  def create_command(self, commit: str) -> list[str]:
    """Asks for the machines."""

  @abc.abstractmethod
  def delete_command(self) -> list[str]:
    """Deletes the machines, and waits until they are."""

  @abc.abstractmethod
  def read(self, described: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Their state, what is said of it, and their labels."""

  def ssh_command(self, script: str, which: str = 'all') -> list[str]:
    """Runs a script on one worker, or on all at once."""
    return self._gcloud(
      *('tpu-vm', 'ssh', self.job.name),
      f'--worker={which}',
      f'--command={script}',
    )

  def scp_command(self, archive: pathlib.Path) -> list[str]:
    """Copies the archive to all workers."""
    return self._gcloud(
      *('tpu-vm', 'scp', str(archive)),
      f'{self.job.name}:{self._archive_there}',
      '--worker=all',
    )

  def _scripts(self) -> dict[str, str]:
    hosts = self.accelerator.hosts
    before = worker.FIND_HOSTS.format(hosts=hosts) if hosts > 1 else ''
    return {
      'unpack': worker.unpack(self.folder, self._archive_there),
      'install': worker.install(self.folder, 'tpu'),
      'start': worker.start(self.folder, self.job, before),
      'tell': worker.tell(self.folder),
    }

  def steps(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    scripts = self._scripts()
    archive = source.archive_path(self.job.name, commit)
    commands = {
      'is it there already?': self.describe_command(),
      'the code': source.archive_command(commit, archive),
      'create': self.create_command(commit),
      'wait until it is ready': self.describe_command(),
      'ship the code': self.scp_command(archive),
      'unpack': self.ssh_command(scripts['unpack']),
      'install': self.ssh_command(scripts['install']),
      'start, detached': self.ssh_command(scripts['start']),
      'watch: what it prints': self.ssh_command(
        worker.log(self.folder, 0), '0'
      ),
      'watch: exit status of each worker': self.ssh_command(scripts['tell']),
      'the last lines of those that failed': self.ssh_command(
        worker.last_words(self.folder)
      ),
      'on Ctrl-C: let it save': self.ssh_command(worker.stop(self.folder)),
    }
    return [
      *backends.steps(commands),
      *self.deletion(commit),
    ]

  def deletion(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    return backends.steps(
      {'at the end, whatever happened': self.delete_command()}
    )

  # Doing it.

  def _described(self) -> dict[str, Any] | None:
    """What is said of the machines; None if there are none."""
    result = self.run(self.describe_command())
    if result.code:
      if _NOT_FOUND.search(result.err):
        return None
      raise errors.UserError(f'gcloud: {result.last_line}')
    self._was_there = True
    return json.loads(result.out)

  def find(self) -> backends.Found | None:
    """See `Backend`."""
    described = self._described()
    if described is None:
      return None
    labels = self.read(described)[2]
    return backends.Found(
      labels.get('launch-job', ''), labels.get('launch-commit', '')
    )

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """See `Backend`."""
    self._seen = self._failed_looks = self._absent_looks = 0
    self._was_there = self._was_ready = False
    result = self.run(self.create_command(commit), whole=True)
    if result.code:
      self._refuse(result.err, result.last_line)

  def _refuse(self, text: str, line: str) -> None:
    if _QUOTA.search(text):
      raise errors.UserError(
        f'gcloud: {line}; ask for more quota, or choose another --zone, '
        '--accelerator or --provisioning'
      )
    if _NO_ROOM.search(text):
      raise backends.Unavailable(line)
    raise errors.UserError(f'gcloud: {line}')

  def pending(self) -> str:
    """See `Backend`."""
    try:
      described = self._described()
    except errors.UserError as error:
      return f'{backends.NO_ANSWER} ({error})'
    if described is None:
      return self._absent()
    self._absent_looks = 0
    state, said, _ = self.read(described)
    if state in ('READY', 'ACTIVE'):
      self._was_ready = True
      return ''
    if state in self._waiting():
      return state
    if _QUOTA.search(said):
      self._refuse(said, said)
    raise backends.Gone(f'{state}{": " if said else ""}{said}')

  def _absent(self) -> str:
    """What to wait for if there is nothing of this name.

    Machines that are preempted stay, without any use: only people delete them.
    """
    self._absent_looks += 1
    nothing = 'there is nothing of this name'
    if self._absent_looks >= _ABSENT_LOOKS and self._was_ready:
      raise backends.Deleted(nothing)
    if self._absent_looks >= _ABSENT_LOOKS:
      raise backends.Gone(nothing)
    return f'{backends.NO_ANSWER} ({nothing})'

  @staticmethod
  def _waiting() -> frozenset[str]:
    """States after which machines may still become ready."""
    return frozenset(
      {
        *('ACCEPTED', 'CREATING', 'PROVISIONING', 'REIMAGING', 'REPAIRING'),
        *('RESTARTING', 'STARTING', 'WAITING_FOR_RESOURCES', ''),
      }
    )

  def prepare(self, archive: pathlib.Path) -> None:
    """See `Backend`."""
    scripts = self._scripts()
    self._must(self.scp_command(archive), 'copying the code')
    for title in ('unpack', 'install'):
      self._must(self.ssh_command(scripts[title]), title)

  def start(self) -> None:
    """See `Backend`."""
    self._must(self.ssh_command(self._scripts()['start']), 'starting')

  def _must(self, command: list[str], what: str) -> None:
    """Runs what has to work; new machines do not answer at once.

    Raises:
      Gone: the machines are.
      UserError: it failed on machines that are there.
    """
    failed = unreached = 0
    while failed < _TRIES and unreached < _FAILED_LOOKS:
      if failed or unreached:
        self.run.sleep(self.pause)
      result = self.run(command)
      if not result.code:
        return
      self.pending()
      if result.code == _NO_CONNECTION:
        unreached += 1
      else:
        failed += 1
    raise errors.UserError(
      f'{what} failed on {self.job.name}: {result.last_line}'
    )

  def poll(self) -> backends.Report:
    """See `Backend`."""
    told = self.run(self.ssh_command(worker.tell(self.folder)))
    states = worker.read_states(told.out)
    if len(states) < self.accelerator.hosts:
      silence = self._silence(len(states), told.last_line)
      return backends.Report(silence=silence)
    self._failed_looks = 0
    printed = self.run(
      self.ssh_command(worker.log(self.folder, self._seen), '0')
    )
    log = worker.read_log(printed.out)
    self._seen += len(log.encode(errors='surrogateescape'))
    return backends.Report(
      worker.codes(list(states.items())),
      'absent' not in states.values(),
      log=log,
    )

  def _silence(self, answers: int, line: str) -> str:
    """Why not all workers answer.

    Args:
      answers: how many do.
      line: what was said of the others.

    Raises:
      Gone: the machines are, by their state or because some are not reached
        while others are. If none is, it is this machine that is cut off.
      Deleted: somebody has deleted them.
    """
    if waiting := self.pending():
      return waiting
    some = f'{answers} of {self.accelerator.hosts} workers answer ({line})'
    if not answers:
      return f'{some}, but they are there: this machine may be cut off'
    self._failed_looks += 1
    if self._failed_looks >= _FAILED_LOOKS:
      raise backends.Gone(some)
    return some

  def last_words(self) -> str:
    """See `Backend`."""
    return self.run(self.ssh_command(worker.last_words(self.folder))).out

  def stop(self, now: bool = False) -> bool:
    """See `Backend`."""
    sign = 'KILL' if now else 'TERM'
    return not self.run(self.ssh_command(worker.stop(self.folder, sign))).code

  def leave(self) -> None:
    """Nothing: nobody follows."""
    return

  def delete(self) -> str:
    """See `Backend`."""
    # What was asked for and never seen may be there a little later.
    looks = 1 if self._was_there else _ABSENT_LOOKS
    while True:
      result = self.run(self.delete_command())
      if not result.code:
        return ''
      if not _NOT_FOUND.search(result.err):
        return result.last_line
      looks -= 1
      if not looks:
        return ''
      self.run.sleep(self.pause)


class TpuVm(Tpu):
  """Machines that are there at once, or not at all.

  Creating them is waited for: only so is it said that there is no room.
  """

  def describe_command(self) -> list[str]:
    """See `Tpu`."""
    return [
      *self._gcloud('tpu-vm', 'describe', self.job.name),
      '--format=json',
    ]

  def create_command(self, commit: str) -> list[str]:
    """See `Tpu`."""
    return [
      *self._gcloud('tpu-vm', 'create', self.job.name),
      f'--version={self._runtime}',
      *self._create_flags(commit),
    ]

  def delete_command(self) -> list[str]:
    """See `Tpu`."""
    return self._gcloud('tpu-vm', 'delete', self.job.name)

  def read(self, described: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """See `Tpu`."""
    return (
      described.get('state', ''),
      described.get('healthDescription', ''),
      described.get('labels', {}),
    )


class Queued(Tpu):
  """Machines that are waited for in a queue: what is advised for v4 to v6e."""

  def describe_command(self) -> list[str]:
    """See `Tpu`."""
    return [
      *self._gcloud('queued-resources', 'describe', self.job.name),
      '--format=json',
    ]

  def create_command(self, commit: str) -> list[str]:
    """See `Tpu`."""
    return [
      *self._gcloud('queued-resources', 'create', self.job.name),
      f'--node-id={self.job.name}',
      f'--runtime-version={self._runtime}',
      *self._create_flags(commit),
      '--async',
    ]

  def delete_command(self) -> list[str]:
    """See `Tpu`."""
    return [
      *self._gcloud('queued-resources', 'delete', self.job.name),
      '--force',
    ]

  def read(self, described: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """See `Tpu`."""
    state = described.get('state', {})
    said = state.get('failedData', {}).get('error', {}).get('message', '')
    nodes = described.get('tpu', {}).get('nodeSpec', [{}])
    labels = nodes[0].get('node', {}).get('labels', {})
    return state.get('state', ''), errors.one_line(said), labels
