"""TensorBoard event files, written without TensorFlow.

  with SummaryWriter(workdir, resume_step=state_step) as writer:
    writer.write_hparams({'learning_rate': 0.01})
    writer.write_scalars(100, {'train/loss': loss})

The methods are named as in `clu.metric_writers`. One host writes; the others
hold a `NullWriter`.
"""

import pathlib
import re
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer import event_file_writer
from tensorboard.util import tensor_util

from runtime import files

# The part of a file's name that TensorBoard orders a folder's files by.
_STARTED = re.compile(r'tfevents\.(\d+)')
_MAX_WAIT_SECONDS = 10.0


class Summaries(NamedTuple):
  """What is found out about a state, to be written at its step.

  Attributes:
    scalars: by tag: 'val/miou'.
    images: pictures, uint8 [H, W, 3], by tag.
  """

  scalars: Mapping[str, float]
  images: Mapping[str, np.ndarray] = {}


class SummaryWriter:
  """Writes one run's events into a folder, from one process."""

  def __init__(self, logdir: str | files.Path, resume_step: int | None = None):
    """Opens a new event file.

    Args:
      logdir: Folder of the run; made if missing. In a bucket the file is copied
        there, as a whole, by each `flush`.
      resume_step: Number of training steps that a restarted run goes on from,
        0 if it has to begin anew; None where nothing ran before. TensorBoard
        then drops what earlier files of the folder hold for later steps (from
        0: for all), since those will be written again. What they hold for that
        very step stays: flush before saving a checkpoint.
    """
    if resume_step is not None and resume_step < 0:
      raise ValueError(f'resume_step is {resume_step}; allowed: 0 or more')
    logdir = pathlib.Path(logdir) if isinstance(logdir, str) else logdir
    if resume_step is not None:
      _wait_for_later_name(logdir)
    self._logdir, self._local, self._copied = logdir, None, 0
    if not files.is_local(logdir):
      self._local = tempfile.TemporaryDirectory(prefix='tensorboard-')
      logdir.mkdir(parents=True, exist_ok=True)
    # The name holds second, host, process and a count; in containers on a
    # shared file system host and process may be equal too.
    self._file = event_file_writer.EventFileWriter(
      self._local.name if self._local else str(logdir),
      filename_suffix=f'.{uuid.uuid4().hex[:8]}',
    )
    if resume_step is not None:
      # TensorBoard drops steps >= the record's own. Twice, since it takes the
      # first record of a folder for the start of the run, and drops nothing.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      first = resume_step + 1 if resume_step else 0
      for _ in range(2):
        self._add(first, session_log=start)
      self.flush()

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes numbers, or arrays of one element; stored in float32."""
    self._add_values(
      step,
      [
        summary_pb2.Summary.Value(tag=tag, simple_value=_number(tag, scalar))
        for tag, scalar in scalars.items()
      ],
    )

  def write_images(
    self, step: int, images: Mapping[str, UInt8[np.ndarray, 'N H W 3']]
  ) -> None:
    """Writes batches of RGB pictures, without loss; one tag shows all N."""
    self._add_values(
      step, [_image_value(tag, batch) for tag, batch in images.items()]
    )

  def write_histograms(
    self, step: int, arrays: Mapping[str, Any], num_buckets: int = 30
  ) -> None:
    """Writes histograms of arrays of any shape, without NaN and infinity."""
    self._add_values(
      step,
      [_histogram_value(tag, a, num_buckets) for tag, a in arrays.items()],
    )

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts; TensorBoard renders Markdown."""
    for tag, text in texts.items():
      self._add(step, summary=text_summary.text_pb(tag, text))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the run's row of the HPARAMS tab.

    Nested dicts are flattened with dots; what is neither number, bool nor str
    is written as its repr. Runs of equal values share a row.
    """
    flat = dict(_flat_hparams(hparams))
    self._add(0, summary=hparams_summary.hparams_pb(flat))

  def flush(self) -> None:
    """Returns when everything written so far is in the file."""
    self._file.flush()
    self._copy()

  def close(self) -> None:
    """Flushes and closes; may be called twice."""
    self._file.close()
    self._copy()
    if self._local:
      self._local.cleanup()
      self._local = None

  def _copy(self) -> None:
    """Puts the file where it belongs, if it is not written there."""
    if not self._local:
      return
    for path in pathlib.Path(self._local.name).iterdir():
      data = path.read_bytes()
      if len(data) > self._copied:
        files.write(self._logdir / path.name, data)
        self._copied = len(data)

  def __enter__(self) -> 'SummaryWriter':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _add_values(
    self, step: int, values: list[summary_pb2.Summary.Value]
  ) -> None:
    if values:
      self._add(step, summary=summary_pb2.Summary(value=values))

  def _add(self, step: int, **content: Any) -> None:
    self._file.add_event(
      event_pb2.Event(wall_time=time.time(), step=int(step), **content)
    )


class NullWriter:
  """A SummaryWriter that writes nothing, for hosts other than 0."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Does nothing."""

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    """Does nothing."""

  def write_histograms(
    self, step: int, arrays: Mapping[str, Any], num_buckets: int = 30
  ) -> None:
    """Does nothing."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Does nothing."""

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""

  def __enter__(self) -> 'NullWriter':
    return self

  def __exit__(self, *_) -> None:
    pass


def open_writer(
  logdir: files.Path, step: int = 0
) -> SummaryWriter | NullWriter:
  """The writer of this host: host 0 writes, the others do not.

  Args:
    logdir: folder of the run.
    step: what a restarted run goes on from.
  """
  if jax.process_index() != 0:
    return NullWriter()
  return SummaryWriter(logdir, resume_step=step if logdir.exists() else None)


def _wait_for_later_name(logdir: files.Path) -> None:
  """Waits, a second at most as a rule, until a new file would be the last.

  TensorBoard reads a folder's files in the order of their names. If the
  restart's file came before the killed run's, it would drop nothing.
  """
  if not logdir.exists():
    return
  names = [path.name for path in logdir.iterdir()]
  matches = [match for name in names if (match := _STARTED.search(name))]
  if not matches:
    return
  seconds = max(int(match[1]) for match in matches) + 1 - time.time()
  if seconds > _MAX_WAIT_SECONDS:
    logging.warning(
      '%s holds an event file from %d s ahead of the clock of this machine; '
      'TensorBoard may show points twice',
      logdir,
      seconds,
    )
  elif seconds > 0:
    time.sleep(seconds)


def _number(tag: str, value: Any) -> float:
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(
      f'scalar {tag!r} has shape {array.shape}; allowed: one number'
    )
  return float(array.reshape(()))


def _image_value(tag: str, images: Any) -> summary_pb2.Summary.Value:
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'images {tag!r} are {images.dtype} {images.shape}; allowed: uint8 '
      '(N, H, W, 3)'
    )
  _, height, width, _ = images.shape
  # The plugin's layout: width, height, then one encoded picture after another.
  strings = [str(width).encode(), str(height).encode()]
  strings += [
    cv2.imencode('.png', image[..., ::-1])[1].tobytes() for image in images
  ]
  return summary_pb2.Summary.Value(
    tag=tag,
    metadata=image_metadata.create_summary_metadata(
      display_name=None, description=None
    ),
    tensor=tensor_util.make_tensor_proto(strings, dtype=np.object_),
  )


def _histogram_value(
  tag: str, array: Any, num_buckets: int
) -> summary_pb2.Summary.Value:
  values = np.asarray(array).astype(np.float64).ravel()
  values = values[np.isfinite(values)]
  if values.size:
    counts, edges = np.histogram(values, num_buckets)
  else:
    counts, edges = np.zeros(num_buckets), np.zeros(num_buckets + 1)
  # The plugin's layout: a row (left edge, right edge, count) a bucket.
  buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
  return summary_pb2.Summary.Value(
    tag=tag,
    metadata=histogram_metadata.create_summary_metadata(
      display_name=None, description=None
    ),
    tensor=tensor_util.make_tensor_proto(buckets, dtype=np.float64),
  )


def _flat_hparams(hparams: Mapping[str, Any], prefix: str = ''):
  for key, value in hparams.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping):
      yield from _flat_hparams(value, f'{name}.')
    elif value == '':
      continue  # Not set; TensorBoard would show an empty filter.
    elif isinstance(value, bool | int | float | str | np.generic):
      yield name, value
    else:
      yield name, repr(value)
