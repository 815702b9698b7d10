"""Processes on this machine, in one group: how a job behaves on several hosts.

The committed code is unpacked beside the run and started from there by the
Python that runs this, so that what works here is what would be shipped.
"""

import dataclasses
import json
import pathlib
import shlex
import shutil
import socket
import sys

from launch import backends, shell, source, worker
from launch import job as jobs
from runtime import errors

_PORTS = range(20000, 32000)


@dataclasses.dataclass
class Local:
  """Several processes on this machine.

  Attributes:
    job: what is run.
    run: runs commands.
    hosts: how many processes.
    port: of the first, where the others find it; 0 makes one of the name.
  """

  job: jobs.Job
  run: shell.Shell
  hosts: int = 2
  port: int = 0
  wait_seconds: float = 0.0
  restarts_itself: bool = False
  _seen: int = 0

  def __post_init__(self):
    if '://' in self.job.workdir:
      raise errors.UserError(
        f'--workdir: found {self.job.workdir}, expected a folder of this '
        'machine for --backend=local'
      )

  @property
  def where(self) -> str:
    """See `Backend`."""
    return str(self.root)

  @property
  def root(self) -> pathlib.Path:
    """Folder of all that is made for the job."""
    return pathlib.Path(self.job.workdir) / 'launch' / self.job.name

  def folder(self, index: int) -> worker.Folder:
    """Where one process is kept."""
    name = f'worker-{index}'
    return worker.Folder(
      str(self.root / name), str(self.root / 'tree'), sys.executable, name
    )

  def _group(self, index: int) -> str:
    """What tells a process of the others."""
    port = self.port or _PORTS[int(self.job.digest, 16) % len(_PORTS)]
    return (
      f'export JAX_COORDINATOR_ADDRESS=127.0.0.1:{port}\n'
      f'export JAX_NUM_PROCESSES={self.hosts}\n'
      f'export JAX_PROCESS_ID={index}\n'
    )

  def _scripts(self, archive: pathlib.Path) -> dict[str, str]:
    everything = worker.Folder(str(self.root))
    return {
      'unpack the code': worker.unpack(everything, str(archive)),
      **{
        f'start process {i}, detached': f'mkdir -p {self.folder(i).quoted}\n'
        + worker.start(self.folder(i), self.job, self._group(i))
        for i in range(self.hosts)
      },
    }

  def steps(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    archive = source.archive_path(self.job.name, commit)
    first = source.archive_command(commit, archive)
    return [
      backends.Step('the code', shlex.join(first)),
      *(
        backends.Step(title, shlex.join(_bash(script)))
        for title, script in self._scripts(archive).items()
      ),
      backends.Step(
        'watch process 0', shlex.join(_bash(worker.tell(self.folder(0))))
      ),
      *self.deletion(commit),
    ]

  def deletion(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    return backends.steps(
      {
        f'at the end, of process {i}': _bash(
          worker.stop(self.folder(i), 'KILL')
        )
        for i in range(self.hosts)
      }
    )

  def find(self) -> backends.Found | None:
    """See `Backend`."""
    path = self.root / 'job.json'
    if not path.exists():
      return None
    return backends.Found(**json.loads(path.read_text()))

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """See `Backend`."""
    port = self._group(0).partition(':')[2].partition('\n')[0]
    with socket.socket() as free:
      free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        free.bind(('127.0.0.1', int(port)))
      except OSError as error:
        raise errors.UserError(
          f'--port: {port} is taken ({error.strerror}): name another one'
        ) from None
    try:
      self.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.UserError(
        f'--workdir: cannot write to {self.job.workdir} ({error.strerror})'
      ) from None
    (self.root / 'job.json').write_text(
      json.dumps({'digest': self.job.digest, 'commit': commit})
    )

  def pending(self) -> str:
    """See `Backend`."""
    return ''

  def prepare(self, archive: pathlib.Path) -> None:
    """See `Backend`."""
    self._bash(self._scripts(archive)['unpack the code'])

  def start(self) -> None:
    """See `Backend`."""
    scripts = self._scripts(pathlib.Path())
    for i in range(self.hosts):
      self._bash(scripts[f'start process {i}, detached'])

  def _bash(self, script: str) -> str:
    result = self.run(_bash(script), whole=True)
    if result.code:
      raise errors.UserError(f'{self.root}: {result.last_line}')
    return result.out

  def poll(self) -> backends.Report:
    """See `Backend`."""
    told = ''.join(
      self._bash(worker.tell(self.folder(i))) for i in range(self.hosts)
    )
    states = worker.read_states(told)
    log = worker.read_log(self._bash(worker.log(self.folder(0), self._seen)))
    self._seen += len(log.encode(errors='surrogateescape'))
    return backends.Report(
      worker.codes(list(states.items())),
      'absent' not in states.values(),
      log=log,
    )

  def last_words(self) -> str:
    """See `Backend`."""
    return ''.join(
      self._bash(worker.last_words(self.folder(i))) for i in range(self.hosts)
    )

  def stop(self, now: bool = False) -> bool:
    """See `Backend`."""
    # Whoever deletes may not know how many there are.
    for path in self.root.glob('worker-*'):
      folder = worker.Folder(str(path))
      self._bash(worker.stop(folder, 'KILL' if now else 'TERM'))
    return True

  def leave(self) -> None:
    """Nothing: nobody follows."""

  def delete(self) -> str:
    """Ends the processes; leaves what they printed. See `Backend`."""
    self.stop(now=True)
    try:
      shutil.rmtree(self.root / 'tree', ignore_errors=True)
      for name in ('run.sh', 'pid', 'exit'):
        for path in self.root.glob(f'worker-*/{name}'):
          path.unlink()
      (self.root / 'job.json').unlink(missing_ok=True)
    except OSError as error:
      return str(error)
    return ''


def _bash(script: str) -> list[str]:
  return ['bash', '-c', script]
