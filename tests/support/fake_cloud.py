"""State and scenario that the fakes of gcloud, kubectl and SLURM share.

The fakes store what exists in a file and run what they are given for real, in
folders in place of machines, so that quoting is tested too. The folder is
$FAKE_CLOUD; its `scenario.json` defines what goes wrong:

  create: answer of each request for machines: 'ok', 'quota', 'stockout'
  ready: number of polls until machines are ready; -1: never
  preempt: number of times that machines are taken away while the job runs
  no_ssh: number of connections that fail at first
  no_scp: number of copies that fail at first for lack of a connection
  expired: gcloud's login has expired
  lag: number of polls until created machines are visible
  fetch: number of times that pods cannot fetch the code
  image: whether the image of the pods exists
  memory: whether the second pod runs out of memory
  delete: answer of each deletion: 'ok' or 'error'
  time_up: number of times that SLURM's time limit ends while the job runs
  slow: seconds that some verbs of gcloud, and sbatch, take
  codes: what the job does in each run, by worker: see `fake_job`
"""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import sys

ROOT = pathlib.Path(os.environ['FAKE_CLOUD'])


@contextlib.contextmanager
def locked_state():
  """Yields what exists, to be read and changed by one process at a time."""
  with open(ROOT / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = ROOT / 'state.json'
    state = json.loads(path.read_text()) if path.exists() else {}
    try:
      yield state
    finally:
      # Atomically: the launcher may end this process.
      path.with_suffix('.new').write_text(json.dumps(state, indent=1))
      path.with_suffix('.new').replace(path)


def scenario(name, default):
  path = ROOT / 'scenario.json'
  content = json.loads(path.read_text()) if path.exists() else {}
  return content.get(name, default)


def next_answer(state, name, answers, default='ok'):
  count = state.setdefault('counts', {})
  i = count.get(name, 0)
  count[name] = i + 1
  return answers[i] if i < len(answers) else default


def fail(text, code=1):
  print(text, file=sys.stderr)
  sys.exit(code)


def flag(arguments, name, default=None):
  """Returns the value of the last --NAME=VALUE."""
  matches = [a for a in arguments if a.startswith(f'--{name}=')]
  return matches[-1].partition('=')[2] if matches else default


def kill_group(pid):
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(pid, signal.SIGKILL)


def kill_below(folder):
  """Kills the processes whose ids are in files `pid` below a folder."""
  for path in folder.rglob('pid'):
    with contextlib.suppress(ValueError):
      kill_group(int(path.read_text().split()[0]))


def have_run(number, hosts):
  """Returns whether that many runs of the job have begun on all hosts."""
  for i in range(hosts):
    path = ROOT / f'runs-{i}.jsonl'
    if not path.exists() or path.read_text().count('\n') < number:
      return False
  return True


def call(programs, name, arguments):
  """Records a call and runs the fake of a program.

  Args:
    programs: functions of the arguments, by the programs that they replace.
    name: of the program.
    arguments: of the call.
  """
  with open(ROOT / 'calls', 'a') as calls:
    calls.write(json.dumps([name, *arguments]) + '\n')
  programs[name](arguments)
