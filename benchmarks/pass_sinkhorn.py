"""Compares SwAV's Sinkhorn targets with a plain version in torch.

  python benchmarks/pass_sinkhorn.py [--batch=64] [--queue=3840]
      [--prototypes=3000] [--dim=128] [--threads=2] [--rounds=15]
      [--out=FILE.json]

The default sizes are the published ones: the batch of a device and the whole
queue, 3,000 prototypes, three iterations in float32. The version in torch
normalizes exp(scores / ε) by its row and its column sums in turn, as the
algorithm is usually written (spec PASS §2.5); a second one works in place and
joins two divisions each. All versions get the same scores, on the same number
of threads, in turns: for one view, for both, and for both together with the
scores of the queue, which a step recomputes. All targets must be within 1e-6
of those of numpy in float64. Then each pass over the matrix is timed. Without
torch only the version of this project is timed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Before OpenMP is loaded: by default its idle threads spin, which would take
# processor time from jax.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import command_line
import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pretrain import objective_options
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import swav

try:
  import torch
except ImportError:
  torch = None

MEGABYTE = 2**20
TOLERANCE = 1e-6


class Inputs(NamedTuple):
  """Inputs of the targets of two views; arrays of any kind.

  Attributes:
    scores: [2, B, K], of the batch.
    queue_scores: [2, L, K], of the queue.
    queue: [2, L, D], embeddings of the queue.
    prototypes: [D, K].
  """

  scores: Any
  queue_scores: Any
  queue: Any
  prototypes: Any


def make_inputs(batch: int, queue: int, prototypes: int, dim: int) -> Inputs:
  """Draws embeddings as near to some prototype as after training."""
  rng = np.random.default_rng(0)

  def draw_normalized(*shape: int) -> np.ndarray:
    rows = rng.standard_normal((*shape, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

  centers = draw_normalized(prototypes)

  def embeddings(count: int) -> np.ndarray:
    near = centers[rng.integers(prototypes, size=(2, count))]
    rows = near + draw_normalized(2, count)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

  new, old = embeddings(batch), embeddings(queue)
  return Inputs(new @ centers.T, old @ centers.T, old, centers.T.copy())


def cases_of_jax(
  inputs: Inputs, options: objective_options.SwavOptions
) -> dict[str, tuple[Any, tuple]]:
  """Compiles the targets [V, B, K] of each case; returns them with inputs."""
  placed = Inputs(*map(jnp.asarray, inputs))
  active = jnp.array(True)

  def balance(scores, queue_scores, active):
    return jnp.stack(
      [
        swav.swav_targets(*of_view, active, options)
        for of_view in zip(scores, queue_scores, strict=True)
      ]
    )

  def balance_with_queue(scores, rows, prototypes):
    queue = queue_lib.Queue(rows, jnp.array(options.queue))
    targets = swav.swav_view_targets(
      jnp.moveaxis(scores, 0, 1), queue, prototypes, options
    )
    return jnp.moveaxis(targets, 1, 0)

  # One array per view: XLA would copy the parts of a stacked array.
  views = list(placed.scores), list(placed.queue_scores)
  first = *(of_views[:1] for of_views in views), active
  both = *views, active
  whole = placed.scores, placed.queue, placed.prototypes
  return {
    name: (jax.jit(function).lower(*arguments).compile(), arguments)
    for name, function, arguments in (
      ('one view', balance, first),
      ('both views', balance, both),
      ('with the scores of the queue', balance_with_queue, whole),
    )
  }


def cases_of_torch(
  inputs: Inputs, algorithm: Callable, options: objective_options.SwavOptions
) -> dict[str, Callable[[], Any]]:
  """Builds a function for each case, on tensors that share the inputs' memory.

  Args:
    inputs: arrays of numpy.
    algorithm: `sinkhorn` or `sinkhorn_in_place`.
    options: options of Sinkhorn's algorithm.
  """
  tensors = Inputs(*map(torch.from_numpy, inputs))

  def balance(scores, queue_scores):
    return torch.stack(
      [
        algorithm(torch.cat(of_view), options)[-len(of_view[1]) :]
        for of_view in zip(queue_scores, scores, strict=True)
      ]
    )

  return {
    'one view': lambda: balance(tensors.scores[:1], tensors.queue_scores[:1]),
    'both views': lambda: balance(tensors.scores, tensors.queue_scores),
    'with the scores of the queue': lambda: balance(
      tensors.scores, tensors.queue @ tensors.prototypes
    ),
  }


def sinkhorn(scores: Any, options: objective_options.SwavOptions) -> Any:
  """Computes Sinkhorn's algorithm step by step on a tensor or array [N, K]."""
  exp = np.exp if isinstance(scores, np.ndarray) else torch.exp
  matrix = exp(scores / options.epsilon).T
  num_prototypes, num_samples = matrix.shape
  matrix /= matrix.sum()
  for _ in range(options.sinkhorn_iterations):
    matrix /= matrix.sum(axis=1, keepdims=True)
    matrix /= num_prototypes
    matrix /= matrix.sum(axis=0, keepdims=True)
    matrix /= num_samples
  matrix *= num_samples
  return matrix.T


def sinkhorn_in_place(
  scores: Any, options: objective_options.SwavOptions
) -> Any:
  """Computes it in place on a tensor [N, K], with fewer passes over memory."""
  matrix = scores.div_(options.epsilon).exp_()
  num_samples, num_prototypes = matrix.shape
  for i in range(options.sinkhorn_iterations):
    matrix /= num_prototypes * matrix.sum(axis=0, keepdims=True)
    last = i + 1 == options.sinkhorn_iterations
    share = 1 if last else num_samples
    matrix /= share * matrix.sum(axis=1, keepdims=True)
  return matrix


def reference_targets(
  inputs: Inputs, options: objective_options.SwavOptions
) -> np.ndarray:
  """Computes the targets [2, B, K] in float64, as the reference."""
  joint = np.concatenate([inputs.queue_scores, inputs.scores], axis=1)
  batch = inputs.scores.shape[1]
  return np.stack(
    [sinkhorn(rows.astype(np.float64), options)[-batch:] for rows in joint]
  )


def check_difference(actual: Any, expected: np.ndarray, name: str) -> float:
  """Returns the largest absolute difference.

  Raises:
    AssertionError: it exceeds the tolerance.
  """
  difference = float(np.abs(np.asarray(actual) - expected).max())
  if not difference <= TOLERANCE:
    raise AssertionError(
      f'targets of {name}: expected a difference of at most {TOLERANCE:.0e}, '
      f'got {difference:.1e}'
    )
  return difference


def compare(
  inputs: Inputs, options: objective_options.SwavOptions, rounds: int
) -> dict[str, dict]:
  """Measures seconds, processor seconds and differences of all in turns."""
  expected = reference_targets(inputs, options)
  ours = cases_of_jax(inputs, options)
  others = {
    name: cases_of_torch(inputs, algorithm, options)
    for name, algorithm in TORCH.items()
    if torch
  }
  results = {}
  for case, (compiled, arguments) in ours.items():

    def run(compiled=compiled, arguments=arguments):
      return jax.block_until_ready(compiled(*arguments))

    sides = {'jax': run}
    sides |= {name: functions[case] for name, functions in others.items()}
    rows, differences = [], {}
    # The first round allocates memory and is not counted.
    for number in range(rounds + 1):
      row, targets = {}, {}
      for name, function in sides.items():
        start, processor = time.perf_counter(), time.process_time()
        targets[name] = function()
        row[name] = time.perf_counter() - start
        row[f'processor_{name}'] = time.process_time() - processor
      if number:
        rows.append(row)
        continue
      for name, value in targets.items():
        differences[f'{name} and float64'] = check_difference(
          value, expected[: len(value)], f'{name}, {case}'
        )
      for name in others:
        differences[f'jax and {name}'] = check_difference(
          targets['jax'], np.asarray(targets[name]), f'jax and {name}, {case}'
        )
    temporary = compiled.memory_analysis().temp_size_in_bytes
    results[case] = {
      **summary(rows),
      'differences': differences,
      'temporary_bytes': temporary,
    }
    print(f'{case}: {sentence(results[case])}', flush=True)
  return results


def parts(
  inputs: Inputs, options: objective_options.SwavOptions, rounds: int
) -> dict[str, float]:
  """Measures the seconds of each pass over the queue's matrix of one view."""
  scores = jnp.asarray(inputs.queue_scores[0])
  kernel = jnp.exp(scores / options.epsilon)
  sample_factors, prototype_factors = (jnp.ones(size) for size in kernel.shape)
  passes: dict[str, tuple[Callable, tuple]] = {
    'largest score': (jnp.max, (scores,)),
    'exp, written to memory': (
      lambda scores: jnp.exp(scores / options.epsilon),
      (scores,),
    ),
    'exp, summed': (
      lambda scores: jnp.sum(jnp.exp(scores / options.epsilon), axis=1),
      (scores,),
    ),
    'sums over samples': (
      lambda kernel, factors: jnp.sum(kernel * factors[:, None], axis=0),
      (kernel, sample_factors),
    ),
    'sums over prototypes': (
      lambda kernel, factors: jnp.sum(kernel * factors, axis=1),
      (kernel, prototype_factors),
    ),
  }
  results = {}
  for name, (function, arguments) in passes.items():
    jitted = jax.jit(function)
    times = []
    for _ in range(rounds + 1):
      start = time.perf_counter()
      jax.block_until_ready(jitted(*arguments))
      times.append(time.perf_counter() - start)
    results[name] = statistics.median(times[1:])
  return results


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Computes the medians of the rounds and their range."""
  results = {
    'rounds': list(rows),
    'seconds': statistics.median(row['jax'] for row in rows),
  }
  for name in TORCH if torch else ():
    ratios = [row[name] / row['jax'] for row in rows]
    results[name] = {
      'seconds': statistics.median(row[name] for row in rows),
      'times_ours': statistics.median(ratios),
      'least_and_most': (min(ratios), max(ratios)),
      'times_our_processor_time': statistics.median(
        row[f'processor_{name}'] / row['processor_jax'] for row in rows
      ),
    }
  return results


def sentence(results: dict) -> str:
  """Formats a summary as a sentence."""
  temporary = results['temporary_bytes'] / MEGABYTE
  words = [
    f'{1000 * results["seconds"]:.0f} ms, {temporary:.0f} MiB beside the '
    f'scores, at most {max(results["differences"].values()):.0e} apart'
  ]
  for name in TORCH if torch else ():
    other = results[name]
    words.append(
      f'{name} {1000 * other["seconds"]:.0f} ms, {other["times_ours"]:.1f} '
      f'times ours ({command_line.format_range(other, ".1f")}; '
      f'{other["times_our_processor_time"]:.1f} times the processor time)'
    )
  return '; '.join(words if torch else [*words, 'torch is not installed'])


TORCH = {'torch': sinkhorn, 'torch in place': sinkhorn_in_place}


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv, __doc__, batch=64, queue=3840, prototypes=3000, dim=128, rounds=15
  )
  if torch:
    torch.set_num_threads(arguments.threads)
  shape = {
    name: getattr(arguments, name)
    for name in ('batch', 'queue', 'prototypes', 'dim')
  }
  inputs = make_inputs(**shape)
  options = objective_options.SwavOptions(queue=arguments.queue)
  cases = compare(inputs, options, arguments.rounds)
  results = {
    'shape': shape,
    'threads': arguments.threads,
    **cases,
    'seconds_of_parts': parts(inputs, options, arguments.rounds),
  }
  for name, value in results['seconds_of_parts'].items():
    print(f'{name:31} {1000 * value:.1f} ms')
  lines = []
  for case, result in cases.items():
    value = f'{1000 * result["seconds"]:.0f} ms'
    lines += [
      command_line.Line(
        f"SwAV's targets, {case}",
        value,
        other,
        1 / result[other]['times_ours'],
        command_line.inverse(result[other]['least_and_most']),
      )
      for other in (TORCH if torch else ())
    ] or [command_line.Line(f"SwAV's targets, {case}", value)]
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
