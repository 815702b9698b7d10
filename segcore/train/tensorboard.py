"""TensorBoard event files, written without TensorFlow.

  with SummaryWriter(workdir, resume_step=state_step) as writer:
    writer.write_hparams({'learning_rate': 0.01})
    writer.write_scalars(100, {'train/loss': loss})

The methods are named as in `clu.metric_writers`. Host 0 writes; the others have
a `NullWriter`.
"""

import pathlib
import re
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from absl import logging
from etils import epy
from jaxtyping import UInt8

from runtime import files

with epy.lazy_imports():
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.plugins.histogram import metadata as histogram_metadata
  from tensorboard.plugins.hparams import summary_v2 as hparams_summary
  from tensorboard.plugins.image import metadata as image_metadata
  from tensorboard.plugins.text import summary_v2 as text_summary
  from tensorboard.summary.writer import event_file_writer
  from tensorboard.util import tensor_util

# Start time in a file's name, by which TensorBoard orders files.
_START_TIME = re.compile(r'tfevents\.(\d+)')
_MAX_WAIT_SECONDS = 10.0


class Summaries(NamedTuple):
  """Scalars and pictures of a state, to be written at its step.

  Attributes:
    scalars: numbers by tag: 'val/miou'.
    images: pictures, uint8 [H, W, 3], by tag.
    curves: numbers by tag that are written to TensorBoard alone.
    report: lines to be printed after the last step.
  """

  scalars: Mapping[str, float]
  images: Mapping[str, np.ndarray] = {}
  curves: Mapping[str, float] = {}
  report: Sequence[str] = ()


class SummaryWriter:
  """Writes one run's events into a folder, from one process."""

  def __init__(self, logdir: str | files.Path, resume_step: int | None = None):
    """Opens a new event file.

    Args:
      logdir: folder of the run, created if missing. In a bucket, each `flush`
        uploads the whole file.
      resume_step: step that a restarted run resumes from, 0 if it starts over;
        None for the first run in the folder. TensorBoard drops points of later
        steps (with 0: all points) in earlier files of the folder, since they
        will be written again. Points of that step are kept: flush before saving
        a checkpoint.

    Raises:
      ValueError: `resume_step` is negative.
    """
    if resume_step is not None and resume_step < 0:
      raise ValueError(f'resume_step: expected >= 0, got {resume_step}')
    logdir = pathlib.Path(logdir) if isinstance(logdir, str) else logdir
    if resume_step is not None:
      _wait_for_later_name(logdir)
    # A bucket gets copies of a local file.
    self._logdir, self._local, self._copied_size = logdir, None, 0
    if not files.is_local_path(logdir):
      self._local = tempfile.TemporaryDirectory(prefix='tensorboard-')
      logdir.mkdir(parents=True, exist_ok=True)
    # The name has second, host, process and a count. Containers on a shared
    # file system may share host and process, so a random suffix is added.
    self._file = event_file_writer.EventFileWriter(
      self._local.name if self._local else str(logdir),
      filename_suffix=f'.{uuid.uuid4().hex[:8]}',
    )
    if resume_step is not None:
      # A START record drops points of steps >= its own. There are two, since
      # TensorBoard ignores the first one in a folder.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      first = resume_step + 1 if resume_step else 0
      for _ in range(2):
        self._add(first, session_log=start)
      self.flush()

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes numbers, or arrays of one element, as float32.

    Raises:
      ValueError: an array has several elements.
    """
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
    """Writes batches of RGB pictures as PNG; a tag shows all N of its batch.

    Raises:
      ValueError: a batch is not uint8 [N, H, W, 3].
    """
    self._add_values(
      step, [_image_value(tag, batch) for tag, batch in images.items()]
    )

  def write_histograms(
    self, step: int, arrays: Mapping[str, Any], num_buckets: int = 30
  ) -> None:
    """Writes histograms of arrays of any shape, ignoring NaN and infinity."""
    self._add_values(
      step,
      [_histogram_value(tag, a, num_buckets) for tag, a in arrays.items()],
    )

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts, which TensorBoard renders as Markdown."""
    for tag, text in texts.items():
      self._add(step, summary=text_summary.text_pb(tag, text))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the run's row of the HPARAMS tab.

    Keys of nested dicts are joined by dots; values that are neither number,
    bool nor str are written as their repr. Runs of equal values share a row.
    """
    flat = dict(_flat_hparams(hparams))
    self._add(0, summary=hparams_summary.hparams_pb(flat))

  def flush(self) -> None:
    """Returns when everything written so far is in the file of the folder."""
    self._file.flush()
    self._copy()

  def close(self) -> None:
    """Flushes and closes the file; may be called twice."""
    self._file.close()
    self._copy()
    if self._local:
      self._local.cleanup()
      self._local = None

  def _copy(self) -> None:
    """Copies a local file to the bucket, if it has grown."""
    if not self._local:
      return
    for path in pathlib.Path(self._local.name).iterdir():
      data = path.read_bytes()
      if len(data) > self._copied_size:
        files.write_atomically(self._logdir / path.name, data)
        self._copied_size = len(data)

  def __enter__(self) -> 'SummaryWriter':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _add_values(
    self, step: int, values: 'list[summary_pb2.Summary.Value]'
  ) -> None:
    if values:
      self._add(step, summary=summary_pb2.Summary(value=values))

  def _add(self, step: int, **content: Any) -> None:
    self._file.add_event(
      event_pb2.Event(wall_time=time.time(), step=int(step), **content)
    )


class NullWriter:
  """A SummaryWriter of hosts other than 0, which discards everything."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Discards scalars, which host 0 writes."""

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    """Discards images, which host 0 writes."""

  def write_histograms(
    self, step: int, arrays: Mapping[str, Any], num_buckets: int = 30
  ) -> None:
    """Discards histograms, which host 0 writes."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Discards texts, which host 0 writes."""

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Discards hparams, which host 0 writes."""

  def flush(self) -> None:
    """Returns at once, with nothing to flush."""

  def close(self) -> None:
    """Returns at once, with nothing to close."""

  def __enter__(self) -> 'NullWriter':
    return self

  def __exit__(self, *_) -> None:
    pass


def open_training_tensorboard(
  logdir: files.Path, step: int = 0
) -> SummaryWriter | NullWriter:
  """Opens the writer of this host; only host 0 writes.

  Args:
    logdir: folder of the run.
    step: step that a restarted run resumes from.
  """
  if jax.process_index() != 0:
    return NullWriter()
  return SummaryWriter(logdir, resume_step=step if logdir.exists() else None)


def _wait_for_later_name(logdir: files.Path) -> None:
  """Waits until the name of a new file sorts last, usually a second at most.

  TensorBoard reads the files of a folder in the order of their names. If the
  file of a restarted run came before that of the killed run, TensorBoard would
  not drop any points.
  """
  if not logdir.exists():
    return
  names = [path.name for path in logdir.iterdir()]
  matches = [match for name in names if (match := _START_TIME.search(name))]
  if not matches:
    return
  seconds = max(int(match[1]) for match in matches) + 1 - time.time()
  if seconds > _MAX_WAIT_SECONDS:
    logging.warning(
      '%s has an event file that is %d s ahead of the clock of this machine: '
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
      f'scalar {tag!r}: expected one number, got shape {array.shape}'
    )
  return float(array.reshape(()))


def _image_value(tag: str, images: Any) -> 'summary_pb2.Summary.Value':
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'images {tag!r}: expected uint8 (N, H, W, 3), got {images.dtype} '
      f'{images.shape}'
    )
  _, height, width, _ = images.shape
  # Format of the plugin: width, height, then the encoded pictures.
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
) -> 'summary_pb2.Summary.Value':
  values = np.asarray(array).astype(np.float64).ravel()
  values = values[np.isfinite(values)]
  if values.size:
    counts, edges = np.histogram(values, num_buckets)
  else:
    counts, edges = np.zeros(num_buckets), np.zeros(num_buckets + 1)
  # Format of the plugin: a row (left edge, right edge, count) per bucket.
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
      continue  # TensorBoard would show an empty filter.
    elif isinstance(value, bool | int | float | str | np.generic):
      yield name, value
    else:
      yield name, repr(value)
