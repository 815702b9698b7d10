"""The exceptions for what a user can mend."""

from typing import Any


class UserError(Exception):
  """Something the user can mend, said in one line.

  The message tells what was found, what was expected and what to do. Command
  lines print it without a traceback and exit with status 2.
  """


class MissingInput(UserError):
  """Data or weights that are expected are not there."""


class BadFile(UserError):
  """A file which cannot be used, and why.

  Attributes:
    file: a path, or a member of an archive.
    reason: what is wrong with it.
  """

  def __init__(self, file: Any, reason: str):
    super().__init__(one_line(f'{file}: {reason}'))
    self.file = file
    self.reason = reason

  def __reduce__(self):
    return BadFile, (self.file, self.reason)


def one_line(text: str) -> str:
  """The text on one line, in characters that every terminal can print."""
  printable = text.encode('utf-8', 'backslashreplace').decode('utf-8')
  return ' '.join(printable.split())
