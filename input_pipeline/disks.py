"""Files that are whole or not there, and one line for a disk that is full."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from input_pipeline import errors


@contextlib.contextmanager
def telling(what: str, place: pathlib.Path | str) -> Iterator[None]:
  """Turns errors of the file system into one line for the user.

  Args:
    what: is being prepared.
    place: is told where the error has none.
  """
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      errors.one_line(
        f'{what} cannot be prepared: {error.strerror or error} '
        f'({error.filename or place}): free space or mend that and run it '
        'again, what is finished is kept'
      )
    ) from error


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write what is to be `path`: it gets that name once it is whole."""
  partial = path.with_name(f'{path.name}.{os.getpid()}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    partial.rename(path)
  finally:
    partial.unlink(missing_ok=True)
