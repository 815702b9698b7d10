"""Running the launcher among stand-ins of gcloud, kubectl and SLURM."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = (
  *('gcloud', 'kubectl', 'sbatch', 'squeue', 'scancel', 'scontrol', 'srun'),
)
# Makes virtual environments whose pip only tells that it was called.
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
# Called often, so without Python.
SCRIPTS = {
  'python3': MAKE_VENV,
  'python3.11': MAKE_VENV,
  'hostname': 'echo "t1v-n-fake-w-$FAKE_WORKER"',
  'curl': """case "$*" in
  *agent-worker-number) echo "$FAKE_WORKER" ;;
  *worker-network-endpoints) echo unknown:unknown:10.0.0.1,a:b:10.0.0.2 ;;
esac""",
}

# Two hosts each. Nobody is waited for longer than needed.
PLACES = {
  'local': ['--hosts=2'],
  'tpu_vm': ['--accelerator=v4-16', '--zone=z', '--project=p'],
  'queued': ['--accelerator=v4-16', '--zone=z', '--project=p'],
  'gke': ['--accelerator=v4-16'],
  'slurm': ['--hosts=2'],
}
QUICK = ['--poll=0.1', '--backoff=0.05', '--grace=5']


class Cloud:
  """A folder in which everything happens.

  Attributes:
    root: the folder.
    repo: a checkout of the code that is shipped.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.repo = root / 'my repo'
    (root / 'bin').mkdir()
    call = (
      f'import sys; sys.path.append({str(ROOT / "tests" / "support")!r}); '
      'import fake_cloud; fake_cloud.main(*sys.argv[1:])'
    )
    python = [sys.executable, '-S', '-E', '-c', call]
    scripts = {
      program: f'exec {shlex.join([*python, program])} "$@"'
      for program in PROGRAMS
    }
    for program, script in {**scripts, **SCRIPTS}.items():
      path = root / 'bin' / program
      path.write_text(f'#!/bin/sh\n{script}\n')
      path.chmod(0o755)
    self.environment = {
      'PATH': f'{root / "bin"}:/usr/bin:/bin',
      'HOME': str(root / 'home'),
      'PYTHONPATH': str(ROOT),
      'FAKE_CLOUD': str(root),
      # The same commit whenever it is made.
      'GIT_AUTHOR_DATE': '2026-01-01T00:00:00Z',
      'GIT_COMMITTER_DATE': '2026-01-01T00:00:00Z',
    }
    self.repo.mkdir()
    for name in ('requirements.lock', 'setup.py'):
      (self.repo / name).write_text('')
    job = (ROOT / 'tests' / 'support' / 'fake_job.py').read_text()
    (self.repo / 'fake_job.py').write_text(job)
    self.git('init', '--quiet')
    self.git('add', '.')
    who = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    self.git(*who, 'commit', '--quiet', '--message=first')
    self.commit = self.git('rev-parse', 'HEAD').strip()
    self.plan()

  def git(self, *arguments: str) -> str:
    """Runs git in the checkout."""
    return subprocess.run(
      ['git', *arguments],
      cwd=self.repo,
      env=self.environment,
      check=True,
      capture_output=True,
      text=True,
    ).stdout

  def plan(self, **scenario) -> None:
    """Says what happens: see `fake_cloud`."""
    (self.root / 'scenario.json').write_text(json.dumps(scenario))

  def arguments(self, place: str, *flags: str, command=()) -> list[str]:
    """A command line of the launcher."""
    workdir = 'gs://bucket/run' if place == 'gke' else f'{self.root}/work dir'
    # What goes with the machines is of no use; it is refused.
    mounted = ['--mounted'] if place in ('tpu_vm', 'queued') else []
    # Those of a test come last, and count.
    return [
      f'--backend={place}',
      *PLACES[place],
      *mounted,
      *QUICK,
      f'--workdir={workdir}',
      '--name=job',
      *flags,
      '--',
      *(command or ['-m', 'fake_job']),
    ]

  def start(self, place: str, *flags: str, command=()) -> subprocess.Popen:
    """Starts the launcher."""
    return self.run(*self.arguments(place, *flags, command=command))

  def run(self, *arguments: str) -> subprocess.Popen:
    """Starts the launcher with a command line as it is."""
    return subprocess.Popen(
      [sys.executable, '-m', 'launch', *arguments],
      cwd=self.repo,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def launch(self, place: str, *flags: str, command=()):
    """Runs the launcher to its end; returns status, output, complaints."""
    process = self.start(place, *flags, command=command)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err

  def until(self, due, what: str) -> None:
    """Waits until something is so."""
    end = time.monotonic() + 20
    while not due():
      assert time.monotonic() < end, f'{what}: {self.calls()}'
      time.sleep(0.01)

  def calls(self) -> list[list[str]]:
    """Every command that was run of those that are stood in for."""
    path = self.root / 'calls'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines()]

  def called(self, *words: str) -> int:
    """How many commands begin with these words."""
    return sum(call[: len(words)] == list(words) for call in self.calls())

  def runs(self, worker: int = 0) -> list[dict]:
    """What the job was given, each time one of its workers ran."""
    path = self.root / f'runs-{worker}.jsonl'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines()]

  def state(self) -> dict:
    """What exists."""
    path = self.root / 'state.json'
    return json.loads(path.read_text()) if path.exists() else {}

  def processes(self) -> list[int]:
    """Processes that work in the folder, apart from the launcher."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        words = (path / 'cmdline').read_bytes().split(b'\0')
        inside = os.readlink(path / 'cwd').startswith(str(self.root))
      except OSError:
        continue
      if inside and b'fake_job' in words and b'launch' not in words:
        found.append(int(path.name))
    return found

  def sleeping(self) -> bool:
    """Whether something that gcloud has started lives on."""
    return any(
      path.read_bytes() == b'sleep\x0060\0'
      for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')
      if os.access(path, os.R_OK)
    )

  def left(self) -> list[str]:
    """All that costs money or lies about."""
    state = self.state()
    made = [
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
    return made + files + trees + list(map(str, self.processes()))

  def clear(self) -> None:
    """Ends whatever still runs."""
    for process in self.processes():
      try:
        os.kill(process, signal.SIGKILL)
      except ProcessLookupError:
        continue
