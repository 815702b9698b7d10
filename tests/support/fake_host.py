"""A host without devices that only connects: for tests of `heartbeat`.

  fake_host.py INDEX COUNT PORT BEHAVIOR STALL_TIMEOUT

It prints 'connected' once all hosts are, and then behaves as asked: 'done',
'user error' and 'crash' end it. 'waits' waits until it is ended, without
activity; 'works' until it gets SIGUSR1, 'works for a while' for 8 steps and
'stalls' for one step record activities, and then wait likewise.
"""

import signal
import sys
import time

from runtime import progress
from segcore.distributed import heartbeat, rendezvous

# Steps of those that work, 20 a second.
STEPS = {'works': 10**6, 'works for a while': 8, 'stalls': 1}


def main(
  index: int, count: int, port: int, behavior: str, stall_timeout: float
) -> int:
  group = rendezvous.ProcessGroup(f'127.0.0.1:{port}', count, index)
  connections = rendezvous.connect_processes(group, {'jax': '1'}, timeout=60.0)
  with heartbeat.HeartbeatMonitor(connections, 3.0, stall_timeout) as monitor:
    print('connected', flush=True)
    signals = []
    signal.signal(signal.SIGUSR1, lambda *_: signals.append(1))
    for step in range(STEPS.get(behavior, 0)):
      progress.record_activity(f'step {step + 1}')
      time.sleep(0.05)
      if signals:
        break
    while behavior == 'waits' or behavior in STEPS:
      time.sleep(0.1)
    if behavior == 'user error':
      monitor.abort('the data is missing', 2, immediately=True)
    if behavior == 'crash':
      monitor.abort('ZeroDivisionError: by 0', 1, immediately=False)
  return 0


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:4]), sys.argv[4], float(sys.argv[5])))
