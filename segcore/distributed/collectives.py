"""Exchanges of small values between the hosts of a run, through jax.

finished = collectives.broadcast_from_host_0(path.exists())
collectives.check_equal_on_all_hosts('the labeled images', split.version)
"""

import hashlib
import json
import socket

import jax
import numpy as np
from jax.experimental import multihost_utils

from runtime import errors
from segcore.distributed import host_settings, rendezvous

# What `check_equal_on_all_hosts` exchanges of each host.
_AGREE_BYTES = 256


def broadcast_from_host_0(value: np.ndarray | bool) -> np.ndarray:
  """What host 0 has, on every host; all must ask."""
  if jax.process_count() == 1:
    return np.asarray(value)
  found = multihost_utils.broadcast_one_to_all(np.asarray(value))
  return np.asarray(found)


def check_equal_on_all_hosts(name: str, value: str) -> None:
  """Returns if the value is the same on all hosts; all of them have to ask.

  Args:
    name: what it is: 'the labeled images'.
    value: short.

  Raises:
    UserError: it differs.
  """
  if jax.process_count() == 1:
    return
  told = json.dumps([socket.gethostname(), value]).encode()
  if len(told) > _AGREE_BYTES:
    digest = hashlib.sha256(value.encode()).hexdigest()
    told = json.dumps([socket.gethostname()[:64], digest]).encode()
  row = np.frombuffer(told.ljust(_AGREE_BYTES), np.uint8)
  rows = multihost_utils.process_allgather(row)
  found = {}
  for index, row in enumerate(rows):
    host, theirs = json.loads(row.tobytes())
    found[rendezvous.process_name(index, host)] = {name: theirs}
  text = host_settings.describe_differences(found)
  if text:
    raise errors.UserError(text)
