"""A job for the launcher: records what it was given, and ends as planned.

`codes` of the scenario has a list for each run, with an entry for each worker:
an exit status, or 'wait': until SIGTERM, then 75, or until a file `go` exists,
then 0.
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
  path = cloud / f'runs-{worker}.jsonl'
  number = len(path.read_text().splitlines()) if path.exists() else 0
  prefixes = ('JAX_', 'MALLOC_', 'SLURM_CPUS', 'TEST_')
  run = {
    'argv': sys.argv[1:],
    'env': {k: v for k, v in os.environ.items() if k.startswith(prefixes)},
  }
  requests = []
  signal.signal(signal.SIGTERM, lambda *_: requests.append(1))
  with open(path, 'a') as file:
    file.write(json.dumps(run) + '\n')
  codes = json.loads((cloud / 'scenario.json').read_text()).get('codes', [])
  code = codes[number][worker] if number < len(codes) else 0
  print(f'run {number} of worker {worker}: é', flush=True)
  # A moment in which machines may be taken away.
  end = time.monotonic() + (60 if code == 'wait' else 0.05)
  while time.monotonic() < end and not requests:
    if code == 'wait' and (cloud / 'go').exists():
      sys.exit(0)
    time.sleep(0.01)
  if requests:
    print('saved', flush=True)
    sys.exit(75)
  sys.exit(code)


main()
