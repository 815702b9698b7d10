"""Several processes on this machine, as a rehearsal of several hosts.

The committed code is unpacked in the work folder and runs there with the Python
of this process, so that what is tested is what would be shipped.
"""

import dataclasses
import json
import pathlib
import shutil
import socket
import sys

from launch import backends, shell, source, worker
from launch import job as jobs
from runtime import errors

_PORTS = range(20000, 32000)


@dataclasses.dataclass
class Local:
  """A group of processes on this machine.

  Attributes:
    job: the job to run.
    run: shell that runs the commands.
    hosts: number of processes.
    port: port of the coordinator; 0 derives one from the job.
  """

  job: jobs.Job
  run: shell.Shell
  hosts: int = 2
  port: int = 0
  wait_seconds: float = 0.0
  restarts_itself: bool = False
  _log_offset: int = 0

  def __post_init__(self):
    if '://' in self.job.workdir:
      raise errors.UserError(
        '--workdir: expected a folder of this machine for --backend=local, got '
        f'{self.job.workdir}'
      )

  @property
  def location(self) -> str:
    """Returns the folder of the job, which need not exist."""
    return str(self.root)

  @property
  def root(self) -> pathlib.Path:
    """Returns the folder of everything that is created for the job."""
    return pathlib.Path(self.job.workdir) / 'launch' / self.job.name

  def folder(self, index: int) -> worker.Folder:
    """Returns the folder of a process."""
    name = f'worker-{index}'
    return worker.Folder(
      str(self.root / name), str(self.root / 'tree'), sys.executable, name
    )

  @property
  def _port(self) -> int:
    return self.port or _PORTS[int(self.job.digest, 16) % len(_PORTS)]

  def _export_group(self, index: int) -> str:
    """Returns a script that exports coordinator, group size and index."""
    return (
      f'export JAX_COORDINATOR_ADDRESS=127.0.0.1:{self._port}\n'
      f'export JAX_NUM_PROCESSES={self.hosts}\n'
      f'export JAX_PROCESS_ID={index}\n'
    )

  def _unpack_script(self, archive: pathlib.Path) -> str:
    return worker.unpack_code_script(
      worker.Folder(str(self.root)), str(archive)
    )

  def _start_script(self, index: int) -> str:
    folder = self.folder(index)
    return f'mkdir -p {folder.quoted}\n' + worker.start_job_script(
      folder, self.job, self._export_group(index)
    )

  def steps(self, commit: str) -> list[backends.Step]:
    """Returns the scripts that unpack, start, poll and kill the processes."""
    archive = source.code_archive_path(self.job.name, commit)
    commands = {
      'pack the code': source.code_archive_command(commit, archive),
      'unpack the code': _bash(self._unpack_script(archive)),
      **{
        f'start process {i}, detached': _bash(self._start_script(i))
        for i in range(self.hosts)
      },
      'poll process 0': _bash(worker.print_state_script(self.folder(0))),
    }
    return [
      *backends.build_launch_steps(commands),
      *self.deletion_steps(commit),
    ]

  def deletion_steps(self, commit: str) -> list[backends.Step]:
    """Returns the scripts that kill the processes."""
    return backends.build_launch_steps(
      {
        f'at the end: kill process {i}': _bash(
          worker.stop_job_script(self.folder(i), force=True)
        )
        for i in range(self.hosts)
      }
    )

  def find(self) -> backends.Existing | None:
    """Reads the description of the job that `create` wrote."""
    path = self.root / 'job.json'
    if not path.exists():
      return None
    return backends.Existing(**json.loads(path.read_text()))

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Checks that the port is free and creates the folder of the job."""
    port = self._port
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind(('127.0.0.1', port))
      except OSError as error:
        raise errors.UserError(
          f'--port: {port} is in use ({error.strerror}): choose another one'
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

  def waiting_for(self) -> str:
    """Returns '': processes can start at once."""
    return ''

  def install(self, archive: pathlib.Path) -> None:
    """Unpacks the code; its requirements are those of this process."""
    self._run_script(self._unpack_script(archive))

  def start(self) -> None:
    """Starts all processes that do not run yet."""
    for i in range(self.hosts):
      self._run_script(self._start_script(i))

  def _run_script(self, script: str) -> str:
    result = self.run(_bash(script), creates=True)
    if result.code:
      raise errors.UserError(f'{self.root}: {result.error_line}')
    return result.out

  def poll(self) -> backends.Report:
    """Reads the state of each process and the log of the first."""
    printed = ''.join(
      self._run_script(worker.print_state_script(self.folder(i)))
      for i in range(self.hosts)
    )
    states = worker.parse_worker_states(printed)
    log = worker.parse_worker_log(
      self._run_script(
        worker.print_log_script(self.folder(0), self._log_offset)
      )
    )
    self._log_offset += len(log.encode(errors='surrogateescape'))
    return backends.Report(
      worker.worker_exit_codes(states), 'absent' not in states.values(), log=log
    )

  def failure_log(self) -> str:
    """Returns the last lines of the processes that failed."""
    return ''.join(
      self._run_script(worker.print_failure_log_script(self.folder(i)))
      for i in range(self.hosts)
    )

  def stop(self, force: bool = False) -> bool:
    """Sends SIGTERM to all processes, or SIGKILL to their groups."""
    # A command with --delete may not know how many there are.
    for path in self.root.glob('worker-*'):
      self._run_script(worker.stop_job_script(worker.Folder(str(path)), force))
    return True

  def detach(self) -> None:
    """Does nothing: no local process follows the job."""

  def delete(self) -> str:
    """Kills the processes and deletes all but their logs."""
    self.stop(force=True)
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
