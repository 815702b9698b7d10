"""Exceptions for errors that the user can correct, and their messages."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Lines of a message about several problems.
MAX_LINES = 12


class UserError(Exception):
  """Reports an error in the input of the user: a config, a flag, a file.

  The message is what was expected, what was got, what to do; several problems
  are a line each. Command lines print it without a traceback and exit with
  status 2.
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


@contextlib.contextmanager
def naming_file(file: Any) -> Iterator[None]:
  """Turns errors of reading a file into a BadFile, which names the file."""
  try:
    yield
  except UserError as error:
    raise BadFile(file, str(error)) from error
  except OSError as error:
    reason = f'cannot be read: {error.strerror or error}'
    raise BadFile(file, reason) from error


def print_user_error(error: UserError | str) -> None:
  """Prints an error, or its message, to stderr after 'error: '."""
  print(f'error: {error}', file=sys.stderr, flush=True)


def format_problem_lines(
  problems: Sequence[str], max_lines: int = MAX_LINES
) -> str:
  """Joins problems as the lines of a message, with the number of those left.

  >>> format_problem_lines(['a: empty', 'b: empty', 'c: empty'], 2).splitlines()
  ['a: empty', '… and 2 more']

  Args:
    problems: a message each.
    max_lines: largest number of lines of the result.
  """
  lines = [format_on_one_line(problem) for problem in problems]
  if len(lines) > max_lines:
    kept = max_lines - 1
    lines[kept:] = [f'… and {len(lines) - kept:,} more']
  return '\n'.join(lines)


def format_count(count: int, singular: str, plural: str) -> str:
  """Formats a number before a noun, or words, that agree with it.

  >>> format_count(1, 'file is', 'files are')
  '1 file is'
  >>> format_count(1234, 'file is', 'files are')
  '1,234 files are'
  """
  return f'{count:,} {singular if count == 1 else plural}'


def format_on_one_line(text: str) -> str:
  """Formats a text on one line, in characters that every terminal prints.

  File names may hold line breaks, and bytes that are not UTF-8 (as lone
  surrogates, which `print` refuses).
  """
  printable = text.encode('utf-8', 'backslashreplace').decode('utf-8')
  return ' '.join(printable.split())
