"""Trains a tiny network for long, and looks at what must not grow.

  MALLOC_ARENA_MAX=2 python benchmarks/soak.py [--steps=20000]
    [--save_every=1000] [--out=FOLDER]

Runs the denoising stage of `configs/ddep_shapes.py:tiny` in this process. After
step 2 nothing may be compiled again; between the first tenth and the end the
process's memory may grow by 1 %; saving may hold up the steps for 1 % of the
time. Exit status 1 if one of them is not kept. Without MALLOC_ARENA_MAX glibc's
malloc keeps an arena for many of the threads, which fill for some 7,000 steps.
"""

import argparse
import pathlib
import sys
import tempfile

import jax
import numpy as np

from ddep import main as ddep_main
from runtime import metrics_file
from segcore.experiment import cli
from segcore.train import loop

ROOT = pathlib.Path(__file__).parent.parent

_COMPILED = '/jax/core/compile/backend_compile_duration'


class Watched:
  """Counts steps, and programs that were compiled after which step."""

  def __init__(self):
    self.steps = 0
    self.compiled_after: list[int] = []
    self._jitted_step = loop.build_step
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration: float, **_) -> None:
    del duration
    if event == _COMPILED:
      self.compiled_after.append(self.steps)

  def jitted_step(self, *arguments):
    """In place of the loop's."""
    step, watch = self._jitted_step(*arguments)

    def call(*arguments):
      self.steps += 1
      return step(*arguments)

    call.trace = step.trace
    return call, watch


def main() -> int:
  """Prints the figures; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=20_000)
  parser.add_argument('--save_every', type=int, default=1_000)
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  out = arguments.out or pathlib.Path(tempfile.mkdtemp(prefix='soak'))

  watched = Watched()
  loop.build_step = watched.jitted_step
  status = cli.main(
    ddep_main.PROGRAM,
    [
      'soak',
      f'--config={ROOT}/configs/ddep_shapes.py:init=dep,tiny',
      f'--workdir={out}',
      '--stage=denoise',
      f'--config.denoise.recipe.num_steps={arguments.steps}',
      '--config.denoise.recipe.evaluate_every=0',
      '--config.denoise.crop.size=(32, 32)',
      '--config.network.encoder.blocks=(1, 1)',
      '--config.network.encoder.width=8',
      '--config.network.encoder.num_groups=4',
      '--config.network.decoder.widths=(16, 8, 8)',
      '--config.network.decoder.num_groups=4',
      f'--config.operation.log_every={max(1, arguments.steps // 100)}',
      f'--config.operation.save_every={arguments.save_every}',
    ],
  )
  if status:
    return status

  lines = metrics_file.read(out / 'denoise' / 'speed.jsonl')
  values = {
    name: np.array([line[f'speed/{name}'] for line in lines])
    for name in ('seconds', 'host_memory_gb', 'checkpoint_stall', 'input_wait')
  }
  seconds, memory = values['seconds'], values['host_memory_gb']
  tenth = max(1, len(lines) // 10)
  growth = np.mean(memory[-tenth:]) / np.mean(memory[tenth : 2 * tenth]) - 1
  stall, wait = (
    float(np.sum(values[name] * seconds) / np.sum(seconds))
    for name in ('checkpoint_stall', 'input_wait')
  )
  # The evaluation after the last step has a program of its own.
  again = [
    step for step in watched.compiled_after if 2 < step < arguments.steps
  ]
  rate = arguments.steps / np.sum(seconds)
  checks = [
    (f'memory grew by {growth:.2%}, to {memory[-1]:.3f} GB', growth < 0.01),
    (f'{len(again)} programs compiled after step 2', not again),
    (f'saving held up steps for {stall:.2%} of the time', stall < 0.01),
  ]
  print(f'\n{arguments.steps:,} steps, {rate:.1f} a second')
  for text, kept in checks:
    print(f'{"kept" if kept else "BROKEN"}: {text}')
  print(
    f'waiting for input: {wait:.2%}; goodput {lines[-1]["speed/goodput"]:.2%}'
  )
  return int(not all(kept for _, kept in checks))


if __name__ == '__main__':
  sys.exit(main())
