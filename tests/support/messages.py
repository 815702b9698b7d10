"""The messages of errors that the user can correct."""

import pytest

from runtime import errors


def message_of(call, *args, **kwargs):
  """Returns the message of the UserError of a call, which must be one line."""
  with pytest.raises(errors.UserError) as caught:
    call(*args, **kwargs)
  message = str(caught.value)
  assert '\n' not in message
  return message
