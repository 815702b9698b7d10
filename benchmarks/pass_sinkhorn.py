"""SwAV's targets by Sinkhorn's algorithm beside a plain torch version.

  python benchmarks/pass_sinkhorn.py [--batch=64] [--queue=3840]
      [--prototypes=3000] [--dim=128] [--threads=2] [--rounds=15]
      [--out=FILE.json]

The published size: the batch of a device and the whole queue, against 3,000
prototypes, three iterations in float32. The other side normalizes the matrix
exp(scores / ε) by its row and its column sums in turn, as the algorithm is
usually written (spec PASS §2.5); and once more with fewer passes over memory,
all of them in place and each two divisions joined. All get the same scores on
the same number of threads, in turns, for one view, for both, and for both with
the scores of the queue, which a step computes anew. All targets must be within
1e-6 of those of numpy in float64. Then what each pass over the matrix takes.
Where torch is not installed ours are timed alone.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Before OpenMP is loaded: its threads would spin on while it is jax's turn.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import swav

try:
  import torch
except ImportError:
  torch = None

MEGABYTE = 2**20
TOLERANCE = 1e-6


class Inputs(NamedTuple):
  """What a step has; arrays of any kind.

  Attributes:
    scores: [2, B, K], of the batch.
    remembered: [2, L, K], of the queue.
    queue: [2, L, D], its embeddings.
    prototypes: [D, K].
  """

  scores: Any
  remembered: Any
  queue: Any
  prototypes: Any


def make_inputs(batch: int, queue: int, prototypes: int, dim: int) -> Inputs:
  """Embeddings about as near to some prototype as after training."""
  rng = np.random.default_rng(0)

  def units(*shape: int) -> np.ndarray:
    rows = rng.standard_normal((*shape, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

  centers = units(prototypes)

  def embeddings(count: int) -> np.ndarray:
    near = centers[rng.integers(prototypes, size=(2, count))]
    rows = near + units(2, count)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

  new, old = embeddings(batch), embeddings(queue)
  return Inputs(new @ centers.T, old @ centers.T, old, centers.T.copy())


def cases_of_jax(
  inputs: Inputs, options: swav.SwavOptions
) -> dict[str, tuple[Any, tuple]]:
  """Of each case, the compiled targets [V, B, K] and what they are given."""
  placed = Inputs(*map(jnp.asarray, inputs))
  active = jnp.array(True)

  def balance(scores, remembered, active):
    return jnp.stack(
      [
        swav.targets(*of_view, active, options)
        for of_view in zip(scores, remembered, strict=True)
      ]
    )

  def remember(scores, rows, prototypes):
    queue = queue_lib.Queue(rows, jnp.array(options.queue))
    found = swav.view_targets(
      jnp.moveaxis(scores, 0, 1), queue, prototypes, options
    )
    return jnp.moveaxis(found, 1, 0)

  # Of each view an array: of one array of all, XLA would copy the parts.
  views = list(placed.scores), list(placed.remembered)
  first = *(of_views[:1] for of_views in views), active
  both = *views, active
  whole = placed.scores, placed.queue, placed.prototypes
  return {
    name: (jax.jit(work).lower(*given).compile(), given)
    for name, work, given in (
      ('one view', balance, first),
      ('both views', balance, both),
      ('with the scores of the queue', remember, whole),
    )
  }


def cases_of_torch(
  inputs: Inputs, balanced: Callable, options: swav.SwavOptions
) -> dict[str, Callable[[], Any]]:
  """Likewise, of tensors that share the memory of the inputs.

  Args:
    inputs: arrays of numpy.
    balanced: `as_written` or `joined`.
    options: of Sinkhorn's algorithm.
  """
  tensors = Inputs(*map(torch.from_numpy, inputs))

  def balance(scores, remembered):
    return torch.stack(
      [
        balanced(torch.cat(of_view), options)[-len(of_view[1]) :]
        for of_view in zip(remembered, scores, strict=True)
      ]
    )

  return {
    'one view': lambda: balance(tensors.scores[:1], tensors.remembered[:1]),
    'both views': lambda: balance(tensors.scores, tensors.remembered),
    'with the scores of the queue': lambda: balance(
      tensors.scores, tensors.queue @ tensors.prototypes
    ),
  }


def as_written(scores: Any, options: swav.SwavOptions) -> Any:
  """Sinkhorn's algorithm step by step, of a tensor or an array [N, K]."""
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


def joined(scores: Any, options: swav.SwavOptions) -> Any:
  """The same of a tensor that may be changed, with fewer passes over it."""
  matrix = scores.div_(options.epsilon).exp_()
  num_samples, num_prototypes = matrix.shape
  for i in range(options.sinkhorn_iterations):
    matrix /= num_prototypes * matrix.sum(axis=0, keepdims=True)
    last = i + 1 == options.sinkhorn_iterations
    share = 1 if last else num_samples
    matrix /= share * matrix.sum(axis=1, keepdims=True)
  return matrix


def in_numpy(inputs: Inputs, options: swav.SwavOptions) -> np.ndarray:
  """Targets [2, B, K] in float64, by which both sides are judged."""
  joint = np.concatenate([inputs.remembered, inputs.scores], axis=1)
  batch = inputs.scores.shape[1]
  return np.stack(
    [as_written(rows.astype(np.float64), options)[-batch:] for rows in joint]
  )


def apart(found: Any, expected: np.ndarray, name: str) -> float:
  """The largest difference.

  Raises:
    AssertionError: it is more than is allowed.
  """
  difference = float(np.abs(np.asarray(found) - expected).max())
  if not difference <= TOLERANCE:
    raise AssertionError(
      f'targets of {name}: found a difference of {difference:.1e}, expected '
      f'at most {TOLERANCE:.0e}'
    )
  return difference


def compare(
  inputs: Inputs, options: swav.SwavOptions, rounds: int
) -> dict[str, dict]:
  """Seconds, those of all threads together, and differences, in turns."""
  expected = in_numpy(inputs, options)
  ours = cases_of_jax(inputs, options)
  others = {
    name: cases_of_torch(inputs, balanced, options)
    for name, balanced in TORCH.items()
    if torch
  }
  found = {}
  for case, (compiled, given) in ours.items():

    def jitted(compiled=compiled, given=given):
      return jax.block_until_ready(compiled(*given))

    sides = {'jax': jitted, **{name: of[case] for name, of in others.items()}}
    rows, differences = [], {}
    # The first round, in which memory is found, is not counted.
    for number in range(rounds + 1):
      row, targets = {}, {}
      for name, work in sides.items():
        start, processor = time.perf_counter(), time.process_time()
        targets[name] = work()
        row[name] = time.perf_counter() - start
        row[f'processor_{name}'] = time.process_time() - processor
      if number:
        rows.append(row)
        continue
      for name, value in targets.items():
        differences[f'{name} and float64'] = apart(
          value, expected[: len(value)], f'{name}, {case}'
        )
      for name in others:
        differences[f'jax and {name}'] = apart(
          targets['jax'], np.asarray(targets[name]), f'jax and {name}, {case}'
        )
    temporary = compiled.memory_analysis().temp_size_in_bytes
    found[case] = {
      **summary(rows),
      'differences': differences,
      'temporary_bytes': temporary,
    }
    print(f'{case}: {sentence(found[case])}', flush=True)
  return found


def parts(
  inputs: Inputs, options: swav.SwavOptions, rounds: int
) -> dict[str, float]:
  """Seconds of each pass over one view's matrix of the queue, alone."""
  scores = jnp.asarray(inputs.remembered[0])
  kernel = jnp.exp(scores / options.epsilon)
  of_samples, of_prototypes = (jnp.ones(size) for size in kernel.shape)
  work: dict[str, tuple[Callable, tuple]] = {
    'largest score': (jnp.max, (scores,)),
    'exp, which is written': (
      lambda scores: jnp.exp(scores / options.epsilon),
      (scores,),
    ),
    'exp, of which a sum is written': (
      lambda scores: jnp.sum(jnp.exp(scores / options.epsilon), axis=1),
      (scores,),
    ),
    'sums over samples': (
      lambda kernel, factors: jnp.sum(kernel * factors[:, None], axis=0),
      (kernel, of_samples),
    ),
    'sums over prototypes': (
      lambda kernel, factors: jnp.sum(kernel * factors, axis=1),
      (kernel, of_prototypes),
    ),
  }
  found = {}
  for name, (part, given) in work.items():
    jitted = jax.jit(part)
    times = []
    for _ in range(rounds + 1):
      start = time.perf_counter()
      jax.block_until_ready(jitted(*given))
      times.append(time.perf_counter() - start)
    found[name] = statistics.median(times[1:])
  return found


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Medians of the rounds, and how far they went apart."""
  found = {
    'rounds': list(rows),
    'seconds': statistics.median(row['jax'] for row in rows),
  }
  for name in TORCH if torch else ():
    ratios = [row[name] / row['jax'] for row in rows]
    found[name] = {
      'seconds': statistics.median(row[name] for row in rows),
      'times_ours': statistics.median(ratios),
      'least_and_most': (min(ratios), max(ratios)),
      'times_our_processor_time': statistics.median(
        row[f'processor_{name}'] / row['processor_jax'] for row in rows
      ),
    }
  return found


def sentence(found: dict) -> str:
  """A summary in words."""
  temporary = found['temporary_bytes'] / MEGABYTE
  words = [
    f'{1000 * found["seconds"]:.0f} ms, {temporary:.0f} MiB beside the scores, '
    f'at most {max(found["differences"].values()):.0e} apart'
  ]
  for name in TORCH if torch else ():
    other = found[name]
    low, high = other['least_and_most']
    words.append(
      f'{name} {1000 * other["seconds"]:.0f} ms, {other["times_ours"]:.1f} '
      f'times ours ({low:.1f} to {high:.1f}; '
      f'{other["times_our_processor_time"]:.1f} times the processor time)'
    )
  return '; '.join(words if torch else [*words, 'torch is not installed'])


TORCH = {'torch': as_written, 'torch joined': joined}


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--queue', type=int, default=3840)
  parser.add_argument('--prototypes', type=int, default=3000)
  parser.add_argument('--dim', type=int, default=128)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--out', default='')
  arguments = parser.parse_args(argv)
  # Before jax starts its threads: as many as there are cores for it.
  cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
  os.sched_setaffinity(0, cores)
  if torch:
    torch.set_num_threads(len(cores))
  shape = {
    name: getattr(arguments, name)
    for name in ('batch', 'queue', 'prototypes', 'dim')
  }
  inputs = make_inputs(**shape)
  options = swav.SwavOptions(queue=arguments.queue)
  found = {
    'shape': shape,
    'threads': len(cores),
    **compare(inputs, options, arguments.rounds),
    'seconds_of_parts': parts(inputs, options, arguments.rounds),
  }
  for name, value in found['seconds_of_parts'].items():
    print(f'{name:31} {1000 * value:.1f} ms')
  if arguments.out:
    pathlib.Path(arguments.out).write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
  main(sys.argv[1:])
