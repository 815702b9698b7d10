"""Exceptions for errors that the user can correct."""

from typing import Any


class UserError(Exception):
  """Reports an error in the input of the user: a config, a flag, a file.

  The message is one line: what was expected, what was got, what to do. Command
  lines print it without a traceback and exit with status 2.
  """


class MissingInput(UserError):
  """Reports that data or weights that a stage needs are absent."""


class BadFile(UserError):
  """Reports a file that cannot be used.

  Attributes:
    file: path of the file, or the member of an archive.
    reason: description of the problem, without the name of the file.
  """

  def __init__(self, file: Any, reason: str):
    super().__init__(format_on_one_line(f'{file}: {reason}'))
    self.file = file
    self.reason = reason

  def __reduce__(self):
    # By default an exception is pickled with its message as the only argument.
    return BadFile, (self.file, self.reason)


def format_on_one_line(text: str) -> str:
  """Formats a text on one line, in characters that every terminal prints.

  File names may hold line breaks, and bytes that are not UTF-8 (as lone
  surrogates, which `print` refuses).
  """
  printable = text.encode('utf-8', 'backslashreplace').decode('utf-8')
  return ' '.join(printable.split())
