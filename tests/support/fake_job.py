"""A job for the launcher: tells what it was given, and ends as it is told.

`codes` of the scenario has a list for each run, with what each worker does:
a status to exit with, or 'wait' for SIGTERM, then 75; a file 'go' ends it too.
"""

import json
import os
import pathlib
import signal
import sys
import time


def main():
  cloud = pathlib.Path(os.environ['FAKE_CLOUD'])
  worker = int(
    os.environ.get('FAKE_WORKER') or os.environ.get('JAX_PROCESS_ID', '0')
  )
  mine = cloud / f'runs-{worker}.jsonl'
  number = len(mine.read_text().splitlines()) if mine.exists() else 0
  names = ('JAX_', 'MALLOC_', 'SLURM_CPUS', 'TEST_')
  told = {
    'argv': sys.argv[1:],
    'env': {k: v for k, v in os.environ.items() if k.startswith(names)},
  }
  stopped = []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
  with open(mine, 'a') as file:
    file.write(json.dumps(told) + '\n')
  runs = json.loads((cloud / 'scenario.json').read_text()).get('codes', [])
  code = runs[number][worker] if number < len(runs) else 0
  print(f'run {number} of worker {worker}: é', flush=True)
  # A moment, in which machines may be taken away.
  end = time.monotonic() + (60 if code == 'wait' else 0.05)
  while time.monotonic() < end and not stopped:
    if code == 'wait' and (cloud / 'go').exists():
      sys.exit(0)
    time.sleep(0.01)
  if stopped:
    print('saved', flush=True)
    sys.exit(75)
  sys.exit(code)


main()
