"""Runs the launcher with fakes of gcloud, kubectl and SLURM."""

import functools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SUPPORT = pathlib.Path(__file__).parent
# The module that fakes each program.
FAKES = {
  'gcloud': 'fake_gcloud',
  'kubectl': 'fake_kubectl',
  'sbatch': 'fake_slurm',
  'squeue': 'fake_slurm',
  'scancel': 'fake_slurm',
  'scontrol': 'fake_slurm',
  'srun': 'fake_slurm',
}
# Creates virtual environments whose pip only records its calls.
MAKE_VENV = f"""case "$2" in uv|venv) ;; *) exit 0 ;; esac
for last; do :; done
mkdir -p "$last/bin"
cat > "$last/bin/python" <<'EOF'
#!/bin/sh
if [ "$2" = pip ]; then echo "$*" >> ../pip.log; exit 0; fi
exec {shlex.quote(sys.executable)} -S -E "$@"
EOF
chmod +x "$last/bin/python"
"""
# Fakes in shell, which starts faster than Python: they are called often.
SCRIPTS = {
  'python3': MAKE_VENV,
  'python3.11': MAKE_VENV,
  'hostname': 'echo "t1v-n-fake-w-$FAKE_WORKER"',
  'curl': """case "$*" in
  *agent-worker-number) echo "$FAKE_WORKER" ;;
  *worker-network-endpoints) echo unknown:unknown:10.0.0.1,a:b:10.0.0.2 ;;
esac""",
}

# Flags for two hosts each.
MACHINES = {
  'local': ['--hosts=2'],
  'tpu_vm': ['--accelerator=v4-16', '--zone=z', '--project=p'],
  'queued': ['--accelerator=v4-16', '--zone=z', '--project=p'],
  'gke': ['--accelerator=v4-16'],
  'slurm': ['--hosts=2'],
}
QUICK = ['--poll=0.1', '--backoff=0.05', '--grace=5']
TIMEOUT_SECONDS = 30


@functools.cache
def _make_checkout() -> tuple[tempfile.TemporaryDirectory, str]:
  """Returns a checkout of the code that is shipped, and its commit."""
  folder = tempfile.TemporaryDirectory()
  for name in ('requirements.lock', 'setup.py'):
    (pathlib.Path(folder.name) / name).write_text('')
  shutil.copy(SUPPORT / 'fake_job.py', folder.name)
  # So that the commit has the same hash in every test.
  date = '2026-01-01T00:00:00Z'
  environment = {
    'PATH': '/usr/bin:/bin',
    'GIT_AUTHOR_DATE': date,
    'GIT_COMMITTER_DATE': date,
  }

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
      cwd=folder.name,
      env=environment,
      check=True,
      capture_output=True,
      text=True,
    ).stdout

  git('init', '--quiet', '--template=')
  git('add', '.')
  git('commit', '--quiet', '--message=first')
  return folder, git('rev-parse', 'HEAD').strip()


class Launcher:
  """A process of the launcher.

  Attributes:
    process: its process.
  """

  def __init__(self, process: subprocess.Popen, err: pathlib.Path):
    self.process = process
    self._err = err

  @property
  def err(self) -> str:
    """Its messages so far."""
    return self._err.read_text()

  def interrupt(self, number: int = signal.SIGINT) -> None:
    """Sends a signal: that of Ctrl-C by default."""
    self.process.send_signal(number)

  def kill(self) -> None:
    """Kills it, so that it cannot clean up."""
    self.process.kill()
    self.process.wait()
    self.process.stdout.close()  # Its children may hold the other end.

  def wait(self) -> tuple[int, str, str]:
    """Waits for the end; returns status, output and messages.

    The end of the output is the end of all processes that inherited it.
    """
    out, _ = self.process.communicate(timeout=TIMEOUT_SECONDS)
    return self.process.returncode, out, self.err


class Cloud:
  """A folder in which everything happens.

  Attributes:
    root: the folder.
    repo: a checkout of the code that is shipped.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.repo = root / 'my repo'
    self._launchers = 0
    self._write_programs()
    self.environment = {
      'PATH': f'{root / "bin"}:/usr/bin:/bin',
      'HOME': str(root / 'home'),
      'PYTHONPATH': str(ROOT),
      'FAKE_CLOUD': str(root),
    }
    template, self.commit = _make_checkout()
    shutil.copytree(template.name, self.repo)
    self.plan()

  def _write_programs(self) -> None:
    """Writes the fakes into a folder for $PATH."""
    (self.root / 'bin').mkdir()
    scripts = dict(SCRIPTS)
    for program, module in FAKES.items():
      code = (
        f'import sys; sys.path.append({str(SUPPORT)!r}); import {module}; '
        f'{module}.main(*sys.argv[1:])'
      )
      command = [sys.executable, '-S', '-E', '-c', code, program]
      scripts[program] = f'exec {shlex.join(command)} "$@"'
    for program, script in scripts.items():
      path = self.root / 'bin' / program
      path.write_text(f'#!/bin/sh\n{script}\n')
      path.chmod(0o755)

  def plan(self, **scenario) -> None:
    """Sets the scenario of `fake_cloud`."""
    (self.root / 'scenario.json').write_text(json.dumps(scenario))

  def arguments(self, backend: str, *flags: str, command=()) -> list[str]:
    """Returns a command line of the launcher."""
    workdir = 'gs://bucket/run' if backend == 'gke' else f'{self.root}/work dir'
    # A folder that is deleted with the machines would be refused.
    mounted = ['--mounted'] if backend in ('tpu_vm', 'queued') else []
    # The flags of a test come last, and override the others.
    return [
      f'--backend={backend}',
      *MACHINES[backend],
      *mounted,
      *QUICK,
      f'--workdir={workdir}',
      '--name=job',
      *flags,
      '--',
      *(command or ['-m', 'fake_job']),
    ]

  def start(self, backend: str, *flags: str, command=()) -> Launcher:
    """Starts the launcher with the flags of a backend."""
    return self.start_with(*self.arguments(backend, *flags, command=command))

  def start_with(self, *arguments: str) -> Launcher:
    """Starts the launcher with exactly these arguments."""
    self._launchers += 1
    err = self.root / f'launcher-{self._launchers}.err'
    with open(err, 'w') as file:
      process = subprocess.Popen(
        # Without site-packages: it needs nothing but the standard library.
        [sys.executable, '-S', '-m', 'launch', *arguments],
        cwd=self.repo,
        env=self.environment,
        stdout=subprocess.PIPE,
        stderr=file,
        text=True,
        start_new_session=True,
      )
    return Launcher(process, err)

  def launch(
    self, backend: str, *flags: str, command=()
  ) -> tuple[int, str, str]:
    """Runs the launcher to its end; returns status, output and messages."""
    return self.start(backend, *flags, command=command).wait()

  def wait_until(self, condition, title: str) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 20
    while not condition():
      assert time.monotonic() < end, f'{title}: {self.calls()}'
      time.sleep(0.01)

  def wait_for_workers(self) -> None:
    """Waits until both workers run the job for the first time."""
    self.wait_until(lambda: self.runs(0) and self.runs(1), 'the job runs')

  def release(self) -> None:
    """Lets the workers that wait end with status 0."""
    (self.root / 'go').touch()

  def calls(self) -> list[list[str]]:
    """Returns every call of a faked program."""
    path = self.root / 'calls'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines()]

  def count_calls(self, *words: str) -> int:
    """Returns the number of calls that begin with these words."""
    return sum(call[: len(words)] == list(words) for call in self.calls())

  def runs(self, worker: int = 0) -> list[dict]:
    """Returns what the job was given in each run of a worker."""
    path = self.root / f'runs-{worker}.jsonl'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines()]

  def state(self) -> dict:
    """Returns the state of `fake_cloud`."""
    path = self.root / 'state.json'
    return json.loads(path.read_text()) if path.exists() else {}

  def processes(self) -> list[int]:
    """Returns the ids of processes of the job."""
    ids = []
    for path in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        words = (path / 'cmdline').read_bytes().split(b'\0')
        is_inside = os.readlink(path / 'cwd').startswith(str(self.root))
      except OSError:
        continue
      if is_inside and b'fake_job' in words and b'launch' not in words:
        ids.append(int(path.name))
    return ids

  def has_sleeping_child(self, seconds: float) -> bool:
    """Returns whether the child of a gcloud slow by these seconds still lives.

    Any process of the machine counts, so the number should be an odd one.
    """
    command = f'sleep\0{seconds}\0'.encode()
    return any(
      path.read_bytes() == command
      for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')
      if os.access(path, os.R_OK)
    )

  def remains(self) -> list[str]:
    """Returns everything that costs money or should have been deleted."""
    state = self.state()
    created = [
      name
      for kind in ('tpus', 'jobsets', 'slurm')
      for name in state.get(kind, {})
    ]
    files = [
      str(path)
      for folder in ('bucket', 'home')
      for path in (self.root / folder).rglob('*')
      if path.is_file()
    ]
    trees = [str(p) for p in self.root.glob('work dir/launch/*/*tree*')]
    return created + files + trees + list(map(str, self.processes()))

  def kill_processes(self) -> None:
    """Kills what still runs."""
    for process in self.processes():
      try:
        os.kill(process, signal.SIGKILL)
      except ProcessLookupError:
        continue
