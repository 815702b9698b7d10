"""A host that only meets the others: `fake_host.py INDEX COUNT PORT ENDING`.

It prints a line when all are there, and ends as asked: 'waits', 'done',
'mistake' (which a user can mend) or 'crash'.
"""

import sys
import time

from segcore import hosts, watch


def main(index: int, count: int, port: int, ending: str) -> int:
  group = hosts.Group(f'127.0.0.1:{port}', count, index)
  links = hosts.meet(group, {'jax': '1'}, timeout=60.0)
  with watch.Watch(links, patience=3.0) as watching:
    print('all are there', flush=True)
    while ending == 'waits':
      time.sleep(0.1)
    if ending == 'mistake':
      watching.fail('the moon is missing', 2, at_once=True)
    if ending == 'crash':
      watching.fail('ZeroDivisionError: by 0', 1, at_once=False)
  return 0


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:4]), sys.argv[4]))
