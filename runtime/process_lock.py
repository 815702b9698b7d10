"""A lock that a process holds while it works on a folder.

with process_lock.locking(workdir / '.train.lock', f'{workdir}/train'):
  ...
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from runtime import console, errors, files

# POSIX leaves open which of them says that another process has the lock.
_HELD = errno.EACCES, errno.EAGAIN
# Seconds: servers of NFS keep the locks of a lost machine for 90 by default.
_WAIT_FOR_HOST = 120
_WAIT_STEP = 5


@contextlib.contextmanager
def locking(path: files.Path, what: str) -> Iterator[None]:
  """Holds a lock file, which is removed in the end.

  The lock ends with this process, also if it is killed; processes that it has
  started do not hold it. That of a lost machine may last for a while on a
  network file system, so locks of other hosts are waited for. Nothing is locked
  in a bucket, or on a file system without locks.

  Args:
    path: lock file; its missing folder is created.
    what: what the caller works on, for the message.

  Raises:
    UserError: another process holds the lock, or the file cannot be made.
  """
  if not files.is_local_path(path):
    yield
    return
  lock = _acquire(path, what)
  try:
    with contextlib.suppress(OSError):  # A full disk.
      holder = f'process {os.getpid()} on {socket.gethostname()}'
      os.ftruncate(lock, 0)
      os.write(lock, holder.encode())
    yield
  finally:
    with contextlib.suppress(OSError):
      if _is_same_file(lock, path):
        path.unlink()
    os.close(lock)


def _acquire(path: files.Path, what: str) -> int:
  """Opens and locks the file; returns its descriptor."""
  waits_until = None
  while True:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      raise files.cannot_write(path, error) from error
    try:
      fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in _HELD:
        return lock  # There are no locks here.
      holder = os.read(lock, 1000).decode(errors='replace')
      os.close(lock)
      if waits_until is None:
        waits_until = time.monotonic() + _waiting_time(holder, what)
      if time.monotonic() >= waits_until:
        raise errors.UserError(
          f'{holder or "another process"} is working on {what}: wait for it, '
          'or stop it; for another run choose another --workdir'
        ) from None
      time.sleep(_WAIT_STEP)
      continue
    if _is_same_file(lock, path):
      return lock
    os.close(lock)  # Its holder has removed it since it was opened.


def _waiting_time(holder: str, what: str) -> int:
  """Returns the seconds to wait for a holder, and says so if there are any."""
  host = holder.rpartition(' on ')[2]
  if host in ('', socket.gethostname()):
    return 0
  console.print_line(
    f'{holder} is working on {what}, or has been lost: waiting '
    f'{console.format_duration(_WAIT_FOR_HOST)} for it to end'
  )
  return _WAIT_FOR_HOST


def _is_same_file(descriptor: int, path: files.Path) -> bool:
  """Returns whether a path still leads to an open file."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False
