"""Shell scripts that run on a worker, and parsers of their output.

A worker's folder holds `tree` (the code), `run.sh`, `pid` (process id and boot
id), `log` and, once the process has ended, `exit` with its status. All values
that come from a user are quoted, so that they arrive unchanged.
"""

import dataclasses
import shlex
from collections.abc import Mapping

from launch import job as jobs
from runtime import exit_status

_LOG_BYTES = 1_000_000
LOG_MARK = 'launch-log'
WORKER_MARK = 'launch-worker'

# A process id means something only within one boot: after a reboot it may
# belong to another process.
_READ_PID = """\
boot_now=$(cat /proc/sys/kernel/random/boot_id)
read -r pid boot < pid || true
[ "$boot" = "$boot_now" ] || pid=none
"""

# The hosts of a slice find one another by the metadata of their VMs.
# jax.distributed.initialize() could do so itself, but a program cannot know in
# advance that it runs on several hosts and has to call it, and the files under
# /dev that would show it differ between generations.
EXPORT_SLICE = """\
attribute() {{
  curl --fail --silent --show-error --retry 5 \\
    --header 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
endpoints=$(attribute worker-network-endpoints)
first=${{endpoints%%,*}}
export JAX_COORDINATOR_ADDRESS="${{first##*:}}:8482"
export JAX_NUM_PROCESSES={hosts}
JAX_PROCESS_ID=$(attribute agent-worker-number)
export JAX_PROCESS_ID
"""


@dataclasses.dataclass(frozen=True)
class Folder:
  """The folder of a worker.

  Attributes:
    path: path of the folder, absolute or relative to the folder in which the
      commands of the worker start.
    tree: folder of the code, relative to `path`.
    python: path of the Python interpreter of the job, relative to `tree`.
    name: name of the worker, as a shell expression.
  """

  path: str
  tree: str = 'tree'
  python: str = '../venv/bin/python'
  name: str = '$(hostname)'

  @property
  def quoted(self) -> str:
    """Returns the path, quoted for a shell."""
    return shlex.quote(self.path)


def wait_for_child_script(on_term: str = 'kill -TERM "$child"') -> str:
  """Returns a script that waits for the last background process.

  The script leaves the exit status of the process in $code. A signal ends
  `wait` of the shell early, so that the script calls it three times; further
  signals are ignored. Bash may lose the status of a process that ends at the
  moment of a signal, and report -1: then the job is to be run again (75). The
  same holds for a process that SIGTERM ended before it had installed a handler
  (143).

  Args:
    on_term: shell command that forwards SIGTERM, without single quotes.
  """
  restart, terminated = exit_status.PREEMPTED, exit_status.TERMINATED
  return f"""\
child=$!
trap 'trap "" TERM; {on_term}' TERM
wait "$child"
code=$?
while kill -0 "$child" 2> /dev/null; do
  wait "$child"
done
wait "$child" 2> /dev/null
last=$?
[ "$last" -eq 127 ] || code=$last
if [ "$code" -lt 0 ] || [ "$code" -eq {terminated} ]; then code={restart}; fi
"""


def unpack_code_script(folder: Folder, archive: str) -> str:
  """Returns a script that unpacks the code archive and then deletes it."""
  return f"""\
set -e
mkdir -p {folder.quoted}
rm -rf {folder.quoted}/tree
mkdir {folder.quoted}/tree
tar -xzf {shlex.quote(archive)} -C {folder.quoted}/tree
rm -f {shlex.quote(archive)}
"""


def install_code_script(folder: Folder, extra: str) -> str:
  """Returns a script that creates the virtual environment of the code.

  The pins are for Python 3.11, which TPU VMs do not have: uv fetches it.

  Args:
    folder: folder of the worker.
    extra: extra of setup.py for the accelerator: 'tpu' or 'cuda'.
  """
  return f"""\
set -e
cd {folder.quoted}
python3 -m pip install --quiet --user uv
[ -x venv/bin/python ] || python3 -m uv venv --quiet --seed --python 3.11 venv
{install_requirements_script(extra)}"""


def install_requirements_script(extra: str) -> str:
  """Returns a script that installs the code and its pinned requirements.

  The script runs in the folder of the worker, which has the code in `tree` and
  the virtual environment in `venv`.

  Args:
    extra: extra of setup.py for the accelerator: 'tpu' or 'cuda'.
  """
  return f"""\
cd tree
../venv/bin/python -m pip install --quiet --requirement requirements.lock \\
  --constraint requirements.lock --editable '.[{extra}]'
cd ..
"""


def export_environment_script(job: jobs.Job) -> str:
  """Returns a script that exports the job's environment variables."""
  return ''.join(
    f'export {name}={shlex.quote(value)}\n' for name, value in job.environment
  )


def run_job_script(folder: Folder, job: jobs.Job, setup: str = '') -> str:
  """Returns the script that runs the job and writes its exit status.

  Args:
    folder: folder of the worker.
    job: the command to run.
    setup: script that runs before it.
  """
  command = shlex.join([folder.python, *job.arguments])
  return f"""\
#!/bin/bash
# Runs the job and writes its exit status.
here=$PWD
cd {shlex.quote(folder.tree)} || exit 1
{export_environment_script(job)}{setup}{command} &
{wait_for_child_script()}echo "$code" > "$here/exit.partial"
mv "$here/exit.partial" "$here/exit"
"""


def start_job_script(folder: Folder, job: jobs.Job, setup: str = '') -> str:
  """Returns a script that starts the job unless it runs already.

  The job is detached: it survives the connection that started it.

  Args:
    folder: folder of the worker.
    job: the command to run.
    setup: script that runs before it.
  """
  return f"""\
set -e
cd {folder.quoted}
if [ -f pid ] && [ ! -f exit ]; then
{_READ_PID}\
  if kill -0 "$pid" 2> /dev/null; then exit 0; fi
fi
rm -f exit
printf '%s' {shlex.quote(run_job_script(folder, job, setup))} > run.sh
setsid nohup bash run.sh >> log 2>&1 < /dev/null &
echo "$! $(cat /proc/sys/kernel/random/boot_id)" > pid
"""


def print_state_script(folder: Folder) -> str:
  """Returns a script that prints a line with the worker's name and state.

  The state is an exit status, `running`, `lost` if the process vanished without
  an exit status, or `absent` if it was never started.
  """
  return f"""\
state=absent
if cd {folder.quoted} 2> /dev/null && [ -f pid ]; then
{_READ_PID}\
  state=lost
  if kill -0 "$pid" 2> /dev/null; then state=running; fi
  if [ -f exit ]; then state=$(cat exit); fi
fi
echo "{WORKER_MARK} {folder.name} $state"
"""


def print_log_script(folder: Folder, offset: int) -> str:
  """Returns a script that prints the job's log from a byte offset on."""
  return f"""\
echo {LOG_MARK}
tail -c +{offset + 1} {folder.quoted}/log 2> /dev/null | head -c {_LOG_BYTES}
"""


def print_failure_log_script(folder: Folder) -> str:
  """Returns a script that prints the last lines of a worker that failed."""
  return f"""\
cd {folder.quoted} 2> /dev/null || exit 0
case "$(cat exit 2> /dev/null)" in 0) exit 0 ;; esac
tail -n 20 log | while IFS= read -r line; do
  printf '%s| %s\\n' "{folder.name}" "$line"
done
"""


def stop_job_script(folder: Folder, force: bool = False) -> str:
  """Returns a script that asks the job to save and stop.

  Args:
    folder: folder of the worker.
    force: whether the job is killed instead, with all processes that it has
      started.
  """
  number, target = ('KILL', '-- "-$pid"') if force else ('TERM', '"$pid"')
  return f"""\
cd {folder.quoted} 2> /dev/null || exit 0
[ -f pid ] || exit 0
{_READ_PID}\
kill -{number} {target} 2> /dev/null || true
"""


def parse_worker_states(text: str) -> dict[str, str]:
  """Parses the output of `print_state_script` to the state of each worker."""
  states = {}
  for line in text.splitlines():
    parts = line.split()
    if len(parts) == 3 and parts[0] == WORKER_MARK:
      states[parts[1]] = parts[2]
  return dict(sorted(states.items(), key=lambda item: _order(item[0])))


def parse_worker_log(text: str) -> str:
  """Parses the output of `print_log_script` to the log of the job."""
  return text.partition(f'{LOG_MARK}\n')[2]


def _order(name: str) -> tuple[int, str]:
  """Returns a sort key: the number at the end of a worker's name."""
  number = name.rpartition('-')[2]
  return (int(number) if number.isdigit() else 0, name)


def worker_exit_codes(states: Mapping[str, str]) -> dict[str, int | None]:
  """Returns the exit status of each worker, None before its end.

  Args:
    states: state of each worker, as `parse_worker_states` returns them.
  """
  words = {'running': None, 'absent': None, 'lost': jobs.LOST}
  return {
    name: words[state] if state in words else int(state)
    for name, state in states.items()
  }
