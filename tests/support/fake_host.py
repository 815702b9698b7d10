"""A host that only meets others: `fake_host.py INDEX COUNT PORT ENDING STALL`.

It prints a line when all are there, and ends as asked: 'waits', 'done',
'mistake' (which a user can mend) or 'crash'; 'works', until SIGUSR1 or for a
while, and 'stalls' wait, too, but show signs of life.
"""

import signal
import sys
import time

from runtime import progress
from segcore.distributed import heartbeat, rendezvous

# Steps of those that work, 20 a second.
STEPS = {'works': 10**6, 'works for a while': 8, 'stalls': 1}


def main(index: int, count: int, port: int, ending: str, stall: float) -> int:
  group = rendezvous.ProcessGroup(f'127.0.0.1:{port}', count, index)
  links = rendezvous.connect(group, {'jax': '1'}, timeout=60.0)
  with heartbeat.HeartbeatMonitor(links, 3.0, stall) as watching:
    print('all are there', flush=True)
    stopped = []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
    for step in range(STEPS.get(ending, 0)):
      progress.record_activity(f'step {step + 1}')
      time.sleep(0.05)
      if stopped:
        break
    while ending == 'waits' or ending in STEPS:
      time.sleep(0.1)
    if ending == 'mistake':
      watching.abort('the moon is missing', 2, immediately=True)
    if ending == 'crash':
      watching.abort('ZeroDivisionError: by 0', 1, immediately=False)
  return 0


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:4]), sys.argv[4], float(sys.argv[5])))
