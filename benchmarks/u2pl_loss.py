"""Compares the contrastive term of U2PL with a plain one in torch.

  python benchmarks/u2pl_loss.py [--images=32] [--side=129] [--dim=256]
      [--classes=21] [--threads=2] [--rounds=5] [--out=FILE.json]

Times one step of the whole term: candidates, enqueueing into the bank, draws,
InfoNCE and its gradient to the student's representation. Both versions get the
same inputs and a full bank, and run in turns on the same number of threads.
Also times each part of the term, and measures the memory of each version beside
its inputs in a separate process. Without torch the term is timed alone.

The default sizes are those of Pascal VOC: 16 labeled and 16 mixed images, whose
inputs are 2.2 GB.
"""

import functools
import gc
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import command_line
import cv2
import jax
import jax.numpy as jnp
import numpy as np

from segcore.ops import order_statistics
from segcore.train import update
from u2pl import contrast, contrastive_branch, memory_bank, prototypes

try:
  import plain_u2pl_loss
  import torch
except ImportError:
  torch = None

MEGABYTE = 2**20


class Shape(NamedTuple):
  """Sizes of a step: images and side in cells, C, D."""

  images: int
  side: int
  classes: int
  dim: int


class Inputs(NamedTuple):
  """Inputs of the term; rows alternate between labeled and mixed images.

  Attributes:
    student: [B, h, w, D].
    teacher: [B, h, w, D].
    scores: [B, h, w, C], logits of the teacher.
    labels: int32 [B, h, w], ground truth and pseudo-labels.
    reliable: bool [B, h, w]; False on labeled images.
    unreliable: bool [B, h, w]; False on labeled images.
  """

  student: Any
  teacher: Any
  scores: Any
  labels: Any
  reliable: Any
  unreliable: Any


def make_inputs(shape: Shape) -> Inputs:
  """Draws regions with smooth borders, and noisy teacher scores of them."""
  rng = np.random.default_rng(0)
  cells = (shape.images, shape.side, shape.side)
  size = (shape.side, shape.side)
  scores = np.empty((*cells, shape.classes), np.float32)
  labels = np.empty(cells, np.int32)
  for i in range(shape.images):
    fields = rng.standard_normal((shape.classes, 5, 5)).astype(np.float32)
    fields_resized = [
      cv2.resize(field, size, interpolation=3) for field in fields
    ]
    truth = 3 * np.stack(fields_resized, axis=-1)
    labels[i] = np.argmax(truth, axis=-1)
    noise = rng.standard_normal(truth.shape, np.float32)
    scores[i] = truth + noise
    # Annotators ignore the borders of objects.
    first, second = np.partition(truth, -2, axis=-1)[..., :-3:-1].T
    labels[i][(first - second).T < 0.2] = -1
  mixed = np.arange(shape.images) % 2 == 1
  labels[mixed] = np.argmax(scores[mixed], axis=-1)
  probs = np.exp(scores[mixed] - scores[mixed].max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  entropy = -np.sum(probs * np.log(probs + 1e-10), axis=-1)
  below = entropy < np.percentile(entropy, 80)
  reliable, unreliable = np.zeros(cells, bool), np.zeros(cells, bool)
  reliable[mixed], unreliable[mixed] = below, ~below
  centers = rng.standard_normal((shape.classes, shape.dim), np.float32)

  def features() -> np.ndarray:
    drawn = np.empty((*cells, shape.dim), np.float32)
    for i in range(shape.images):
      rng.standard_normal(dtype=np.float32, out=drawn[i])
      drawn[i] += centers[labels[i]]
    return drawn

  return Inputs(features(), features(), scores, labels, reliable, unreliable)


def make_bank(shape: Shape, options: contrast.ContrastOptions) -> np.ndarray:
  """Draws the rows of a full bank, [K, D]."""
  rng = np.random.default_rng(1)
  num_rows = sum(options.capacities(shape.classes))
  return rng.standard_normal((num_rows, shape.dim), np.float32)


def build_branch(
  shape: Shape, options: contrast.ContrastOptions
) -> contrastive_branch.ContrastiveBranch:
  """Builds the contrastive branch with the prototypes of U2PL."""
  return contrastive_branch.ContrastiveBranch(
    shape.classes, shape.dim, options, prototype_momentum=0.0
  )


def pixel_masks(inputs: Inputs) -> contrastive_branch.PixelMasks:
  """Returns the masks of the branch."""
  labeled = jnp.arange(len(inputs.labels)) % 2 == 0
  return contrastive_branch.PixelMasks(
    labeled=jnp.broadcast_to(labeled[:, None, None], inputs.labels.shape),
    reliable=inputs.reliable,
    unreliable=inputs.unreliable,
  )


def in_jax(shape: Shape, options: contrast.ContrastOptions) -> Callable:
  """Compiles the term as a method computes it."""
  branch = build_branch(shape, options)

  def term(bank: memory_bank.Bank, inputs: Inputs, rng: jax.Array):
    state = contrastive_branch.BranchState(
      bank, prototypes.empty_class_prototypes(shape.classes, shape.dim)
    )
    state, targets = branch.update(
      state,
      inputs.teacher,
      jax.nn.softmax(inputs.scores),
      inputs.labels,
      pixel_masks(inputs),
      rng,
    )
    loss, gradient = jax.value_and_grad(branch.loss)(
      inputs.student, targets, state
    )
    return loss, gradient, state.bank

  cells = (shape.images, shape.side, shape.side)
  abstract = jax.ShapeDtypeStruct
  inputs = Inputs(
    abstract((*cells, shape.dim), jnp.float32),
    abstract((*cells, shape.dim), jnp.float32),
    abstract((*cells, shape.classes), jnp.float32),
    abstract(cells, jnp.int32),
    abstract(cells, jnp.bool_),
    abstract(cells, jnp.bool_),
  )
  bank = jax.eval_shape(functools.partial(empty_bank, shape, options))
  # As in training, the bank is written in place.
  jitted = jax.jit(term, donate_argnums=0)
  return jitted.lower(bank, inputs, abstract((2,), jnp.uint32)).compile()


def empty_bank(
  shape: Shape, options: contrast.ContrastOptions
) -> memory_bank.Bank:
  """Returns a bank without rows, as training starts."""
  return memory_bank.empty_memory_bank(
    options.capacities(shape.classes), shape.dim
  )


def full_bank(
  shape: Shape, options: contrast.ContrastOptions
) -> memory_bank.Bank:
  """Returns a bank full of random rows."""
  bank = jax.eval_shape(functools.partial(empty_bank, shape, options))
  capacity = jnp.asarray(bank.capacity, jnp.int32)
  return bank.replace(
    # A copy: the bank is donated, and numpy's memory must not be.
    rows=jnp.array(make_bank(shape, options)),
    pointer=jnp.zeros_like(capacity),
    count=capacity,
  )


def torch_inputs(
  inputs: Inputs, shape: Shape, options: contrast.ContrastOptions
) -> tuple[Inputs, list]:
  """Returns tensors that share the inputs' memory, and a full bank."""
  # Copies: both versions write to their bank.
  rows = torch.from_numpy(make_bank(shape, options).copy())
  bank = [*rows.split(options.capacities(shape.classes))]
  return Inputs(*map(torch.from_numpy, inputs)), bank


class Stopwatch:
  """Measures seconds since its construction."""

  def __init__(self):
    self.start = time.perf_counter(), time.process_time()

  def read(self, name: str) -> dict[str, float]:
    """Returns wall-clock seconds and processor seconds of all threads."""
    wall, processor = self.start
    return {
      name: time.perf_counter() - wall,
      f'processor_{name}': time.process_time() - processor,
    }


def compare(
  shape: Shape, options: contrast.ContrastOptions, threads: int, rounds: int
) -> list[dict[str, float]]:
  """Measures seconds, processor seconds and loss of both versions in turns."""
  inputs = make_inputs(shape)
  compiled = in_jax(shape, options)
  on_device = jax.tree.map(jnp.asarray, inputs)
  bank = full_bank(shape, options)
  if torch:
    torch.set_num_threads(threads)
    tensors, bank_of_torch = torch_inputs(inputs, shape, options)
  rows = []
  # The first round allocates memory and is not counted.
  for number in range(rounds + 1):
    rng = jax.random.PRNGKey(number)
    stopwatch = Stopwatch()
    loss, gradient, bank = jax.block_until_ready(compiled(bank, on_device, rng))
    row = {**stopwatch.read('jax'), 'loss_jax': float(loss)}
    del gradient
    if torch:
      stopwatch = Stopwatch()
      loss, gradient = plain_u2pl_loss.step(tensors, bank_of_torch, options)
      row |= {**stopwatch.read('torch'), 'loss_torch': float(loss)}
      del gradient
      apart = abs(row['loss_jax'] - row['loss_torch'])
      # Equal but for the draws, which differ.
      if apart > 0.02 * row['loss_torch']:
        raise AssertionError(f'losses: expected within 2 %, got {row}')
    if number:
      rows.append(row)
      shown = '  '.join(f'{name} {value:.3f}' for name, value in row.items())
      print(f'round {number}/{rounds}, s: {shown}', flush=True)
  return rows


def parts(
  shape: Shape, options: contrast.ContrastOptions, rounds: int
) -> dict[str, float]:
  """Measures seconds of each part of the term when compiled alone."""
  inputs = jax.tree.map(jnp.asarray, make_inputs(shape))
  bank = full_bank(shape, options)
  seconds, rows, counts = {}, None, None
  for name, part, arguments in list_parts(shape, options, inputs, bank):
    part = jax.jit(part)
    seconds[name] = fastest(part, arguments, rounds)
    if name == 'gather its rows':
      rows = part(*arguments)
      counts = jnp.full(shape.classes, rows.shape[1], jnp.int32)
  # In place, so after all that reads the bank.
  write = jax.jit(memory_bank.push_negatives, donate_argnums=0)
  times = []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    bank = jax.block_until_ready(write(bank, rows, counts))
    times.append(time.perf_counter() - start)
  return {**seconds, 'write rows to the bank': min(times[1:])}


def list_parts(
  shape: Shape,
  options: contrast.ContrastOptions,
  inputs: Inputs,
  bank: memory_bank.Bank,
) -> Iterator[tuple[str, Callable, tuple]]:
  """Yields name, function and arguments of each part that does not write."""
  branch, cells = build_branch(shape, options), shape.side**2
  rng = jax.random.PRNGKey(0)
  probs = jax.nn.softmax(inputs.scores)

  def candidates(probs, inputs):
    return contrast.contrast_candidates(
      probs, inputs.labels, *pixel_masks(inputs), options
    )

  masks = jax.jit(candidates)(probs, inputs)
  yield 'softmax', jax.nn.softmax, (inputs.scores,)
  yield 'ranks', contrast.class_probability_ranks, (probs,)
  yield 'ranks and masks', candidates, (probs, inputs)
  means = (inputs.teacher, masks.positives)
  yield 'class means', prototypes.class_mean_features, means

  max_push = min(options.max_push, shape.images * cells)
  negatives = masks.negatives.reshape(shape.images, cells, shape.classes)
  keys = update.row_prng_keys(rng, shape.images)
  order = jnp.broadcast_to(jnp.arange(max_push), (shape.classes, max_push))

  def sample(mask, keys):
    priorities = order_statistics.sample_pixel_priorities(keys, cells)
    return order_statistics.keep_top_priorities(mask, priorities, max_push)

  sampled = jax.jit(sample)(negatives, keys)
  yield 'sample negatives', sample, (negatives, keys)
  nth_true = order_statistics.nth_true_pixels
  yield 'positions of the sample', nth_true, (sampled, order)
  flat = inputs.teacher.reshape(-1, shape.dim)
  at = jax.jit(nth_true)(sampled, order)
  yield 'gather its rows', lambda flat, at: flat[at], (flat, at)

  state = contrastive_branch.BranchState(
    bank, prototypes.empty_class_prototypes(shape.classes, shape.dim)
  )
  state, targets = jax.jit(branch.update_with)(
    state, inputs.teacher, masks, rng
  )
  yield 'InfoNCE', branch.loss, (inputs.student, targets, state)
  gradient = jax.grad(branch.loss)
  yield 'InfoNCE with gradient', gradient, (inputs.student, targets, state)


def fastest(part: Callable, arguments: tuple, rounds: int) -> float:
  """Measures the seconds of the fastest round, without compilation."""
  jax.block_until_ready(part(*arguments))
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(part(*arguments))
    times.append(time.perf_counter() - start)
  return min(times)


def memory_of(
  kind: str, shape: Shape, options: contrast.ContrastOptions
) -> dict:
  """Measures the bytes that a step needs beside its inputs and the bank.

  Call it in a fresh process: the peak is of the whole process. The gradient,
  which is as large as the student's representation, is not included.
  """
  inputs = make_inputs(shape)
  gradient = inputs.student.nbytes
  if kind == 'torch':
    tensors, bank = torch_inputs(inputs, shape, options)
    small = Shape(2, 9, shape.classes, dim=2)
    # Torch loads libraries at its first use.
    plain_u2pl_loss.step(
      *torch_inputs(make_inputs(small), small, options), options
    )
    peak = added_at_peak(lambda: plain_u2pl_loss.step(tensors, bank, options))
    return {'peak': peak - gradient}
  compiled = in_jax(shape, options)
  arguments = (
    full_bank(shape, options),
    jax.tree.map(jnp.asarray, inputs),
    jax.random.PRNGKey(0),
  )
  jax.block_until_ready(arguments)
  del inputs
  peak = added_at_peak(lambda: jax.block_until_ready(compiled(*arguments)))
  planned = compiled.memory_analysis().temp_size_in_bytes
  return {'peak': peak - gradient, 'planned': planned}


def added_at_peak(work: Callable[[], object]) -> int:
  """Measures the largest growth of the process during `work`; Linux only."""
  gc.collect()  # Frees what jax has copied.
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  result = work()
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  del result
  return peak - pages * resource.getpagesize()


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Computes medians over the rounds, and the range of the ratio."""
  medians = {
    'rounds': list(rows),
    'seconds': statistics.median(row['jax'] for row in rows),
  }
  if torch:
    ratios = [row['torch'] / row['jax'] for row in rows]
    medians['seconds_of_torch'] = statistics.median(
      row['torch'] for row in rows
    )
    medians['times_faster'] = statistics.median(ratios)
    medians['least_and_most'] = (min(ratios), max(ratios))
    medians['less_processor_time'] = statistics.median(
      row['processor_torch'] / row['processor_jax'] for row in rows
    )
  return medians


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv,
    __doc__,
    images=32,
    side=129,
    classes=21,
    dim=256,
    rounds=5,
    memory=('', 'jax', 'torch'),
  )
  if arguments.images < 2 or arguments.images % 2:
    sys.exit(f'--images: expected an even number, got {arguments.images}')
  shape = Shape(
    arguments.images, arguments.side, arguments.classes, arguments.dim
  )
  options = contrast.ContrastOptions()
  if arguments.memory:
    print(json.dumps(memory_of(arguments.memory, shape, options)))
    return
  memory = {}
  for kind in ('jax', *(('torch',) if torch else ())):
    command = [sys.executable, __file__, *argv, f'--memory={kind}']
    # Else glibc keeps freed memory, and its reuse does not show in the peak.
    env = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(MEGABYTE)}
    process = subprocess.run(
      command, check=True, stdout=subprocess.PIPE, env=env
    )
    memory[kind] = json.loads(process.stdout)
    shown = {n: f'{b / MEGABYTE:.0f} MiB' for n, b in memory[kind].items()}
    print(f'memory of {kind}: {shown}', flush=True)
  results = summary(
    compare(shape, options, arguments.threads, arguments.rounds)
  )
  results = {
    'shape': shape._asdict(),
    'threads': arguments.threads,
    **results,
    'memory': memory,
    'seconds_of_parts': parts(shape, options, arguments.rounds),
  }
  for name, value in results['seconds_of_parts'].items():
    print(f'{name:28} {1000 * value:.0f} ms')
  print(sentence(results))
  command_line.write_results(arguments.out, results, summary_lines(results))


def summary_lines(results: dict) -> list[command_line.Line]:
  """Returns the lines of time and memory for the summary."""
  name, seconds = "U2PL's contrastive loss", f'{results["seconds"]:.2f} s'
  peak = results['memory']['jax']['peak']
  megabytes = f'{peak / MEGABYTE:.0f} MiB'
  if not torch:
    return [
      command_line.Line(name, seconds),
      command_line.Line(f'{name}, memory', megabytes),
    ]
  range_of_time = command_line.inverse(results['least_and_most'])
  share = 1 / results['times_faster']
  share_of_memory = peak / results['memory']['torch']['peak']
  return [
    command_line.Line(name, seconds, 'torch', share, range_of_time),
    command_line.Line(f'{name}, memory', megabytes, 'torch', share_of_memory),
  ]


def sentence(results: dict) -> str:
  """Formats the results as one line."""
  needed = results['memory']['jax']
  own = (
    f'{results["seconds"]:.2f} s, {needed["peak"] / MEGABYTE:.0f} MiB beside '
    f'inputs and gradient (XLA plans {needed["planned"] / MEGABYTE:.0f})'
  )
  if not torch:
    return f'{own}; torch is not installed'
  other = results['memory']['torch']['peak']
  return (
    f'{own}; torch {results["seconds_of_torch"]:.2f} s, '
    f'{other / MEGABYTE:.0f} MiB: {results["times_faster"]:.1f} times faster '
    f'({command_line.format_range(results, ".1f")}; '
    f'{results["less_processor_time"]:.1f} times less processor time) in '
    f'{needed["peak"] / other:.0%} of the memory'
  )


if __name__ == '__main__':
  main(sys.argv[1:])
