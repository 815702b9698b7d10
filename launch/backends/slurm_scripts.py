"""The scripts of a SLURM job.

SLURM itself requeues the job after preemption and node failures; the batch
script requeues it after status 75. SIGTERM comes 120 s before the time limit.
"""

import dataclasses
import math
import pathlib
import shlex
from collections.abc import Sequence

from launch import job as jobs
from launch import worker
from runtime import errors, exit_status

_SIGNAL_SECONDS = 120
# Reaches the tasks but not the script; srun would kill its tasks on SIGTERM.
_SIGNAL_TASKS = 'scancel --signal=TERM "$SLURM_JOB_ID"'

# Status after which the batch script requeues the job.
_RESTART = exit_status.PREEMPTED

# `job.combine_worker_exit_codes` in bash, for the nodes, on which no launcher
# runs; a test compares both.
COMBINE_EXIT_CODES = f"""\
result=0 killed=
for worker in $(seq 0 {{last}}); do
  code=$(cat "$root/exit.$worker" 2> /dev/null || echo killed)
  case "$code" in
    0) ;;
    killed) killed=yes ;;
    {exit_status.USER_ERROR}) result={exit_status.USER_ERROR} ;;
    {_RESTART}) if [ "$result" -eq 0 ]; then result={_RESTART}; fi ;;
    *) if [ "$result" -eq 0 ] \
|| [ "$result" -eq {_RESTART} ]; then result=$code; fi ;;
  esac
done
if [ "$result" -eq 0 ] && [ -n "$killed" ]; \
then result={exit_status.FAILURE}; fi
"""


@dataclasses.dataclass(frozen=True)
class Scripts:
  """Builds the scripts of a job.

  Attributes:
    job: the job to run.
    hosts: number of nodes; each runs one process.
    python: interpreter on the nodes that creates the virtual environment.
    retries: number of times the job is requeued after status 75.
    grace: seconds that the other workers have once one has ended.
    extra: extra of setup.py for the accelerator: 'cuda' or 'tpu'.
    gres: generic resources of each node: 'gpu:8'.
    partition: partition to queue in; '' for the default.
    account: account to charge; '' for the default.
    time: time limit, after which the job is requeued: '24:00:00'.
    also: more options of sbatch.
  """

  job: jobs.Job
  hosts: int = 1
  python: str = 'python3.11'
  retries: int = 50
  grace: float = 120.0
  extra: str = 'cuda'
  gres: str = ''
  partition: str = ''
  account: str = ''
  time: str = ''
  also: Sequence[str] = ()

  def __post_init__(self):
    if '://' in self.job.workdir:
      raise errors.UserError(
        '--workdir: expected a folder that the nodes share with this machine, '
        f'got {self.job.workdir}'
      )
    for option in self._options():
      if not option.isprintable():  # Each becomes a line of the script.
        raise errors.UserError(
          f'expected options of sbatch without line breaks, got {option!r}'
        )

  @property
  def root(self) -> pathlib.Path:
    """Returns the folder of everything that is created for the job."""
    return pathlib.Path(self.job.workdir) / 'launch' / self.job.name

  @property
  def folder(self) -> worker.Folder:
    """Returns the folder of the job in the form that `worker` takes."""
    return worker.Folder(str(self.root))

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
      # A single % would begin a pattern of sbatch.
      f'--output={str(self.root / "log").replace("%", "%%")}',
      *self.also,
    ]

  def install(self) -> str:
    """Returns the script that installs the requirements."""
    return f'set -e\n{worker.install_requirements_script(self.extra)}'

  def task(self) -> str:
    """Returns the script of each process."""
    command = shlex.join([self.folder.python, *self.job.arguments])
    return f"""\
#!/bin/bash
# Runs one process of the job and writes its exit status.
root={self.folder.quoted}
cd "$root/tree" || exit 1
{command} &
{worker.wait_for_child_script()}echo "$code" > "$root/exit.$SLURM_PROCID"
exit "$code"
"""

  def batch(self) -> str:
    """Returns the script to submit."""
    lines = ''.join(f'#SBATCH {shlex.quote(o)}\n' for o in self._options())
    combine = COMBINE_EXIT_CODES.format(last=self.hosts - 1)
    wait = max(1, math.ceil(self.grace))  # 0 would mean without limit.
    return f"""\
#!/bin/bash
{lines}# Runs the job on all nodes and requeues it after an interruption.
root={self.folder.quoted}
cd "$root" || exit 1
[ -f job.json ] || exit 1  # The job was deleted while it was queued.
rm -f exit.* result
if [ ! -f installed ]; then
  {shlex.quote(self.python)} -m venv venv || exit 1
  bash install.sh || exit 1
  touch installed
fi
{worker.export_environment_script(self.job)}\
# srun does not inherit this option from sbatch.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] \\
  || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --kill-on-bad-exit=0 --wait={wait} bash "$root/task.sh" &
{worker.wait_for_child_script(_SIGNAL_TASKS)}{combine}\
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$result" -eq {_RESTART} ] && [ ! -f stopping ] \\
    && [ "$restarts" -lt {self.retries} ]; then
  scontrol requeue "$SLURM_JOB_ID" && exit {_RESTART}
fi
echo "$result" > result.partial
mv result.partial result
exit "$result"
"""
