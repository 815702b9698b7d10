"""The contrastive term of U2PL beside a straightforward one in torch.

  python benchmarks/u2pl_loss.py [--images=32] [--side=129] [--dim=256]
      [--classes=21] [--threads=2] [--rounds=5] [--out=FILE.json]

One step of the whole term: which cells are candidates, what is pushed into the
bank, the draws, InfoNCE, and its gradient to the student's representation. Both
get the same inputs and a full bank, on the same number of threads, in turns.
Then what each part takes, and the memory that each needs beside its inputs, in
a process of its own. Where torch is not installed the term is timed alone.

The sizes that are assumed are those of Pascal VOC: 16 labeled and 16 mixed
images, whose inputs are 2.2 GB.
"""

import argparse
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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from segcore.ops import order_statistics
from segcore.train import update
from u2pl import contrast, memory_bank, prototypes
from u2pl.semi import mean_teacher
from u2pl.semi import options as options_lib

try:
  import torch
except ImportError:
  torch = None

MEGABYTE = 2**20


class Shape(NamedTuple):
  """Sizes of a step."""

  images: int
  side: int
  classes: int
  dim: int


class Inputs(NamedTuple):
  """What the term is given; rows alternate between labeled and mixed images.

  Attributes:
    student: [B, h, w, D].
    teacher: [B, h, w, D].
    scores: [B, h, w, C], the teacher's.
    labels: int32 [B, h, w].
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
  """Regions with smooth borders, and a teacher that knows them roughly."""
  rng = np.random.default_rng(0)
  cells = (shape.images, shape.side, shape.side)
  size = (shape.side, shape.side)
  scores = np.empty((*cells, shape.classes), np.float32)
  labels = np.empty(cells, np.int32)
  for i in range(shape.images):
    fields = rng.standard_normal((shape.classes, 5, 5)).astype(np.float32)
    grown = [cv2.resize(field, size, interpolation=3) for field in fields]
    truth = 3 * np.stack(grown, axis=-1)
    labels[i] = np.argmax(truth, axis=-1)
    noise = rng.standard_normal(truth.shape, np.float32)
    scores[i] = truth + noise
    # Annotators leave the borders out.
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
    found = np.empty((*cells, shape.dim), np.float32)
    for i in range(shape.images):
      rng.standard_normal(dtype=np.float32, out=found[i])
      found[i] += centers[labels[i]]
    return found

  return Inputs(features(), features(), scores, labels, reliable, unreliable)


def make_bank(shape: Shape, options: contrast.ContrastOptions) -> np.ndarray:
  """Rows of a full bank, [C, K, D]."""
  rng = np.random.default_rng(1)
  most = max(options.capacities(shape.classes))
  return rng.standard_normal((shape.classes, most, shape.dim), np.float32)


def build_semi(
  shape: Shape, options: contrast.ContrastOptions
) -> mean_teacher.MeanTeacher:
  """The method; neither its network nor its update is needed here."""
  unused: Any = None
  return mean_teacher.MeanTeacher(
    *(unused, unused),
    options_lib.LearnOptions(contrast=options),
    num_classes=shape.classes,
    steps_per_epoch=1,
  )


def in_jax(shape: Shape, options: contrast.ContrastOptions) -> Callable:
  """The term as the method computes it, compiled."""
  built = build_semi(shape, options)

  def term(bank: memory_bank.Bank, inputs: Inputs, rng: jax.Array):
    unused: Any = None
    state = mean_teacher.State(
      *[unused] * 7,
      bank=bank,
      prototypes=prototypes.empty(shape.classes, shape.dim),
    )
    guess = mean_teacher.Guess(
      *[unused] * 5,
      unreliable=inputs.unreliable[1::2],
      anchorable=inputs.reliable[1::2],
      joined={'logits': inputs.scores, 'rep': inputs.teacher},
    )
    state, compared = built.compare(state, guess, inputs.labels, rng)
    loss, gradient = jax.value_and_grad(built.contrast)(
      inputs.student, compared, state.bank
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
  """Without rows, as training starts."""
  return memory_bank.empty(options.capacities(shape.classes), shape.dim)


def full_bank(
  shape: Shape, options: contrast.ContrastOptions
) -> memory_bank.Bank:
  """With random rows."""
  bank = jax.eval_shape(functools.partial(empty_bank, shape, options))
  capacity = jnp.asarray(bank.capacity, jnp.int32)
  return bank.replace(
    # A copy: what is written in place must not be numpy's.
    rows=jnp.array(make_bank(shape, options)),
    pointer=jnp.zeros_like(capacity),
    count=capacity,
  )


def in_torch(inputs: Inputs, bank: list, options: contrast.ContrastOptions):
  """The term as it reads (spec U2PL §3.4).

  Args:
    inputs: tensors.
    bank: of each class, a tensor [K, D]; changed.
    options: of the loss.

  Returns:
    The loss, and its gradient with respect to the student's representation.
  """
  num_images, dim = len(inputs.labels), inputs.teacher.shape[-1]
  num_classes = inputs.scores.shape[-1]
  student = inputs.student.detach().requires_grad_()
  teacher_rows = inputs.teacher.reshape(-1, dim)
  student_rows = student.reshape(-1, dim)

  probs = torch.softmax(inputs.scores, dim=-1)
  order = torch.argsort(probs, dim=-1, descending=True, stable=True)
  places = torch.arange(num_classes).expand_as(order)
  rank = torch.empty_like(order).scatter_(-1, order, places)
  labeled = (torch.arange(num_images) % 2 == 0)[:, None, None]
  valid = inputs.labels >= 0
  usable = valid & (labeled | inputs.reliable)

  anchors, positives = [], []
  for c, capacity in enumerate(options.capacities(num_classes)):
    of_class = inputs.labels == c
    sure = probs[..., c] > options.anchor_threshold
    positives.append((usable & of_class).flatten().nonzero()[:, 0])
    anchors.append((usable & of_class & sure).flatten().nonzero()[:, 0])
    near = labeled & valid & ~of_class & (rank[..., c] < options.low_rank)
    window = (rank[..., c] >= options.low_rank) & (
      rank[..., c] < options.high_rank
    )
    negatives = near | (inputs.unreliable & valid & window)
    pushed = negatives.flatten().nonzero()[:, 0]
    if len(pushed) > options.max_push:
      pushed = pushed[torch.randperm(len(pushed))[: options.max_push]]
    bank[c] = torch.cat([bank[c], teacher_rows[pushed]])[-capacity:]

  shape = (options.num_anchors, options.num_negatives)
  total, num_present = torch.zeros(()), 0
  for c in range(num_classes):
    if not len(positives[c]):
      continue
    num_present += 1
    if not len(anchors[c]) or not len(bank[c]):
      continue
    drawn = anchors[c][torch.randint(len(anchors[c]), shape[:1])]
    anchor = student_rows[drawn]
    positive = teacher_rows[positives[c]].mean(0)
    negative = bank[c][torch.randint(len(bank[c]), (shape[0] * shape[1],))]
    compared = torch.cat(
      [
        positive.expand(shape[0], 1, dim),
        negative.reshape(*shape, dim),
      ],
      dim=1,
    )
    logits = torch.nn.functional.cosine_similarity(
      anchor[:, None], compared, dim=2, eps=1e-8
    )
    total = total + torch.nn.functional.cross_entropy(
      logits / options.temperature, torch.zeros(shape[0], dtype=torch.long)
    )
  loss = total / num_present
  loss.backward()
  return loss.detach(), student.grad


def torch_inputs(
  inputs: Inputs, shape: Shape, options: contrast.ContrastOptions
) -> tuple[Inputs, list]:
  """Tensors of the inputs, which share their memory, and a full bank."""
  rows = make_bank(shape, options)
  bank = [
    torch.from_numpy(rows[c, :capacity].copy())
    for c, capacity in enumerate(options.capacities(shape.classes))
  ]
  return Inputs(*map(torch.from_numpy, inputs)), bank


class Watch:
  """Seconds since it was made."""

  def __init__(self):
    self.start = time.perf_counter(), time.process_time()

  def read(self, name: str) -> dict[str, float]:
    """On the clock, and of all threads together."""
    wall, processor = self.start
    return {
      name: time.perf_counter() - wall,
      f'processor_{name}': time.process_time() - processor,
    }


def compare(
  shape: Shape, options: contrast.ContrastOptions, threads: int, rounds: int
) -> list[dict[str, float]]:
  """Seconds, those of all threads together, and loss of both, in turns."""
  inputs = make_inputs(shape)
  compiled = in_jax(shape, options)
  on_device = jax.tree.map(jnp.asarray, inputs)
  bank = full_bank(shape, options)
  if torch:
    torch.set_num_threads(threads)
    tensors, bank_of_torch = torch_inputs(inputs, shape, options)
  rows = []
  # The first round, in which memory is found, is not counted.
  for number in range(rounds + 1):
    rng = jax.random.PRNGKey(number)
    watch = Watch()
    loss, gradient, bank = jax.block_until_ready(compiled(bank, on_device, rng))
    row = {**watch.read('jax'), 'loss_jax': float(loss)}
    del gradient
    if torch:
      watch = Watch()
      loss, gradient = in_torch(tensors, bank_of_torch, options)
      row |= {**watch.read('torch'), 'loss_torch': float(loss)}
      del gradient
      apart = abs(row['loss_jax'] - row['loss_torch'])
      if apart > 0.02 * row['loss_torch']:  # The draws differ.
        raise AssertionError(f'{row}: expected the same loss, but for draws')
    if number:
      rows.append(row)
      shown = '  '.join(f'{name} {value:.3f}' for name, value in row.items())
      print(f'round {number}/{rounds}, s: {shown}', flush=True)
  return rows


def parts(
  shape: Shape, options: contrast.ContrastOptions, rounds: int
) -> dict[str, float]:
  """Seconds of each part of the term when it is compiled alone."""
  inputs = jax.tree.map(jnp.asarray, make_inputs(shape))
  bank = full_bank(shape, options)
  built = build_semi(shape, options)
  cells = shape.side**2
  most = min(options.max_push, shape.images * cells)
  probs = jax.nn.softmax(inputs.scores)
  labeled = jnp.arange(shape.images) % 2 == 0

  def candidates(probs, inputs):
    return contrast.candidates(
      probs,
      *(inputs.labels, labeled, inputs.reliable, inputs.unreliable),
      options,
    )

  masks = jax.jit(candidates)(probs, inputs)
  by_pixel = masks.negatives.reshape(shape.images, cells, shape.classes)
  anchors = masks.anchors.reshape(by_pixel.shape)
  keys = update.row_keys(jax.random.PRNGKey(0), shape.images)
  order = jnp.broadcast_to(jnp.arange(most), (shape.classes, most))
  thin = jax.jit(
    lambda mask, keys: order_statistics.keep_top_priorities(
      mask, order_statistics.draw_pixel_priorities(keys, cells), most
    )
  )
  chosen = thin(by_pixel, keys)
  at = jax.jit(order_statistics.nth_true)(chosen, order)
  flat = inputs.teacher.reshape(-1, shape.dim)
  rows = flat[at]
  counts = jnp.full(shape.classes, most, jnp.int32)
  draws = (shape.classes, options.num_anchors, options.num_negatives)

  def draw(anchors, rng, count):
    picked = order_statistics.ranks_from_uniforms(
      jax.random.uniform(rng, draws[:2]),
      jnp.sum(anchors, axis=(0, 1), dtype=jnp.int32)[:, None],
    )
    drawn = order_statistics.ranks_from_uniforms(
      jax.random.uniform(rng, draws), count[:, None, None]
    )
    return order_statistics.nth_true(anchors, picked), drawn

  picked, drawn = jax.jit(draw)(anchors, jax.random.PRNGKey(0), bank.count)
  means, _ = jax.jit(prototypes.class_means)(inputs.teacher, masks.positives)
  compared = mean_teacher.Comparison(
    *(picked, drawn, means),
    usable=jnp.ones(shape.classes, bool),
    present=jnp.ones(shape.classes, bool),
  )
  work: dict[str, tuple[Callable, tuple]] = {
    'softmax': (jax.nn.softmax, (inputs.scores,)),
    'ranks': (contrast.ranks, (probs,)),
    'ranks and masks': (candidates, (probs, inputs)),
    'class means': (prototypes.class_means, (inputs.teacher, masks.positives)),
    'choose what is pushed': (thin, (by_pixel, keys)),
    'where the chosen are': (order_statistics.nth_true, (chosen, order)),
    'gather their rows': (lambda flat, at: flat[at], (flat, at)),
    'write them to the bank': (memory_bank.push, (bank, rows, counts)),
    'draw anchors, negatives': (
      draw,
      (anchors, jax.random.PRNGKey(0), bank.count),
    ),
    'InfoNCE': (built.contrast, (inputs.student, compared, bank)),
    'InfoNCE with gradient': (
      jax.grad(built.contrast),
      (inputs.student, compared, bank),
    ),
  }
  found = {}
  for name, (part, given) in work.items():
    if part is memory_bank.push:  # Last of all that reads it, and in place.
      continue
    found[name] = fastest(jax.jit(part), given, rounds)
  write = jax.jit(memory_bank.push, donate_argnums=0)
  times = []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    bank = jax.block_until_ready(write(bank, rows, counts))
    times.append(time.perf_counter() - start)
  return {**found, 'write them to the bank': min(times[1:])}


def fastest(part: Callable, given: tuple, rounds: int) -> float:
  """Seconds of the fastest of some times, compiling apart."""
  jax.block_until_ready(part(*given))
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(part(*given))
    times.append(time.perf_counter() - start)
  return min(times)


def memory_of(
  kind: str, shape: Shape, options: contrast.ContrastOptions
) -> dict:
  """Bytes that a step needs beside its inputs and the bank.

  To be asked in a process of its own. The gradient, which is as large as the
  student's representation, is not part of them.
  """
  inputs = make_inputs(shape)
  gradient = inputs.student.nbytes
  if kind == 'torch':
    tensors, bank = torch_inputs(inputs, shape, options)
    small = Shape(2, 9, shape.classes, dim=2)
    # Loads what torch loads at its first use.
    in_torch(*torch_inputs(make_inputs(small), small, options), options)
    peak = added_at_peak(lambda: in_torch(tensors, bank, options))
    return {'peak': peak - gradient}
  compiled = in_jax(shape, options)
  given = (
    full_bank(shape, options),
    jax.tree.map(jnp.asarray, inputs),
    jax.random.PRNGKey(0),
  )
  jax.block_until_ready(given)
  del inputs
  peak = added_at_peak(lambda: jax.block_until_ready(compiled(*given)))
  planned = compiled.memory_analysis().temp_size_in_bytes
  return {'peak': peak - gradient, 'planned': planned}


def added_at_peak(work: Callable[[], object]) -> int:
  """Bytes by which the process grows while it works, at most. Linux only."""
  gc.collect()  # Of what jax has copied, too.
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  kept = work()
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  del kept
  return peak - pages * resource.getpagesize()


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Medians of the rounds, and how far they went apart."""
  found = {
    'rounds': list(rows),
    'seconds': statistics.median(row['jax'] for row in rows),
  }
  if torch:
    ratios = [row['torch'] / row['jax'] for row in rows]
    found['seconds_of_torch'] = statistics.median(row['torch'] for row in rows)
    found['times_faster'] = statistics.median(ratios)
    found['least_and_most'] = (min(ratios), max(ratios))
    found['less_processor_time'] = statistics.median(
      row['processor_torch'] / row['processor_jax'] for row in rows
    )
  return found


def sentence(found: dict) -> str:
  """A summary in words."""
  needed = found['memory']['jax']
  own = (
    f'{found["seconds"]:.2f} s, {needed["peak"] / MEGABYTE:.0f} MiB beside '
    f'inputs and gradient (XLA plans {needed["planned"] / MEGABYTE:.0f})'
  )
  if not torch:
    return f'{own}; torch is not installed'
  low, high = found['least_and_most']
  other = found['memory']['torch']['peak']
  return (
    f'{own}; torch {found["seconds_of_torch"]:.2f} s, '
    f'{other / MEGABYTE:.0f} MiB: {found["times_faster"]:.1f} times faster '
    f'({low:.1f} to {high:.1f}; {found["less_processor_time"]:.1f} times less '
    f'processor time) in {needed["peak"] / other:.0%} of the memory'
  )


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--images', type=int, default=32)
  parser.add_argument('--side', type=int, default=129)
  parser.add_argument('--classes', type=int, default=21)
  parser.add_argument('--dim', type=int, default=256)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--memory', choices=('jax', 'torch'))
  parser.add_argument('--out', default='')
  arguments = parser.parse_args(argv)
  if arguments.images < 2 or arguments.images % 2:
    parser.error(f'--images={arguments.images}: expected half of them labeled')
  # Before jax starts its threads: as many as there are cores for it.
  cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
  os.sched_setaffinity(0, cores)
  shape = Shape(
    *(arguments.images, arguments.side, arguments.classes, arguments.dim)
  )
  options = contrast.ContrastOptions()
  if arguments.memory:
    print(json.dumps(memory_of(arguments.memory, shape, options)))
    return
  memory = {}
  for kind in ('jax', *(('torch',) if torch else ())):
    command = [sys.executable, __file__, *argv, f'--memory={kind}']
    # Else glibc keeps for later what was freed, and its reuse is not seen.
    env = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(MEGABYTE)}
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env)
    memory[kind] = json.loads(made.stdout)
    shown = {n: f'{b / MEGABYTE:.0f} MiB' for n, b in memory[kind].items()}
    print(f'memory of {kind}: {shown}', flush=True)
  found = summary(compare(shape, options, len(cores), arguments.rounds))
  found = {
    'shape': shape._asdict(),
    'threads': len(cores),
    **found,
    'memory': memory,
    'seconds_of_parts': parts(shape, options, arguments.rounds),
  }
  for name, value in found['seconds_of_parts'].items():
    print(f'{name:28} {1000 * value:.0f} ms')
  print(sentence(found))
  if arguments.out:
    pathlib.Path(arguments.out).write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
  main(sys.argv[1:])
