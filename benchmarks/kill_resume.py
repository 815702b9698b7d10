"""Kills a training 10 times and compares its results with an unkilled one.

  python benchmarks/kill_resume.py [--kills=10] [--seed=0] [--out=FOLDER]

Runs `configs/ddep_shapes.py:tiny` (classify, denoise, finetune, evaluate) once
without interruption and once with SIGKILL at random moments, of which one is
during a save and one during an evaluation. Parameters, optimizer state,
metrics, results and the sequence of image ids must be equal bit for bit.
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

from segcore.weights import checkpoint_reader

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ('classify', 'denoise', 'finetune')
NUM_STEPS = 60  # Of each stage, with the option `tiny`.


def start(workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the run, or resumes it."""
  command = [
    sys.executable,
    '-m',
    'ddep.main',
    f'--config={ROOT}/configs/ddep_shapes.py:tiny',
    '--config.operation.record_ids=True',
    f'--workdir={workdir}',
  ]
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'log.txt', 'a') as log:
    return subprocess.Popen(
      command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
    )


def draw_kills(rng: random.Random, count: int) -> list[tuple[int, str]]:
  """Draws when to kill: one save, one evaluation, the others at random steps.

  Returns:
    Pairs (steps of all stages so far, phase), in order.
  """
  stage = rng.randrange(len(STAGES))
  chosen = [
    (stage * NUM_STEPS + rng.choice((20, 40)), 'in a save'),
    (rng.choice((0, 2)) * NUM_STEPS + 30, 'in an evaluation'),
  ]
  while len(chosen) < count:
    chosen.append((rng.randrange(1, len(STAGES) * NUM_STEPS), 'in a step'))
  return sorted(chosen)


def is_due(workdir: pathlib.Path, position: int, phase: str) -> bool:
  """Returns whether the run is at a moment or past it."""
  stage = workdir / STAGES[position // NUM_STEPS]
  step = position % NUM_STEPS
  if phase == 'in a save':
    return any(stage.glob(f'checkpoints/{step}.orbax-checkpoint-tmp*'))
  if phase == 'in an evaluation':
    path = stage / 'metrics.jsonl'
    text = path.read_text() if path.exists() else ''
    # The log of a step precedes its evaluation.
    return f'"step": {step}, "train' in text and f'{step}, "val' not in text
  path = stage / 'ids.jsonl'
  return path.exists() and f'"step": {step},' in path.read_text()


def run_interrupted(
  workdir: pathlib.Path, kills: list[tuple[int, str]], rng: random.Random
) -> list[str]:
  """Runs to the end through all kills; returns a description of each."""
  descriptions = []
  for position, phase in kills:
    process = start(workdir)
    while process.poll() is None and not is_due(workdir, position, phase):
      time.sleep(0.002)
    if phase == 'in a step':
      time.sleep(rng.uniform(0, 0.3))
    process.kill()
    if process.wait() != -9:
      raise SystemExit(f'expected a run {phase} {position}, got an ended one')
    descriptions.append(
      f'{phase}, {STAGES[position // NUM_STEPS]} {position % NUM_STEPS}'
    )
    print(f'killed {descriptions[-1]}', flush=True)
  if start(workdir).wait() != 0:
    raise SystemExit((workdir / 'log.txt').read_text())
  return descriptions


def compare(one: pathlib.Path, other: pathlib.Path) -> dict[str, bool]:
  """Returns for each kind of result whether it is equal bit for bit."""
  equal = {}
  names = ('step', 'params', 'batch_stats', 'opt_state', 'rng')
  for stage in STAGES:
    states = [
      checkpoint_reader.read_checkpoint_fields(w / stage / 'checkpoints', names)
      for w in (one, other)
    ]
    same = jax.tree.map(np.array_equal, *states)
    equal[f'{stage} state'] = all(jax.tree.leaves(same))
    for name in ('metrics', 'ids'):
      texts = [(w / stage / f'{name}.jsonl').read_text() for w in (one, other)]
      equal[f'{stage} {name}'] = texts[0] == texts[1]
  results = [
    json.loads((w / 'evaluate' / 'results.json').read_text())
    for w in (one, other)
  ]
  equal['results'] = results[0] == results[1]
  return equal


def main() -> int:
  """Prints the comparison; returns 1 if anything differs."""
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
  if start(out / 'whole').wait() != 0:
    raise SystemExit((out / 'whole' / 'log.txt').read_text())
  print('the uninterrupted run is done', flush=True)
  rng = random.Random(arguments.seed)
  kills = draw_kills(rng, arguments.kills)
  descriptions = run_interrupted(out / 'killed', kills, rng)
  equal = compare(out / 'whole', out / 'killed')
  for name, same in equal.items():
    print(f'{"equal" if same else "DIFFERENT":>9}  {name}')
  report = {'kills': descriptions, 'equal': equal}
  (out / 'report.json').write_text(json.dumps(report, indent=1))
  print(f'report: {out}/report.json')
  return 0 if all(equal.values()) else 1


if __name__ == '__main__':
  sys.exit(main())
