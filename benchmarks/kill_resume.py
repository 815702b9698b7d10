"""Kills a training 10 times and holds its end against an uninterrupted one.

  python benchmarks/kill_resume.py [--kills=10] [--seed=0] [--out=FOLDER]

Runs `configs/ddep_shapes.py:tiny` (classify, denoise, finetune, evaluate) once
without interruption and once with SIGKILL at random moments, of which one is
inside a save and one inside an evaluation. Parameters, optimiser state,
metrics, results and the sequence of image ids must be equal to the bit.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from segcore import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ('classify', 'denoise', 'finetune')


def start(workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the run, or goes on with it."""
  command = [
    *(sys.executable, '-m', 'ddep.main'),
    f'--config={ROOT}/configs/ddep_shapes.py:tiny',
    '--config.operation.record_ids=True',
    f'--workdir={workdir}',
  ]
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'log.txt', 'a') as log:
    return subprocess.Popen(
      command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
    )


def moments(rng: random.Random, count: int, seconds: float):
  """(name, condition) of each kill; a condition sees (workdir, start)."""

  def in_save(workdir: pathlib.Path, begun: float) -> bool:
    return any(workdir.glob('*/checkpoints/*.orbax-checkpoint-tmp*'))

  def in_evaluation(workdir: pathlib.Path, begun: float) -> bool:
    # Step 30 is logged before it is evaluated.
    return any(
      '"step": 30, "train' in path.read_text()
      and '"step": 30, "val' not in path.read_text()
      for path in workdir.glob('*/metrics.jsonl')
      if path.parent.name in ('classify', 'finetune')
    )

  def after(delay: float):
    return lambda workdir, begun: time.monotonic() - begun > delay

  chosen = [('inside a save', in_save), ('inside an evaluation', in_evaluation)]
  for _ in range(count - len(chosen)):
    delay = rng.uniform(4.0, max(5.0, seconds / 2))
    chosen.append((f'after {delay:.1f} s', after(delay)))
  rng.shuffle(chosen)
  return chosen


def interrupted(workdir: pathlib.Path, kills) -> list[str]:
  """Runs to the end through all kills; returns what happened."""
  story = []
  for name, due in kills:
    process, begun = start(workdir), time.monotonic()
    while process.poll() is None and not due(workdir, begun):
      time.sleep(0.002)
    process.kill()
    ended = process.wait()
    story.append(name if ended == -9 else f'{name}: it had ended')
    print(f'killed {story[-1]}', flush=True)
  if start(workdir).wait() != 0:
    raise SystemExit((workdir / 'log.txt').read_text())
  return story


def compare(one: pathlib.Path, other: pathlib.Path) -> dict[str, bool]:
  """Whether each kind of outcome is equal to the bit."""
  equal = {}
  names = ('step', 'params', 'batch_stats', 'opt_state', 'rng')
  for stage in STAGES:
    states = [
      checkpoint.read(w / stage / 'checkpoints', names) for w in (one, other)
    ]
    same = jax.tree.map(np.array_equal, *states)
    equal[f'{stage} state'] = all(jax.tree.leaves(same))
    for journal in ('metrics', 'ids'):
      texts = [
        (w / stage / f'{journal}.jsonl').read_text() for w in (one, other)
      ]
      equal[f'{stage} {journal}'] = texts[0] == texts[1]
  results = [
    json.loads((w / 'evaluate' / 'results.json').read_text())
    for w in (one, other)
  ]
  equal['results'] = results[0] == results[1]
  return equal


def main() -> int:
  """Prints the comparison; 1 if anything differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', default='')
  arguments = parser.parse_args()
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', f'{tempfile.gettempdir()}/kill_resume_cache'
  )
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  out = pathlib.Path(arguments.out or tempfile.mkdtemp(prefix='kill_resume_'))
  begun = time.monotonic()
  if start(out / 'whole').wait() != 0:
    raise SystemExit((out / 'whole' / 'log.txt').read_text())
  seconds = time.monotonic() - begun
  print(f'uninterrupted: {seconds:.0f} s', flush=True)
  rng = random.Random(arguments.seed)
  story = interrupted(out / 'killed', moments(rng, arguments.kills, seconds))
  equal = compare(out / 'whole', out / 'killed')
  for name, same in equal.items():
    print(f'{"equal" if same else "DIFFERENT":>9}  {name}')
  report = {'kills': story, 'equal': equal}
  (out / 'report.json').write_text(json.dumps(report, indent=1))
  print(f'report: {out}/report.json')
  return 0 if all(equal.values()) else 1


if __name__ == '__main__':
  sys.exit(main())
