"""Locks against other processes, which are killed."""

import contextlib
import fcntl
import os
import socket
import types

import pytest
from etils import epath

from runtime import errors, process_lock
from tests.support import lock_holder


def test_a_lock_of_another_process_is_refused_until_that_is_killed(tmp_path):
  path = tmp_path / 'runs' / '.train.lock'
  with (
    lock_holder.holding(path) as process,
    pytest.raises(errors.UserError) as caught,
    process_lock.locking(path, 'runs/train'),
  ):
    pass
  assert str(caught.value) == (
    f'process {process.pid} on {socket.gethostname()} is working on '
    'runs/train: wait for it, or stop it; for another run choose another '
    '--workdir'
  )
  # The file of the killed process is left, and locks nothing.
  assert path.exists()
  with process_lock.locking(path, 'runs/train'):
    assert path.read_text().startswith(f'process {os.getpid()} ')
  assert not path.exists()


def test_a_process_left_behind_does_not_keep_the_lock(tmp_path):
  path = tmp_path / 'lock'
  with lock_holder.holding(path) as process:
    process.kill()
    process.wait()
    # Its child, which lives, has the file open.
    assert path.read_text().startswith(f'process {process.pid} ')
    with process_lock.locking(path, 'x'):
      assert path.read_text().startswith(f'process {os.getpid()} ')


@pytest.mark.parametrize('is_lost', [True, False])
def test_the_lock_of_another_host_is_waited_for(
  tmp_path, monkeypatch, capsys, is_lost
):
  path = tmp_path / 'lock'
  seconds = []
  with lock_holder.holding(path) as process:
    path.write_text('process 7 on host-3')

    def sleep(step):
      seconds.append(step)
      if is_lost and sum(seconds) == 90:
        process.kill()
        process.wait()

    clock = types.SimpleNamespace(sleep=sleep, monotonic=lambda: sum(seconds))
    monkeypatch.setattr(process_lock, 'time', clock)
    refused = pytest.raises(errors.UserError, match='process 7 on host-3 is')
    with (
      contextlib.nullcontext() if is_lost else refused,
      process_lock.locking(path, 'x'),
    ):
      pass
  assert sum(seconds) == (90 if is_lost else 120)
  assert capsys.readouterr().out == (
    'process 7 on host-3 is working on x, or has been lost: waiting 2m00s for '
    'it to end\n'
  )


def test_a_lock_file_that_its_holder_removes_is_made_again(
  tmp_path, monkeypatch
):
  path = tmp_path / 'lock'
  path.touch()
  lockf, tried = fcntl.lockf, []

  def remove_first(descriptor, flags):
    if not tried:
      path.unlink()
    tried.append(descriptor)
    lockf(descriptor, flags)

  monkeypatch.setattr(process_lock.fcntl, 'lockf', remove_first)
  with process_lock.locking(path, 'x'):
    assert path.exists()
  assert len(tried) == 2


def test_without_locks_work_goes_on(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(process_lock.errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(process_lock.fcntl, 'lockf', refuse)
  worked = []
  with process_lock.locking(tmp_path / 'lock', 'x'):
    worked.append('file system')
  with process_lock.locking(epath.Path('gs://bucket/lock'), 'x'):
    worked.append('bucket')
  assert worked == ['file system', 'bucket']
