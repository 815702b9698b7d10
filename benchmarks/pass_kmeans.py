"""Compares k-means with Faiss on a CPU.

  python benchmarks/pass_kmeans.py [--rows=64431] [--dim=512] [--clusters=50]
      [--iterations=20] [--restarts 1 4] [--threads=2] [--rounds=5]
      [--out=FILE.json]

The defaults are the sizes of ImageNet-S50 features of a ResNet-18. Features are
drawn from a mixture of Gaussians and L2-normalized. Both sides alternate, with
the same number of iterations, restarts and threads, and use all rows; Faiss
runs with the defaults of `faiss.Kmeans`, except that it does not subsample
rows. It draws other initial centroids, so objectives differ by chance; both are
computed from the centroids in float64. Without Faiss, this code alone is timed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Before OpenMP is loaded: by default its idle threads spin, which makes Faiss
# four times slower where another process needs the core.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import command_line
import jax
import numpy as np

from pass_luss.pseudo_labels import kmeans
from segcore.distributed import sharding

try:
  import faiss
except ImportError:
  faiss = None


class Shape(NamedTuple):
  """Sizes of a clustering."""

  rows: int
  dim: int
  clusters: int
  iterations: int
  restarts: int


def make_features(shape: Shape) -> np.ndarray:
  """Draws L2-normalized rows from twice as many Gaussians as clusters."""
  rng = np.random.default_rng(0)
  centers = rng.standard_normal((2 * shape.clusters, shape.dim), np.float32)
  rows = rng.standard_normal((shape.rows, shape.dim), np.float32)
  rows *= 2
  rows += centers[rng.integers(len(centers), size=shape.rows)]
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_jax(shape: Shape, features: np.ndarray) -> Callable[[int], np.ndarray]:
  """Builds the function from a seed to the centroids of the best restart."""
  rows = kmeans.shard_feature_rows(sharding.make_mesh(), features)

  def run(seed: int) -> np.ndarray:
    initial = kmeans.sample_initial_centroids(
      jax.random.PRNGKey(seed), shape.restarts, shape.rows, shape.clusters
    )
    clustering = kmeans.fit_kmeans(rows, initial, shape.iterations)
    jax.block_until_ready(clustering)
    return np.asarray(clustering.centroids)

  return run


def make_faiss(
  shape: Shape, features: np.ndarray
) -> Callable[[int], np.ndarray]:
  """Builds the function from a seed to the centroids of the best restart."""

  def run(seed: int) -> np.ndarray:
    clustering = faiss.Kmeans(
      shape.dim,
      shape.clusters,
      niter=shape.iterations,
      nredo=shape.restarts,
      seed=seed + 1,
      max_points_per_centroid=shape.rows,
    )
    clustering.train(features)
    return clustering.centroids

  return run


def exact_objective(features: np.ndarray, centroids: np.ndarray) -> float:
  """Sums the squared distances to the nearest centroids in float64."""
  centroids = centroids.astype(np.float64)
  total = 0.0
  for block in np.array_split(features, max(len(features) // 4096, 1)):
    block = block.astype(np.float64)
    half = np.sum(np.square(centroids), axis=1) / 2
    nearest = np.argmin(half - block @ centroids.T, axis=1)
    total += float(np.sum(np.square(block - centroids[nearest])))
  return total


def compare(
  shape: Shape, features: np.ndarray, rounds: int
) -> list[dict[str, float]]:
  """Measures seconds, CPU seconds and objectives of both sides in turns."""
  sides = {'jax': make_jax(shape, features)}
  if faiss:
    sides['faiss'] = make_faiss(shape, features)
  rows = []
  # The first round compiles and is not counted.
  for number in range(rounds + 1):
    row = {}
    for name, run in sides.items():
      start, processor = time.perf_counter(), time.process_time()
      centroids = run(number)
      row[name] = time.perf_counter() - start
      row[f'processor_{name}'] = time.process_time() - processor
      row[f'objective_{name}'] = exact_objective(features, centroids)
    if number:
      rows.append(row)
      shown = '  '.join(f'{name} {value:.2f}' for name, value in row.items())
      print(f'round {number}/{rounds}: {shown}', flush=True)
  return rows


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Computes the medians of the rounds and their range."""
  own = {
    'rounds': list(rows),
    'seconds': statistics.median(row['jax'] for row in rows),
  }
  if not faiss:
    return own
  ratios = [row['jax'] / row['faiss'] for row in rows]
  return {
    **own,
    'seconds_of_faiss': statistics.median(row['faiss'] for row in rows),
    'times_faiss': statistics.median(ratios),
    'least_and_most': (min(ratios), max(ratios)),
    'times_processor_of_faiss': statistics.median(
      row['processor_jax'] / row['processor_faiss'] for row in rows
    ),
    'objective_over_that_of_faiss': statistics.median(
      row['objective_jax'] / row['objective_faiss'] for row in rows
    ),
  }


def sentence(shape: Shape, result: dict) -> str:
  """Formats a summary as a sentence."""
  own = (
    f'{shape.rows} x {shape.dim}, k = {shape.clusters}, {shape.iterations} '
    f'iterations, {shape.restarts} restarts: {result["seconds"]:.2f} s'
  )
  if not faiss:
    return f'{own}; faiss is not installed'
  return (
    f'{own}; faiss {result["seconds_of_faiss"]:.2f} s: '
    f'{result["times_faiss"]:.2f} of its '
    f'time ({command_line.format_range(result, ".2f")}; '
    f'{result["times_processor_of_faiss"]:.2f} of its processor time), '
    f'objective {result["objective_over_that_of_faiss"]:.4f} of its own'
  )


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv,
    __doc__,
    rows=64431,
    dim=512,
    clusters=50,
    iterations=20,
    rounds=5,
    restarts=[1, 4],
  )
  if faiss:
    faiss.omp_set_num_threads(arguments.threads)
  results, lines = {'threads': arguments.threads}, []
  sizes = (arguments.rows, arguments.dim, arguments.clusters)
  for restarts in arguments.restarts:
    shape = Shape(*sizes, arguments.iterations, restarts)
    features = make_features(shape)
    result = summary(compare(shape, features, arguments.rounds))
    print(sentence(shape, result), flush=True)
    results[f'{restarts} restarts'] = {'shape': shape._asdict(), **result}
    lines.append(
      command_line.Line(
        f'k-means, restarts: {restarts}',
        f'{result["seconds"]:.2f} s',
        'faiss' if faiss else '',
        result.get('times_faiss'),
        result.get('least_and_most', ()),
      )
    )
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
