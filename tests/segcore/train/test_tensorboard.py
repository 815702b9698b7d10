import os
import socket
import subprocess
import sys

import cv2
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from tensorboard.backend.event_processing import (
  event_accumulator,
  event_file_loader,
  plugin_event_accumulator,
)
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.summary.writer import event_file_writer

from segcore.train import tensorboard


def read(logdir):
  accumulator = event_accumulator.EventAccumulator(
    str(logdir),
    size_guidance={'scalars': 0, 'tensors': 0, 'images': 0, 'histograms': 0},
  )
  return accumulator.Reload()


def points(logdir, tag):
  return [(event.step, event.value) for event in read(logdir).Scalars(tag)]


def tensor_strings(logdir, tag):
  (event,) = read(logdir).Tensors(tag)
  return event.step, list(event.tensor_proto.string_val)


def test_scalars_are_read_back_equal(tmp_path):
  with tensorboard.SummaryWriter(tmp_path / 'new' / 'folder') as writer:
    writer.write_scalars(1, {'loss': 0.5, 'rate': np.float32(0.1)})
    writer.write_scalars(3, {'loss': jnp.array([0.25]), 'count': 7})
    writer.write_scalars(4, {'loss': float('nan')})
    writer.write_scalars(5, {})
  logdir = tmp_path / 'new' / 'folder'
  losses = points(logdir, 'loss')
  assert losses[:2] == [(1, 0.5), (3, 0.25)]
  assert losses[2][0] == 4 and np.isnan(losses[2][1])
  assert points(logdir, 'rate') == [(1, np.float32(0.1))]
  assert points(logdir, 'count') == [(3, 7.0)]


def test_a_scalar_of_several_numbers_is_refused(tmp_path):
  writer = tensorboard.SummaryWriter(tmp_path)
  with writer, pytest.raises(ValueError) as error:
    writer.write_scalars(1, {'iou': np.zeros(3)})
  assert str(error.value) == (
    "scalar 'iou': expected one number, got shape (3,)"
  )


def test_flush_writes_everything_to_the_file(tmp_path):
  writer = tensorboard.SummaryWriter(tmp_path)
  for step in range(50):
    writer.write_scalars(step, {'loss': step})
  writer.flush()
  assert points(tmp_path, 'loss') == [(i, i) for i in range(50)]
  writer.close()
  writer.close()


def test_restart_drops_later_points_of_the_killed_run(tmp_path):
  with tensorboard.SummaryWriter(tmp_path) as killed:
    for step in (0, 10, 20, 30, 40):
      killed.write_scalars(step, {'loss': step, 'late': step})
  # The checkpoint is of step 20, whose point was written before it.
  with tensorboard.SummaryWriter(tmp_path, resume_step=20) as writer:
    assert points(tmp_path, 'loss') == [(0, 0), (10, 10), (20, 20)]
    for step in (30, 40, 50):
      writer.write_scalars(step, {'loss': -step})
  assert points(tmp_path, 'loss') == [
    (0, 0),
    (10, 10),
    (20, 20),
    (30, -30),
    (40, -40),
    (50, -50),
  ]
  # Also of a tag that the restarted run does not write.
  assert points(tmp_path, 'late') == [(0, 0), (10, 10), (20, 20)]


def test_two_restarts_as_read_by_dashboards(tmp_path):
  # The reader of dashboards ignores the first START of a folder, and converts
  # scalars to tensors; the reader above never drops tensors.
  with tensorboard.SummaryWriter(tmp_path) as killed:
    for step in (10, 20, 30):
      killed.write_scalars(step, {'loss': step})
      killed.write_texts(step, {'note': 'first'})
  for resume_step, name in ((10, 'second'), (20, 'third')):
    with tensorboard.SummaryWriter(tmp_path, resume_step=resume_step) as writer:
      for step in (resume_step + 10, resume_step + 20):
        writer.write_scalars(step, {'loss': -step})
        writer.write_texts(step, {'note': name})
  accumulator = plugin_event_accumulator.EventAccumulator(str(tmp_path))
  accumulator.Reload()
  assert [
    (event.step, event.tensor_proto.float_val[0])
    for event in accumulator.Tensors('loss')
  ] == [(10, 10), (20, -20), (30, -30), (40, -40)]
  assert [
    (event.step, event.tensor_proto.string_val[0])
    for event in accumulator.Tensors('note')
  ] == [(10, b'first'), (20, b'second'), (30, b'third'), (40, b'third')]


def test_restart_from_step_0_drops_everything(tmp_path):
  with tensorboard.SummaryWriter(tmp_path) as killed:
    for step in (0, 10):
      killed.write_scalars(step, {'loss': step})
  with tensorboard.SummaryWriter(tmp_path, resume_step=0) as writer:
    writer.write_scalars(0, {'loss': 7})
  assert points(tmp_path, 'loss') == [(0, 7)]


def test_negative_resume_step_is_refused(tmp_path):
  with pytest.raises(ValueError, match='resume_step: expected >= 0, got -1'):
    tensorboard.SummaryWriter(tmp_path, resume_step=-1)


def test_clock_far_behind_is_reported(tmp_path, caplog):
  (tmp_path / 'events.out.tfevents.9999999999.host.1.0').touch()
  # Independent of the verbosity of absl that another test has set.
  with caplog.at_level('WARNING', logger='absl'):
    tensorboard.SummaryWriter(tmp_path, resume_step=5).close()
  assert 'ahead of the clock of this machine' in caplog.text


def test_writers_within_a_second_have_different_files(tmp_path):
  writers = [tensorboard.SummaryWriter(tmp_path) for _ in range(4)]
  for value, writer in enumerate(writers):
    writer.write_scalars(value, {'loss': value})
    writer.close()
  assert len(list(tmp_path.iterdir())) == 4
  assert sorted(points(tmp_path, 'loss')) == [(i, i) for i in range(4)]


def test_names_differ_for_equal_host_and_process(tmp_path, monkeypatch):
  """Simulates two containers with equal host name and process id."""
  monkeypatch.setattr(socket, 'gethostname', lambda: 'trainer')
  monkeypatch.setattr(os, 'getpid', lambda: 1)
  for _ in range(2):
    monkeypatch.setattr(
      event_file_writer, '_global_uid', event_file_writer.AtomicCounter(0)
    )
    tensorboard.SummaryWriter(tmp_path).close()
  assert len(list(tmp_path.iterdir())) == 2


def test_images_are_read_back_equal(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
  with tensorboard.SummaryWriter(tmp_path) as writer:
    writer.write_images(9, {'input': images, 'none': images[:0]})
  step, (width, height, *encoded) = tensor_strings(tmp_path, 'input')
  assert (step, width, height) == (9, b'7', b'5')
  decoded = [
    cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for png in encoded
  ]
  np.testing.assert_array_equal(decoded, images)
  assert tensor_strings(tmp_path, 'none') == (9, [b'7', b'5'])
  metadata = read(tmp_path).SummaryMetadata('input')
  assert metadata.plugin_data.plugin_name == 'images'


def test_images_of_other_types_or_shapes_are_refused(tmp_path):
  # Without jaxtyping's checks, as in production, the writer's own checks run.
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    with tensorboard.SummaryWriter(tmp_path) as writer:
      for images in (jnp.zeros((1, 2, 2, 3)), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(ValueError) as error:
          writer.write_images(1, {'input': images})
        assert str(error.value) == (
          "images 'input': expected uint8 (N, H, W, 3), got "
          f'{images.dtype} {images.shape}'
        )
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


def test_histogram_equals_counts_by_hand(tmp_path):
  array = np.array([[0.0, 1.0, 1.5], [4.0, np.nan, np.inf]])
  with tensorboard.SummaryWriter(tmp_path) as writer:
    writer.write_histograms(2, {'weights': array}, num_buckets=4)
    writer.write_histograms(2, {'empty': np.zeros(0)}, num_buckets=2)
  buckets = {}
  for tag in ('weights', 'empty'):
    (event,) = read(tmp_path).Tensors(tag)
    buckets[tag] = np.frombuffer(
      event.tensor_proto.tensor_content, np.float64
    ).reshape(-1, 3)
  np.testing.assert_array_equal(
    buckets['weights'], [[0, 1, 1], [1, 2, 2], [2, 3, 0], [3, 4, 1]]
  )
  np.testing.assert_array_equal(buckets['empty'], np.zeros((2, 3)))
  metadata = read(tmp_path).SummaryMetadata('weights')
  assert metadata.plugin_data.plugin_name == 'histograms'


def test_texts_are_read_back_equal(tmp_path):
  with tensorboard.SummaryWriter(tmp_path) as writer:
    writer.write_texts(4, {'report': '| a |\nσ = 0.22'})
  step, (text,) = tensor_strings(tmp_path, 'report')
  assert (step, text.decode()) == (4, '| a |\nσ = 0.22')
  metadata = read(tmp_path).SummaryMetadata('report')
  assert metadata.plugin_data.plugin_name == 'text'


def test_hparams_are_read_by_the_plugin(tmp_path):
  with tensorboard.SummaryWriter(tmp_path) as writer:
    writer.write_hparams(
      {
        'optimizer': {'learning_rate': 0.5, 'name': 'sgd'},
        'steps': np.int64(10),
        'flip': True,
        'crop': (512, 512),
        'teacher': None,
      }
    )
  tag = hparams_metadata.SESSION_START_INFO_TAG
  metadata = read(tmp_path).SummaryMetadata(tag)
  assert metadata.plugin_data.plugin_name == 'hparams'
  info = hparams_metadata.parse_session_start_info_plugin_data(
    metadata.plugin_data.content
  )
  hparams = {
    name: getattr(value, value.WhichOneof('kind'))
    for name, value in info.hparams.items()
  }
  assert hparams == {
    'optimizer.learning_rate': 0.5,
    'optimizer.name': 'sgd',
    'steps': 10.0,
    'flip': True,
    'crop': '(512, 512)',
    'teacher': 'None',
  }
  assert info.start_time_secs > 1e9


def test_file_starts_with_the_format_version(tmp_path):
  tensorboard.SummaryWriter(tmp_path, resume_step=7).close()
  (path,) = tmp_path.iterdir()
  first, *starts = event_file_loader.EventFileLoader(str(path)).Load()
  assert first.file_version == 'brain.Event:2'
  assert len(starts) == 2
  for start in starts:
    assert start.session_log.status == start.session_log.START
    assert start.step == 8


def test_null_writer_has_every_method_and_writes_nothing(tmp_path):
  public = {name for name in vars(tensorboard.SummaryWriter) if name[0] != '_'}
  assert public <= set(vars(tensorboard.NullWriter))
  with tensorboard.NullWriter() as writer:
    writer.write_scalars(1, {'loss': 1.0})
    writer.write_images(1, {'input': np.zeros((1, 2, 2, 3), np.uint8)})
    writer.write_histograms(1, {'weights': np.zeros(3)})
    writer.write_texts(1, {'report': 'text'})
    writer.write_hparams({'steps': 1})
    writer.flush()
  assert list(tmp_path.iterdir()) == []


def test_tensorflow_is_not_imported(tmp_path):
  program = (
    'import sys; from segcore.train import tensorboard; '
    f'tensorboard.SummaryWriter({str(tmp_path)!r}).close(); '
    'print([m for m in sys.modules if m.split(".")[0] in '
    '("tensorflow", "clu", "tensorboardX")])'
  )
  process = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert process.stdout.strip() == '[]'
