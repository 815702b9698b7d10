"""A lock that a process holds while it works on a folder.

with process_lock.locking(workdir / '.train.lock', f'{workdir}/train'):
  ...
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

from runtime import errors, files

# POSIX leaves open which of them says that another process has the lock.
_HELD = errno.EACCES, errno.EAGAIN


@contextlib.contextmanager
def locking(path: files.Path, what: str) -> Iterator[None]:
  """Holds a lock file, which is removed in the end.

  The lock ends with this process, also if it is killed; processes that it has
  started do not hold it. Nothing is locked in a bucket, or on a file system
  without locks.

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
    path.unlink(missing_ok=True)
    os.close(lock)


def _acquire(path: files.Path, what: str) -> int:
  """Opens and locks the file; returns its descriptor."""
  while True:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      raise files.cannot_write(path, error) from error
    try:
      fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in _HELD:
        holder = os.read(lock, 1000).decode(errors='replace')
        os.close(lock)
        raise errors.UserError(
          f'{holder or "another process"} is working on {what}: wait for it, '
          'or stop it; for another run choose another --workdir'
        ) from None
      return lock  # There are no locks here.
    if _is_same_file(lock, path):
      return lock
    os.close(lock)  # Its holder has removed it since it was opened.


def _is_same_file(descriptor: int, path: files.Path) -> bool:
  """Returns whether a path still leads to an open file."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False
