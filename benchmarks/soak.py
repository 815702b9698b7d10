"""Trains a tiny network for long and checks memory, compilation and stalls.

  MALLOC_ARENA_MAX=2 python benchmarks/soak.py [--steps=20000]
    [--save_every=1000] [--out=FOLDER]

Runs the denoising stage of `configs/ddep_shapes.py:tiny` in this process. After
step 2 nothing may be compiled again, after the first tenth the memory of the
process may grow by at most 1 %, and saving may stall the steps for at most 1 %
of the time. The exit status is 1 if a limit is exceeded. Without
MALLOC_ARENA_MAX glibc's malloc has an arena for many of the threads, and these
fill for some 7,000 steps.
"""

import argparse
import pathlib
import sys
import tempfile

import compilations
import numpy as np

from ddep import main as ddep_main
from runtime import metrics_file
from segcore.experiment import cli
from segcore.train import loop

ROOT = pathlib.Path(__file__).parent.parent


class CompilationCounter:
  """Counts steps, and records after which of them programs were compiled.

  Attributes:
    steps: number of steps so far.
    compiled_after: number of steps before each compiled program.
  """

  def __init__(self):
    self.steps = 0
    self.compiled_after: list[int] = []
    self._build_step = loop.build_jitted_train_step
    compilations.listen_to_compilations(
      lambda _: self.compiled_after.append(self.steps)
    )

  def build_step(self, *arguments):
    """Replaces `loop.build_jitted_train_step` by one that counts calls."""
    step, monitor = self._build_step(*arguments)

    def call(*arguments):
      self.steps += 1
      return step(*arguments)

    call.trace = step.trace
    return call, monitor


def main() -> int:
  """Prints the measurements; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=20_000)
  parser.add_argument('--save_every', type=int, default=1_000)
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  out = arguments.out or pathlib.Path(tempfile.mkdtemp(prefix='soak'))
  counter = CompilationCounter()
  loop.build_jitted_train_step = counter.build_step
  status = train(arguments.steps, arguments.save_every, out)
  if status:
    return status
  # The evaluation after the last step compiles another program.
  compiled_again = [
    step for step in counter.compiled_after if 2 < step < arguments.steps
  ]
  return int(not report(arguments.steps, out, len(compiled_again)))


def train(steps: int, save_every: int, out: pathlib.Path) -> int:
  """Trains the denoising stage; returns the exit status."""
  return cli.run_command_line(
    ddep_main.PROGRAM,
    [
      'soak',
      f'--config={ROOT}/configs/ddep_shapes.py:init=dep,tiny',
      f'--workdir={out}',
      '--stage=denoise',
      f'--config.denoise.recipe.num_steps={steps}',
      '--config.denoise.recipe.evaluate_every=0',
      '--config.denoise.crop.size=(32, 32)',
      '--config.network.encoder.blocks=(1, 1)',
      '--config.network.encoder.width=8',
      '--config.network.encoder.num_groups=4',
      '--config.network.decoder.widths=(16, 8, 8)',
      '--config.network.decoder.num_groups=4',
      f'--config.operation.log_every={max(1, steps // 100)}',
      f'--config.operation.save_every={save_every}',
    ],
  )


def report(steps: int, out: pathlib.Path, num_compiled: int) -> bool:
  """Prints the measurements; returns whether they are within the limits."""
  lines = metrics_file.read_metrics_file(out / 'denoise' / 'speed.jsonl')
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
  checks = [
    (f'memory grew by {growth:.2%}, to {memory[-1]:.3f} GB', growth < 0.01),
    (f'{num_compiled} programs compiled after step 2', not num_compiled),
    (f'saving stalled steps for {stall:.2%} of the time', stall < 0.01),
  ]
  print(f'\n{steps:,} steps, {steps / np.sum(seconds):.1f} steps/s')
  for text, is_met in checks:
    print(f'{"passed" if is_met else "FAILED"}: {text}')
  print(
    f'waiting for input: {wait:.2%}; goodput {lines[-1]["speed/goodput"]:.2%}'
  )
  return all(is_met for _, is_met in checks)


if __name__ == '__main__':
  sys.exit(main())
