"""A job of SLURM, on nodes that share a file system with this machine.

SLURM restarts it: after preemption and node failures by itself, after status 75
because the job's script asks for it. SIGTERM comes 120 s before the time ends.
"""

import dataclasses
import json
import math
import pathlib
import re
import shlex
import shutil
from collections.abc import Sequence

from launch import backends, shell, source, worker
from launch import job as jobs
from runtime import errors

_SIGNAL_SECONDS = 120
_UNKNOWN = '?'
# Looks in a row without job and without result: files may come late.
_LATE_LOOKS = 4
_GONE = re.compile('Invalid job id', re.IGNORECASE)
# srun would kill its tasks at SIGTERM; this reaches them, and not the script.
_ASK_TASKS = 'scancel --signal=TERM "$SLURM_JOB_ID"'

# What the workers' exit statuses mean together, as `job.combine` has it.
_COMBINE = """\
result=0 killed=
for worker in $(seq 0 {last}); do
  code=$(cat "$root/exit.$worker" 2> /dev/null || echo killed)
  case "$code" in
    0) ;;
    killed) killed=yes ;;
    2) result=2 ;;
    75) if [ "$result" -eq 0 ]; then result=75; fi ;;
    *) if [ "$result" -eq 0 ] || [ "$result" -eq 75 ]; then result=$code; fi ;;
  esac
done
if [ "$result" -eq 0 ] && [ -n "$killed" ]; then result=1; fi
"""


@dataclasses.dataclass
class Slurm:
  """A job of SLURM.

  Attributes:
    job: what is run.
    run: runs commands.
    hosts: nodes; each runs one process.
    gres: what each node is to have: 'gpu:8'.
    partition: where it is queued; SLURM's default if ''.
    account: who pays.
    time: how long it may take before it is requeued: '24:00:00'.
    python: on the nodes; makes the virtual environment.
    extra: what to install besides the pins: 'cuda' or 'tpu'.
    retries: how often it is requeued after status 75.
    grace: seconds the others have once a worker has ended.
    also: more options of sbatch.
    wait_seconds: until it starts; 0 is as long as it takes.
  """

  job: jobs.Job
  run: shell.Shell
  hosts: int = 1
  gres: str = ''
  partition: str = ''
  account: str = ''
  time: str = ''
  python: str = 'python3.11'
  extra: str = 'cuda'
  retries: int = 50
  grace: float = 120.0
  also: Sequence[str] = ()
  wait_seconds: float = 0.0
  restarts_itself: bool = True
  _seen: int = 0
  _late_looks: int = 0
  _silence: str = ''

  def __post_init__(self):
    if '://' in self.job.workdir:
      raise errors.UserError(
        f'--workdir: found {self.job.workdir}, expected a folder that the '
        'nodes share with this machine'
      )
    for option in self._options():
      if not option.isprintable():  # A line of a script each.
        raise errors.UserError(
          f'found {option!r}, expected no line breaks in options of sbatch'
        )

  @property
  def where(self) -> str:
    """See `Backend`."""
    return str(self.root)

  @property
  def root(self) -> pathlib.Path:
    """Folder of all that is made for the job."""
    return pathlib.Path(self.job.workdir) / 'launch' / self.job.name

  @property
  def _here(self) -> worker.Folder:
    return worker.Folder(str(self.root))

  # What is done, as scripts and commands.

  def _options(self) -> list[str]:
    named = {
      'partition': self.partition,
      'account': self.account,
      'gres': self.gres,
      'time': self.time,
    }
    return [
      f'--job-name={self.job.name}',
      f'--nodes={self.hosts}',
      '--ntasks-per-node=1',
      *(f'--{name}={value}' for name, value in named.items() if value),
      '--requeue',
      f'--signal=B:TERM@{_SIGNAL_SECONDS}',
      '--open-mode=append',
      # A % would begin a pattern.
      f'--output={str(self.root / "log").replace("%", "%%")}',
      *self.also,
    ]

  def task(self) -> str:
    """The script of each process."""
    command = shlex.join([self._here.python, *self.job.arguments])
    return f"""\
#!/bin/bash
# One process of the job; leaves its exit status.
root={self._here.quoted}
cd "$root/tree" || exit 1
{command} &
{worker.wait()}echo "$code" > "$root/exit.$SLURM_PROCID"
exit "$code"
"""

  def script(self) -> str:
    """The script that is submitted."""
    lines = ''.join(f'#SBATCH {shlex.quote(o)}\n' for o in self._options())
    combine = _COMBINE.format(last=self.hosts - 1)
    wait = max(1, math.ceil(self.grace))  # 0 would be without end.
    return f"""\
#!/bin/bash
{lines}# Runs the job on all nodes; asks to be run again after an interruption.
root={self._here.quoted}
cd "$root" || exit 1
[ -f job.json ] || exit 1  # It was deleted meanwhile.
rm -f exit.* result
if [ ! -f installed ]; then
  {shlex.quote(self.python)} -m venv venv || exit 1
  bash install.sh || exit 1
  touch installed
fi
{worker.exports(self.job)}\
# srun does not take it from sbatch.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] \\
  || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --kill-on-bad-exit=0 --wait={wait} bash "$root/task.sh" &
{worker.wait(_ASK_TASKS)}{combine}\
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$result" -eq 75 ] && [ ! -f stopping ] \\
    && [ "$restarts" -lt {self.retries} ]; then
  scontrol requeue "$SLURM_JOB_ID" && exit 75
fi
echo "$result" > result.partial
mv result.partial result
exit "$result"
"""

  def _install(self) -> str:
    return f'set -e\n{worker.requirements(self.extra)}'

  def _submit_command(self) -> list[str]:
    return ['sbatch', '--parsable', str(self.root / 'job.sh')]

  def _unpack_command(self, archive: pathlib.Path) -> list[str]:
    return ['bash', '-c', worker.unpack(self._here, str(archive))]

  def steps(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    archive = source.archive_path(self.job.name, commit)
    code = shlex.join(source.archive_command(commit, archive))
    return [
      backends.Step('the code', code),
      backends.Step('unpack it', shlex.join(self._unpack_command(archive))),
      backends.Step(f'the file {self.root}/install.sh', self._install()),
      backends.Step(f'the file {self.root}/task.sh', self.task()),
      backends.Step(f'the file {self.root}/job.sh', self.script()),
      backends.Step('submit', shlex.join(self._submit_command())),
      backends.Step('watch', shlex.join(_look('JOB'))),
      backends.Step('on Ctrl-C: let it save', shlex.join(_term('JOB'))),
      *self.deletion(commit),
    ]

  def deletion(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    return backends.steps({'at the end, if it is there': ['scancel', 'JOB']})

  # Doing it.

  def find(self) -> backends.Found | None:
    """See `Backend`."""
    path = self.root / 'job.json'
    if not path.exists():
      return None
    if not self._id:  # Whoever has submitted it was ended before it was noted.
      result = self.run(_look_for(self.job.name))
      if result.code:
        raise errors.UserError(f'squeue: {result.last_line}')
      (self.root / 'id').write_text(result.out.strip().rpartition('\n')[2])
    return backends.Found(**json.loads(path.read_text()))

  @property
  def _id(self) -> str:
    path = self.root / 'id'
    return path.read_text().strip() if path.exists() else ''

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """See `Backend`."""
    self._seen = 0
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      for name in ('id', 'log', 'stopping', 'result'):
        (self.root / name).unlink(missing_ok=True)
      (self.root / 'install.sh').write_text(self._install())
      (self.root / 'task.sh').write_text(self.task())
      (self.root / 'job.sh').write_text(self.script())
    except OSError as error:
      raise errors.UserError(
        f'--workdir: cannot write to {self.job.workdir} ({error.strerror})'
      ) from None
    result = self.run(self._unpack_command(archive))
    if result.code:
      self._clean()
      raise errors.UserError(f'{self.root}: {result.last_line}')
    (self.root / 'job.json').write_text(
      json.dumps({'digest': self.job.digest, 'commit': commit})
    )
    with self.run.undisturbed():
      result = self.run(self._submit_command(), whole=True)
      if result.code:
        self._clean()
        raise errors.UserError(f'sbatch: {result.last_line}')
      # Of several clusters it prints ID;CLUSTER.
      (self.root / 'id').write_text(result.out.strip().partition(';')[0])

  def pending(self) -> str:
    """See `Backend`."""
    state = self._state()
    return state if state in ('PENDING', 'CONFIGURING', 'REQUEUED') else ''

  def _state(self) -> str:
    """Of the job, as SLURM calls it; '' if it is not there any more.

    `_UNKNOWN` if nobody answered.
    """
    if not self._id:
      return ''
    result = self.run(_look(self._id))
    if result.code:
      self._silence = f'{backends.NO_ANSWER} (squeue: {result.last_line})'
      return '' if _GONE.search(result.err) else _UNKNOWN
    return result.out.strip()

  def prepare(self, archive: pathlib.Path) -> None:
    """Nothing: the job installs what it needs."""

  def start(self) -> None:
    """Nothing: SLURM starts the job."""

  def _codes(self) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for i in range(self.hosts):
      path = self.root / f'exit.{i}'
      text = path.read_text().strip() if path.exists() else ''
      found[f'worker-{i}'] = int(text) if text else None
    return found

  def poll(self) -> backends.Report:
    """See `Backend`."""
    # First the state: what is written is complete once the job is gone.
    state = self._state()
    path = self.root / 'log'
    log = b''
    if path.exists():
      with open(path, 'rb') as file:
        file.seek(self._seen)
        log = file.read()
    self._seen += len(log)
    text = log.decode(errors='surrogateescape')
    result = self.root / 'result'
    over = int(result.read_text()) if result.exists() else None
    if over is None and not state:
      self._late_looks += 1
      if self._late_looks >= _LATE_LOOKS:
        job = self._id or 'the job'
        text += (
          f'launch: {job} is gone without a result: canceled, out of time, or '
          f'it could not install; see sacct --jobs={self._id}\n'
        )
        over = jobs.FAILED
    else:
      self._late_looks = 0
    silence = self._silence if state == _UNKNOWN else ''
    return backends.Report(self._codes(), True, silence, text, over)

  def last_words(self) -> str:
    """Nothing: all workers print into one log."""
    return ''

  def stop(self, now: bool = False) -> bool:
    """See `Backend`."""
    if not self._id:
      return False
    (self.root / 'stopping').touch()
    command = ['scancel', self._id] if now else _term(self._id)
    return not self.run(command).code

  def leave(self) -> None:
    """Nothing: nobody follows."""

  def delete(self) -> str:
    """Cancels the job; leaves the log. See `Backend`."""
    if self._id and self._state():
      result = self.run(['scancel', self._id])
      if result.code and not _GONE.search(result.err):
        return result.last_line
    self._clean()
    return ''

  def _clean(self) -> None:
    for name in ('tree', 'venv'):
      shutil.rmtree(self.root / name, ignore_errors=True)
    for name in ('installed', 'stopping', 'id', 'job.json'):
      (self.root / name).unlink(missing_ok=True)


def _look(job: str) -> list[str]:
  return ['squeue', '--noheader', f'--jobs={job}', '--format=%T']


def _look_for(name: str) -> list[str]:
  return ['squeue', '--noheader', '--me', f'--name={name}', '--format=%i']


def _term(job: str) -> list[str]:
  """The batch script gets it, and passes it on to the processes."""
  return ['scancel', '--batch', '--signal=TERM', job]
