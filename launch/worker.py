"""What happens on a worker, as shell scripts: unpack, install, start, tell.

A worker's folder holds `tree` (the code), `run.sh`, `pid` (with the boot it is
of), `log` and, once its process has ended, `exit` with the status. Everything
that comes from a user is quoted, so that it arrives as it was written.
"""

import dataclasses
import shlex
from collections.abc import Sequence

from launch import job as jobs

_LOG_BYTES = 1_000_000
LOG_MARK = 'launch-log'
WORKER_MARK = 'launch-worker'

# After a reboot the number of a process may be another's.
_READ_PID = """\
boot_now=$(cat /proc/sys/kernel/random/boot_id)
read -r pid boot < pid || true
[ "$boot" = "$boot_now" ] || pid=none
"""

# The hosts of a slice find each other by what its machines are told. jax would
# do so itself, were it asked to: but a program cannot know before that it runs
# on several hosts, and files under /dev differ between the generations.
FIND_HOSTS = """\
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
  """A worker's folder.

  Attributes:
    path: of the folder, from where a worker's commands begin.
    tree: of the code, from within the folder.
    python: that runs the job, from within the code.
    name: what the worker calls itself, as the shell evaluates it.
  """

  path: str
  tree: str = 'tree'
  python: str = '../venv/bin/python'
  name: str = '$(hostname)'

  @property
  def quoted(self) -> str:
    """The path, for a shell."""
    return shlex.quote(self.path)


def wait(ask: str = 'kill -TERM "$child"') -> str:
  """Waits for what was started last in the background.

  A signal ends the shell's `wait` early, hence the second and third. More
  signals would confuse it: they are ignored. Bash may lose the status of what
  ends at the same moment and say -1: then it is to be run again, as is what was
  asked to stop before it could hear that (143).

  Args:
    ask: passes a request to stop on to it; without single quotes.
  """
  return f"""\
child=$!
trap 'trap "" TERM; {ask}' TERM
wait "$child"
code=$?
while kill -0 "$child" 2> /dev/null; do
  wait "$child"
done
wait "$child" 2> /dev/null
last=$?
[ "$last" -eq 127 ] || code=$last
if [ "$code" -lt 0 ] || [ "$code" -eq 143 ]; then code={jobs.PREEMPTED}; fi
"""


def unpack(folder: Folder, archive: str) -> str:
  """Puts the code where it is run; the archive goes."""
  return f"""\
set -e
mkdir -p {folder.quoted}
rm -rf {folder.quoted}/tree
mkdir {folder.quoted}/tree
tar -xzf {shlex.quote(archive)} -C {folder.quoted}/tree
rm -f {shlex.quote(archive)}
"""


def install(folder: Folder, extra: str) -> str:
  """Installs what the lock file pins, and what the accelerator needs.

  The pins are of Python 3.11, which the machines do not have: uv fetches it.
  """
  return f"""\
set -e
cd {folder.quoted}
python3 -m pip install --quiet --user uv
[ -x venv/bin/python ] || python3 -m uv venv --quiet --seed --python 3.11 venv
{requirements(extra)}"""


def requirements(extra: str) -> str:
  """Installs into `venv` what `tree` needs; run from the folder of both."""
  return f"""\
cd tree
../venv/bin/python -m pip install --quiet --requirement requirements.lock \\
  --constraint requirements.lock --editable '.[{extra}]'
cd ..
"""


def exports(job: jobs.Job) -> str:
  """Sets the job's environment."""
  return ''.join(
    f'export {name}={shlex.quote(value)}\n' for name, value in job.environment
  )


def run(folder: Folder, job: jobs.Job, before: str = '') -> str:
  """The script that runs the job and leaves its exit status."""
  command = shlex.join([folder.python, *job.arguments])
  return f"""\
#!/bin/bash
# Runs the job; leaves its exit status.
here=$PWD
cd {shlex.quote(folder.tree)} || exit 1
{exports(job)}{before}{command} &
{wait()}echo "$code" > "$here/exit.partial"
mv "$here/exit.partial" "$here/exit"
"""


def start(folder: Folder, job: jobs.Job, before: str = '') -> str:
  """Starts the job, detached: it goes on when whoever started it leaves.

  Where it runs already, nothing happens.
  """
  return f"""\
set -e
cd {folder.quoted}
if [ -f pid ] && [ ! -f exit ]; then
{_READ_PID}\
  if kill -0 "$pid" 2> /dev/null; then exit 0; fi
fi
rm -f exit
printf '%s' {shlex.quote(run(folder, job, before))} > run.sh
setsid nohup bash run.sh >> log 2>&1 < /dev/null &
echo "$! $(cat /proc/sys/kernel/random/boot_id)" > pid
"""


def tell(folder: Folder) -> str:
  """Prints a line with the worker's name and how it is.

  That is an exit status, or `running`; `lost` if the process is gone without
  one, `absent` if it was never started.
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


def log(folder: Folder, seen: int) -> str:
  """Prints what the job has printed after the bytes that were seen."""
  return f"""\
echo {LOG_MARK}
tail -c +{seen + 1} {folder.quoted}/log 2> /dev/null | head -c {_LOG_BYTES}
"""


def last_words(folder: Folder) -> str:
  """Prints the last lines of a worker that was not done."""
  return f"""\
cd {folder.quoted} 2> /dev/null || exit 0
case "$(cat exit 2> /dev/null)" in 0) exit 0 ;; esac
tail -n 20 log | while IFS= read -r line; do
  printf '%s| %s\\n' "{folder.name}" "$line"
done
"""


def stop(folder: Folder, sign: str = 'TERM') -> str:
  """Asks the job to save and stop; with KILL, ends it and all it started."""
  target = '"$pid"' if sign == 'TERM' else '-- "-$pid"'
  return f"""\
cd {folder.quoted} 2> /dev/null || exit 0
[ -f pid ] || exit 0
{_READ_PID}\
kill -{sign} {target} 2> /dev/null || true
"""


def read_states(text: str) -> dict[str, str]:
  """How each worker is, of what `tell` printed on all of them."""
  found = {}
  for line in text.splitlines():
    parts = line.split()
    if len(parts) == 3 and parts[0] == WORKER_MARK:
      found[parts[1]] = parts[2]
  return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def read_log(text: str) -> str:
  """The part of the job's log in what `log` printed."""
  return text.partition(f'{LOG_MARK}\n')[2]


def _order(name: str) -> tuple[int, str]:
  """Workers in the order of the number at the end of their name."""
  number = name.rpartition('-')[2]
  return (int(number) if number.isdigit() else 0, name)


def codes(states: Sequence[tuple[str, str]]) -> dict[str, int | None]:
  """Exit status of each worker; None of those that still run."""
  words = {'running': None, 'absent': None, 'lost': jobs.LOST}
  return {
    name: words[state] if state in words else int(state)
    for name, state in states
  }
