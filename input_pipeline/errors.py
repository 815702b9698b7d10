"""The one exception for what a user can mend."""


class UserError(Exception):
  """Something the user can mend, said in one line.

  The message tells what was found, what was expected and what to do. Command
  lines print it without a traceback and exit with status 2.
  """
