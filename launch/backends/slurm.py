"""A SLURM job, on nodes that share a file system with this machine."""

import dataclasses
import json
import pathlib
import re
import shlex
import shutil

from launch import backends, shell, source, worker
from launch import job as jobs
from launch.backends import slurm_scripts
from runtime import errors, exit_status

_UNKNOWN = '?'
_WAITING_STATES = ('PENDING', 'CONFIGURING', 'REQUEUED')
# Consecutive polls without a job and without its result before it counts as
# failed: on a shared file system the result may appear late.
_MAX_MISSING_POLLS = 4
_GONE = re.compile('Invalid job id', re.IGNORECASE)


@dataclasses.dataclass
class Slurm:
  """A job of SLURM.

  Attributes:
    scripts: scripts that are submitted.
    run: shell that runs the commands.
    wait_seconds: limit of the time until the job starts; 0 for none.
  """

  scripts: slurm_scripts.Scripts
  run: shell.Shell
  wait_seconds: float = 0.0
  restarts_itself: bool = True
  _log_offset: int = 0
  _missing_polls: int = 0
  _outage: str = ''

  @property
  def job(self) -> jobs.Job:
    """Returns the job to run."""
    return self.scripts.job

  @property
  def location(self) -> str:
    """Returns the folder of the job, which need not exist."""
    return str(self.root)

  @property
  def root(self) -> pathlib.Path:
    """Returns the folder of everything that is created for the job."""
    return self.scripts.root

  def _submit_command(self) -> list[str]:
    return ['sbatch', '--parsable', str(self.root / 'job.sh')]

  def _unpack_command(self, archive: pathlib.Path) -> list[str]:
    script = worker.unpack_code_script(self.scripts.folder, str(archive))
    return ['bash', '-c', script]

  def steps(self, commit: str) -> list[backends.Step]:
    """Returns the files and commands from submitting the job to canceling."""
    archive = source.code_archive_path(self.job.name, commit)
    code = shlex.join(source.code_archive_command(commit, archive))
    files = {
      'install.sh': self.scripts.install(),
      'task.sh': self.scripts.task(),
      'job.sh': self.scripts.batch(),
    }
    return [
      backends.Step('pack the code', code),
      backends.Step('unpack it', shlex.join(self._unpack_command(archive))),
      *(
        backends.Step(f'the file {self.root}/{name}', content)
        for name, content in files.items()
      ),
      backends.Step('submit', shlex.join(self._submit_command())),
      backends.Step('poll', shlex.join(_state_command('JOB'))),
      backends.Step(
        'on Ctrl-C: let the job save', shlex.join(_term_command('JOB'))
      ),
      *self.deletion_steps(commit),
    ]

  def deletion_steps(self, commit: str) -> list[backends.Step]:
    """Returns the command that cancels the job."""
    return backends.build_launch_steps(
      {'at the end, if it exists': ['scancel', 'JOB']}
    )

  def find(self) -> backends.Existing | None:
    """Reads the description of the job that `create` wrote."""
    path = self.root / 'job.json'
    if not path.exists():
      return None
    if not self._id:  # The launcher was killed between sbatch and noting it.
      result = self.run(_find_command(self.job.name))
      if result.code:
        raise errors.UserError(f'squeue: {result.error_line}')
      (self.root / 'id').write_text(result.out.strip().rpartition('\n')[2])
    return backends.Existing(**json.loads(path.read_text()))

  @property
  def _id(self) -> str:
    path = self.root / 'id'
    return path.read_text().strip() if path.exists() else ''

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Unpacks the code, writes the scripts and submits the job."""
    self._log_offset = 0
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      for name in ('id', 'log', 'stopping', 'result'):
        (self.root / name).unlink(missing_ok=True)
      (self.root / 'install.sh').write_text(self.scripts.install())
      (self.root / 'task.sh').write_text(self.scripts.task())
      (self.root / 'job.sh').write_text(self.scripts.batch())
    except OSError as error:
      raise errors.UserError(
        f'--workdir: cannot write to {self.job.workdir} ({error.strerror})'
      ) from None
    result = self.run(self._unpack_command(archive))
    if result.code:
      self._delete_files()
      raise errors.UserError(f'{self.root}: {result.error_line}')
    (self.root / 'job.json').write_text(
      json.dumps({'digest': self.job.digest, 'commit': commit})
    )
    with self.run.deferring_stop():
      result = self.run(self._submit_command(), creates=True)
      if result.code:
        self._delete_files()
        raise errors.UserError(f'sbatch: {result.error_line}')
      # With several clusters sbatch prints ID;CLUSTER.
      (self.root / 'id').write_text(result.out.strip().partition(';')[0])

  def waiting_for(self) -> str:
    """Returns the state of a job that is still queued."""
    state = self._read_state()
    return state if state in _WAITING_STATES else ''

  def _read_state(self) -> str:
    """Reads SLURM's state of the job.

    Returns:
      The state; '' if the job does not exist any more, `_UNKNOWN` if SLURM did
      not answer.
    """
    if not self._id:
      return ''
    result = self.run(_state_command(self._id))
    if result.code:
      self._outage = f'{backends.NO_ANSWER} (squeue: {result.error_line})'
      return '' if _GONE.search(result.err) else _UNKNOWN
    return result.out.strip()

  def install(self, archive: pathlib.Path) -> None:
    """Does nothing: the batch script installs the requirements."""

  def start(self) -> None:
    """Does nothing: SLURM starts the job."""

  def _read_exit_codes(self) -> dict[str, int | None]:
    exit_codes: dict[str, int | None] = {}
    for i in range(self.scripts.hosts):
      path = self.root / f'exit.{i}'
      text = path.read_text().strip() if path.exists() else ''
      exit_codes[f'worker-{i}'] = int(text) if text else None
    return exit_codes

  def _read_log(self) -> str:
    path = self.root / 'log'
    if not path.exists():
      return ''
    with open(path, 'rb') as file:
      file.seek(self._log_offset)
      log = file.read()
    self._log_offset += len(log)
    return log.decode(errors='surrogateescape')

  def poll(self) -> backends.Report:
    """Asks SLURM for the state and reads what the job has written."""
    # The state first: once the job is gone, its files are complete.
    state = self._read_state()
    log = self._read_log()
    result = self.root / 'result'
    final_code = int(result.read_text()) if result.exists() else None
    if final_code is None and not state:
      self._missing_polls += 1
      if self._missing_polls >= _MAX_MISSING_POLLS:
        log += (
          f'launch: {self._id or "the job"} ended without a result: it was '
          'canceled, ran out of time, or could not install its requirements; '
          f'see sacct --jobs={self._id}\n'
        )
        final_code = exit_status.FAILURE
    else:
      self._missing_polls = 0
    outage = self._outage if state == _UNKNOWN else ''
    return backends.Report(
      self._read_exit_codes(), True, outage, log, final_code
    )

  def failure_log(self) -> str:
    """Returns '': all workers print into one log, which is shown whole."""
    return ''

  def stop(self, force: bool = False) -> bool:
    """Signals the batch script, or cancels the job."""
    if not self._id:
      return False
    (self.root / 'stopping').touch()  # The batch script does not requeue it.
    command = ['scancel', self._id] if force else _term_command(self._id)
    return not self.run(command).code

  def detach(self) -> None:
    """Does nothing: no local process follows the job."""

  def delete(self) -> str:
    """Cancels the job and deletes its files, except the log."""
    if self._id and self._read_state():
      result = self.run(['scancel', self._id])
      if result.code and not _GONE.search(result.err):
        return result.error_line
    self._delete_files()
    return ''

  def _delete_files(self) -> None:
    for name in ('tree', 'venv'):
      shutil.rmtree(self.root / name, ignore_errors=True)
    for name in ('installed', 'stopping', 'id', 'job.json'):
      (self.root / name).unlink(missing_ok=True)


def _state_command(job_id: str) -> list[str]:
  return ['squeue', '--noheader', f'--jobs={job_id}', '--format=%T']


def _find_command(name: str) -> list[str]:
  return ['squeue', '--noheader', '--me', f'--name={name}', '--format=%i']


def _term_command(job_id: str) -> list[str]:
  """Returns the command that sends SIGTERM to the batch script.

  The script forwards it to the tasks of the job.
  """
  return ['scancel', '--batch', '--signal=TERM', job_id]
