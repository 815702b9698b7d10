"""The messages of errors that the user can correct."""

import pytest

from runtime import errors


def message_of(call, *args, **kwargs):
  """Returns the message of the UserError of a call.

  It must be one line, or a line for each of several files.
  """
  with pytest.raises(errors.UserError) as caught:
    call(*args, **kwargs)
  message = str(caught.value)
  *others, last = message.splitlines()
  assert not others or ' files cannot be used; ' in last
  return message
