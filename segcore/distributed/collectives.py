"""Exchanges of small values between the hosts of a run, through jax.

finished = collectives.broadcast_from_host_0(path.exists())
collectives.check_equal_on_all_hosts('the labeled images', split.version)

All hosts must call these functions, in the same order: each waits for the
others.
"""

import hashlib
import json
import socket

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from runtime import errors
from segcore.distributed import host_settings, rendezvous

# An all-gather needs arrays of one size: every host pads its bytes to this one.
_MAX_BYTES = 256


def broadcast_from_host_0(
  value: Shaped[np.ndarray, '*shape'] | bool,
) -> Shaped[np.ndarray, '*shape']:
  """Returns the value of host 0 on every host.

  Decisions that depend on files are made by host 0 alone, since on network
  disks a file may appear later on some hosts than on others.

  Args:
    value: array or bool, of the same shape and type on all hosts.
  """
  if jax.process_count() == 1:
    return np.asarray(value)
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_equal_on_all_hosts(name: str, value: str) -> None:
  """Checks that a value is the same on all hosts.

  Args:
    name: name of the value in the message, such as 'the labeled images'.
    value: text to compare; of a long text, a digest is compared and named.

  Raises:
    UserError: the value differs; the message names hosts and values.
  """
  if jax.process_count() == 1:
    return
  sent = json.dumps([socket.gethostname(), value]).encode()
  if len(sent) > _MAX_BYTES:
    # A digest has a fixed length; the host's name is cut to leave room for it.
    digest = hashlib.sha256(value.encode()).hexdigest()
    sent = json.dumps([socket.gethostname()[:64], digest]).encode()
  # Padded by spaces, which JSON ignores.
  row = np.frombuffer(sent.ljust(_MAX_BYTES), np.uint8)
  settings = {}
  for index, received in enumerate(multihost_utils.process_allgather(row)):
    host, host_value = json.loads(received.tobytes())
    settings[rendezvous.process_name(index, host)] = {name: host_value}
  problem = host_settings.describe_host_differences(settings)
  if problem:
    raise errors.UserError(problem)
