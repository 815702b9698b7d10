"""Logs of a training: progress lines, metrics and speed files, TensorBoard."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from input_pipeline import batch as batch_lib
from runtime import console, files, metrics_file
from segcore.cost import flops, throughput
from segcore.train import tensorboard

# The table of parameters, in a stage's folder.
PARAMETERS_FILE = 'parameters.txt'

# Consecutive logged values of a loss term that are 0 before a warning.
_MAX_ZEROS = 10


class RunLog:
  """Writes the logs of a training; only host 0 writes files.

  Attributes:
    progress: the progress line.
    ids: file of the image ids of each step.
    meter: meter of the shares of time.
    peak_flops: FLOP/s of the devices together, or None if unknown.
    step_flops: floating-point operations of a step, once they are counted.
  """

  def __init__(
    self,
    directory: files.Path,
    start: int,
    num_steps: int,
    batch_size: int,
    mesh: Mesh,
    meter: throughput.GoodputMeter,
    hparams: Mapping[str, Any],
    zero_terms_until: int,
  ):
    """Opens the logs, dropping lines that are later than step `start`.

    Args:
      directory: folder of the stage; has the table of parameters.
      start: step that the training starts or resumes from.
      num_steps: length of the training.
      batch_size: global number of images of a step.
      mesh: the devices.
      meter: meter of the shares of time.
      hparams: settings for TensorBoard.
      zero_terms_until: last step at which a loss term may be 0 by design.
    """
    self.meter = meter
    self.peak_flops = throughput.peak_flops(mesh)
    self.step_flops = 0
    self._mesh = mesh
    self._num_steps = num_steps
    # Speeds have a file of their own, so that metrics.jsonl is reproducible.
    self._speeds = metrics_file.MetricsFile(
      directory / 'speed.jsonl', step=start
    )
    self._metrics = metrics_file.MetricsFile(
      directory / 'metrics.jsonl', step=start
    )
    self.ids = metrics_file.MetricsFile(directory / 'ids.jsonl', step=start)
    self.progress = console.ProgressLine(
      directory.name, start, num_steps, batch_size
    )
    self._zero_terms = ZeroTermMonitor(zero_terms_until)
    self._writer = tensorboard.open_training_tensorboard(
      directory / 'tensorboard', start
    )
    self._writer.write_hparams(hparams)
    if start == 0 and jax.process_index() == 0:
      # Indented, so that TensorBoard's Markdown keeps the columns.
      table = (directory / PARAMETERS_FILE).read_text().splitlines()
      text = '\n'.join(f'    {line}' for line in table)
      self._writer.write_texts(0, {'parameters': text})

  def count_step_flops(self, step_fn: Any, *arguments: Any) -> None:
    """Counts the operations of a step, if the devices' FLOP/s are known.

    Args:
      step_fn: jitted step.
      *arguments: arguments of the step, or their shapes.
    """
    if self.peak_flops:
      jaxpr = step_fn.trace(*arguments).jaxpr
      self.step_flops = flops.count_jaxpr_flops(jaxpr).total

  def __enter__(self) -> 'RunLog':
    return self

  def __exit__(self, *exception) -> None:
    self._writer.close()
    self._flush_files()

  def flush(self) -> None:
    """Returns when everything that was logged is on disk."""
    self._writer.flush()
    self._flush_files()

  def print_step(
    self, step: int, values: Mapping[str, float]
  ) -> dict[str, float]:
    """Prints the progress line; returns the speed since the previous one.

    Args:
      step: the finished step.
      values: scalars by name; those with a '/' are not printed.
    """
    printed = {name: v for name, v in values.items() if '/' not in name}
    return self.progress.report(step, printed)

  def log_step(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the scalars of a training step, with the speed since the last log.

    Args:
      step: the finished step.
      values: scalars by name; those with a '/' are not in the progress line.
    """
    speeds = {
      **self.print_step(step, values),
      **self.meter.read(),
      **throughput.memory_usage(self._mesh),
    }
    if self.peak_flops and 'steps_per_second' in speeds:
      speeds['mfu'] = throughput.model_flops_utilization(
        speeds['steps_per_second'], self.step_flops, self.peak_flops
      )
    for warning in self._zero_terms.update(step, values):
      console.print_line(warning)
    metrics = {f'train/{name}': value for name, value in values.items()}
    self._metrics.write(step, metrics)
    # TensorBoard sorts tags: losses come before speeds there.
    self._writer.write_scalars(
      step,
      {**metrics, **{f'wall_clock/{n}': value for n, value in speeds.items()}},
    )
    self._speeds.write(
      step, {f'speed/{name}': value for name, value in speeds.items()}
    )

  def record_ids(
    self, batches: Iterator[batch_lib.Batch], start: int
  ) -> Iterator[batch_lib.Batch]:
    """Yields batches after writing the ids of their images.

    Args:
      batches: batches of the steps after `start`.
      start: number of finished steps.
    """
    for step, batch in enumerate(batches, start + 1):
      streams = batch if 'id' not in batch else {'': batch}
      self.ids.write(
        step,
        {
          f'{name}/ids'.lstrip('/'): [i.decode() for i in stream['id'].tolist()]
          for name, stream in streams.items()
        },
      )
      yield batch

  def log_evaluation(self, step: int, summaries: tensorboard.Summaries) -> None:
    """Logs the scalars and pictures of an evaluation."""
    known = {n: v for n, v in summaries.scalars.items() if not math.isnan(v)}
    values = '  '.join(f'{n} {v:.4g}' for n, v in known.items())
    line = f'{self.progress.name} {step}  evaluated  {values}'
    console.print_line(line.rstrip())
    if step == self._num_steps:
      for line in summaries.report:
        console.print_line(line)
    logged = dict(summaries.scalars)
    if missing := [name for name in logged if name not in known]:
      reason = f'{", ".join(missing)}: undefined, no label was counted for it'
      console.print_line(f'{self.progress.name} {step}  {reason}')
      logged['undefined'] = reason
    self._metrics.write(step, logged)
    self._writer.write_scalars(step, {**known, **summaries.curves})
    self._writer.write_images(
      step, {tag: image[None] for tag, image in summaries.images.items()}
    )

  def _flush_files(self) -> None:
    self._metrics.flush()
    self.ids.flush()
    self._speeds.flush()


class ZeroTermMonitor:
  """Warns once about each term of a loss that is always 0.

  A term is a scalar named 'loss_…'. A term that contributes to training is
  never exactly 0 for long, unless its inputs are empty: a mask without pixels,
  or a memory bank that is never filled.
  """

  def __init__(self, zero_terms_until: int):
    """Starts to count after step `zero_terms_until`."""
    self._zero_terms_until = zero_terms_until
    self._num_zeros: dict[str, int] = {}

  def update(self, step: int, values: Mapping[str, float]) -> list[str]:
    """Counts logged values; returns the warnings that are due."""
    warnings = []
    for name, value in values.items():
      if not name.startswith('loss_') or step <= self._zero_terms_until:
        continue
      num_zeros = self._num_zeros.get(name, 0) + 1 if value == 0 else 0
      self._num_zeros[name] = num_zeros
      if num_zeros == _MAX_ZEROS:
        self._num_zeros[name] = -(10**9)  # Warn only once.
        warnings.append(
          f'warning: {name} was exactly 0 in the last {_MAX_ZEROS} logs: it '
          'does not contribute to training'
        )
    return warnings
