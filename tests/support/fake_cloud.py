"""Stand-ins of gcloud, kubectl and SLURM that keep what exists in a file.

They run what they are given for real, in folders instead of on machines, so
that quoting is what is tested. `scenario.json` says what goes wrong:

  create: answer of each request for machines: 'ok', 'quota', 'stockout'
  ready: looks until machines are ready; -1: never
  preempt: how many of the machines are taken away while the job runs
  no_ssh: how many connections fail at first
  no_scp: how many copies fail at first, for want of a connection
  expired: gcloud has forgotten who calls it
  lag: looks until what was made is seen
  fetch: how often pods cannot fetch the code
  image: whether the image of the pods is there
  memory: whether the second pod runs out of it
  delete: answer of each deletion: 'ok' or 'error'
  time_up: how often the time that SLURM gives a job ends while it runs
  slow: seconds that some verbs of gcloud, and sbatch, take
  codes: what the job does in each run, by worker: see `fake_job`

Called with the program it stands in for; the folder is in $FAKE_CLOUD.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(os.environ['FAKE_CLOUD'])


@contextlib.contextmanager
def world():
  """What exists, to be looked at and changed by one process at a time."""
  with open(ROOT / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = ROOT / 'state.json'
    state = json.loads(path.read_text()) if path.exists() else {}
    try:
      yield state
    finally:
      # Whole or not at all: the launcher may end this process.
      path.with_suffix('.new').write_text(json.dumps(state, indent=1))
      path.with_suffix('.new').replace(path)


def scenario(name, default):
  path = ROOT / 'scenario.json'
  content = json.loads(path.read_text()) if path.exists() else {}
  return content.get(name, default)


def fail(text, code=1):
  print(text, file=sys.stderr)
  sys.exit(code)


def flag(arguments, name, default=None):
  found = [a for a in arguments if a.startswith(f'--{name}=')]
  return found[-1].partition('=')[2] if found else default


def kill_group(pid):
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(pid, signal.SIGKILL)


def kill_below(folder):
  for path in folder.rglob('pid'):
    with contextlib.suppress(ValueError):
      kill_group(int(path.read_text().split()[0]))


def next_of(state, name, answers, default='ok'):
  count = state.setdefault('counts', {})
  i = count.get(name, 0)
  count[name] = i + 1
  return answers[i] if i < len(answers) else default


def machine(name):
  return ROOT / 'machines' / name


def hosts_of(kind):
  generation, _, size = kind.rpartition('-')
  chips = int(size) // (2 if generation in ('v4', 'v5p') else 1)
  return 1 if chips == 8 and generation not in ('v4', 'v5p') else chips // 4


# gcloud


def gcloud(arguments):
  if arguments[:1] == ['storage']:
    return storage(arguments[1:])
  group, verb, *rest = arguments[2:]
  if scenario('expired', False):
    fail('ERROR: (gcloud) Reauthentication failed. cannot prompt.')
  # As ssh does, it keeps the pipes open.
  subprocess.run(['sleep', str(scenario('slow', {}).get(verb, 0))])
  names = [a for a in rest if not a.startswith('--')]
  {
    'create': create,
    'describe': describe,
    'delete': delete,
    'ssh': ssh,
    'scp': scp,
  }[verb](group, names, rest)


def create(group, names, rest):
  name = names[0]
  with world() as state:
    answer = next_of(state, 'create', scenario('create', []))
    if answer == 'quota':
      fail('ERROR: RESOURCE_EXHAUSTED: Quota limit TPUS has been exceeded.')
    if answer == 'stockout':
      if '--async' in rest:  # It is the operation that fails.
        return
      fail('ERROR: There is no more capacity in the zone "z".')
    if name in state.setdefault('tpus', {}):
      fail(f'ERROR: ALREADY_EXISTS: {name}')
    labels = dict(p.split('=') for p in flag(rest, 'labels').split(','))
    state['tpus'][name] = {
      'group': group,
      'labels': labels,
      # If it is waited for, it is ready.
      'looks': 0 if '--async' in rest else 10**6,
      'lag': scenario('lag', 0),
      'preempted': False,
      'hosts': hosts_of(flag(rest, 'accelerator-type')),
      'number': state['counts']['create'] - 1,
    }
    for i in range(state['tpus'][name]['hosts']):
      (machine(name) / str(i)).mkdir(parents=True)


def is_ready(tpu):
  ready = scenario('ready', 1)
  return ready >= 0 and tpu['looks'] > ready


def seen(state, group, name):
  """What there is of a name, as far as it is seen already."""
  tpu = state.get('tpus', {}).get(name)
  late = tpu is not None and tpu['lag'] > 0
  if late:
    tpu['lag'] -= 1
  if late or tpu is None or tpu['group'] != group:
    fail(f'ERROR: NOT_FOUND: {name} was not found')
  return tpu


def describe(group, names, rest):
  with world() as state:
    tpu = seen(state, group, names[0])
    tpu['looks'] += 1
    if group == 'tpu-vm':
      state = 'READY' if is_ready(tpu) else 'CREATING'
      state = 'PREEMPTED' if tpu['preempted'] else state
      print(json.dumps({'state': state, 'labels': tpu['labels']}))
    else:
      state = 'ACTIVE' if is_ready(tpu) else 'WAITING_FOR_RESOURCES'
      state = 'SUSPENDED' if tpu['preempted'] else state
      node = {'node': {'labels': tpu['labels']}}
      content = {'state': {'state': state}, 'tpu': {'nodeSpec': [node]}}
      print(json.dumps(content))


def delete(group, names, rest):
  with world() as state:
    if next_of(state, 'delete', scenario('delete', [])) == 'error':
      fail('ERROR: UNAVAILABLE: try again')
    seen(state, group, names[0])
    kill_below(machine(names[0]))
    shutil.rmtree(machine(names[0]))
    del state['tpus'][names[0]]


def reached(name):
  """How many hosts answer; takes the machines away when it is time."""
  with world() as state:
    tpu = state.get('tpus', {}).get(name)
    if tpu is None or not is_ready(tpu):
      fail(f'ERROR: {name} is not there')
    if next_of(state, 'ssh', ['no'] * scenario('no_ssh', 0)) == 'no':
      fail('ssh: connect to host: Connection refused', 255)
    number = tpu['number']
    due = number < scenario('preempt', 0)
    if due and have_run(number + 1, tpu['hosts']):
      tpu['preempted'] = True
      kill_below(machine(name))
    if tpu['preempted']:
      fail('ssh: connect to host: Connection timed out', 255)
    return tpu['hosts']


def ssh(group, names, rest):
  script = flag(rest, 'command')
  hosts = reached(names[0])
  which = flag(rest, 'worker', '0')
  worst = 0
  for i in range(hosts) if which == 'all' else [int(which)]:
    # gcloud splits it, ssh joins it.
    sent = ' '.join(script.split(' '))
    worst = run_on(names[0], i, sent) or worst
  sys.exit(worst)


def run_on(name, i, script):
  home = machine(name) / str(i)
  environment = {
    'PATH': os.environ['PATH'],
    'HOME': str(home),
    'FAKE_CLOUD': str(ROOT),
    'FAKE_WORKER': str(i),
  }
  return subprocess.run(
    ['bash', '-c', script], cwd=home, env=environment
  ).returncode


def scp(group, names, rest):
  path, there = names
  name, _, target = there.partition(':')
  with world() as state:
    if next_of(state, 'scp', ['no'] * scenario('no_scp', 0)) == 'no':
      fail('scp: Connection closed', 255)
  for i in range(reached(name)):
    shutil.copy(path, machine(name) / str(i) / target)


def storage(arguments):
  verb, *paths = arguments
  bucket = [
    ROOT / 'bucket' / p[5:] if p.startswith('gs://') else pathlib.Path(p)
    for p in paths
  ]
  if verb == 'cp':
    if paths[0].startswith('gs://'):
      with world() as state:
        refusals = ['no'] * scenario('fetch', 0)
        if next_of(state, 'fetch', refusals) == 'no':
          fail('ERROR: (gcloud.storage.cp) HTTPError 403: no access')
    bucket[1].parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(*bucket)
  else:
    bucket[0].unlink()


# kubectl, and what a cluster does in the background.


def kubectl(arguments):
  verb = arguments[0]
  with world() as state:
    sets = state.setdefault('jobsets', {})
    if verb == 'apply':
      if next_of(state, 'create', scenario('create', [])) == 'quota':
        fail('error: admission webhook denied the request')
      content = json.loads(
        pathlib.Path(flag(arguments, 'filename')).read_text()
      )
      name = content['metadata']['name']
      sets[name] = {'content': content, 'restarts': 0, 'end': '', 'pods': []}
      sets[name]['looks'] = 0
      return
    if verb == 'logs':
      pod = ROOT / 'pods' / arguments[1]
      container = flag(arguments, 'container')
    else:
      name = arguments[2] if arguments[1] == 'jobset' else ''
      name = name or flag(arguments, 'selector').partition('=')[2]
      if verb == 'delete':
        delete_pods(sets.get(name), '--force' in arguments)
        return
      if name in sets:
        control(name, sets[name])
      if name in sets and gone(sets[name]):
        del sets[name]
      if arguments[1] == 'pods':
        print(json.dumps({'items': pods_of(sets.get(name, {'pods': []}))}))
      elif name in sets:
        found = sets[name]
        told = f'{found["end"]} for a reason'
        conditions = [{'type': found['end'], 'status': 'True', 'message': told}]
        status = {'conditions': conditions if found['end'] else []}
        meta = found['content']['metadata']
        print(json.dumps({'metadata': meta, 'status': status}))
  if verb == 'logs' and '--follow' in arguments:
    follow(pod)
  elif verb == 'logs':
    name = 'fetch.log' if container == 'fetch' else 'log'
    print((pod / name).read_text(), end='')


def delete_pods(found, force):
  """Asks pods to end, or ends them; the set goes when they have."""
  if found is None:
    return
  found['deleted'] = True
  for pod in found['pods']:
    folder = ROOT / 'pods' / pod
    if pod_code(pod) is not None:
      continue
    if force or not (folder / 'main').exists():
      kill_below(folder)
      (folder / 'code').write_text('137')
    else:
      with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / 'main').read_text()), signal.SIGTERM)


def gone(found):
  ended = all(pod_code(pod) is not None for pod in found['pods'])
  return found.get('deleted') and ended


def follow(pod):
  seen = 0
  while True:
    over = (pod / 'code').exists() or not pod.exists()
    text = (pod / 'log').read_bytes() if (pod / 'log').exists() else b''
    sys.stdout.buffer.write(text[seen:])
    sys.stdout.flush()
    seen = len(text)
    if over:
      return
    time.sleep(0.02)


def control(name, found):
  """One look of the JobSet's controller."""
  found['looks'] += 1
  ready = scenario('ready', 1)
  waits = ready < 0 or found['looks'] <= ready
  if waits or found['end'] or found.get('deleted'):
    return
  if not scenario('image', True):
    return
  job = found['content']['spec']['replicatedJobs'][0]['template']['spec']
  if not found['pods']:
    start_pods(name, found, job)
    return
  due = found['restarts'] < scenario('preempt', 0)
  if due and have_run(found['restarts'] + 1, job['completions']):
    pod = ROOT / 'pods' / found['pods'][-1]
    kill_below(pod)
    (pod / 'disrupted').touch()
    (pod / 'code').write_text('137')
  if scenario('memory', False) and have_run(1, job['completions']):
    pod = ROOT / 'pods' / found['pods'][-1]
    kill_below(pod)
    (pod / 'memory').touch()
    (pod / 'code').write_text('137')
    return
  codes = [pod_code(pod) for pod in found['pods']]
  begun = have_run(found['restarts'] + 1, job['completions'])
  if not begun and FETCH not in codes:
    return  # So that each run is one of all pods.
  failed = [
    (code, (ROOT / 'pods' / pod / 'disrupted').exists())
    for code, pod in zip(codes, found['pods'], strict=True)
    if code
  ]
  if all(code == 0 for code in codes):
    found['end'] = 'Completed'
  elif failed:
    policy = found['content']['spec']['failurePolicy']
    fatal = any(is_fatal(job, *f) for f in failed)
    if fatal or found['restarts'] >= policy['maxRestarts']:
      found['end'] = 'Failed'
    else:
      found['restarts'] += 1
      for pod in found['pods']:
        kill_below(ROOT / 'pods' / pod)
        (ROOT / 'pods' / pod / 'code').write_text('137')
      found['pods'] = []


def is_fatal(job, code, disrupted):
  for rule in job['podFailurePolicy']['rules']:
    if 'onPodConditions' in rule:
      if disrupted:
        return rule['action'] == 'FailJob'
    elif 'containerName' in rule['onExitCodes'] and code == FETCH:
      continue
    elif code not in rule['onExitCodes']['values']:
      return rule['action'] == 'FailJob'
  return False


def pod_script(command, folder):
  """The script of a container, in a folder and without its pauses."""
  # Kubernetes' own escape.
  script = command[2].replace('$$', '$')
  script = script.replace('cd /work\n', f'cd {shlex.quote(str(folder))}\n')
  script = script.replace(' /work/', f' {shlex.quote(str(folder))}/')
  return re.sub(r'sleep \S+', 'sleep 0.1', script)


def start_pods(name, found, job):
  spec = job['template']['spec']
  for i in range(job['completions']):
    pod = f'{name}-workers-0-{i}-{found["restarts"]}'
    folder = ROOT / 'pods' / pod
    folder.mkdir(parents=True)
    main = spec['containers'][0]
    for file, container in (
      ('fetch', spec['initContainers'][0]),
      ('script', main),
    ):
      (folder / file).write_text(pod_script(container['command'], folder))
    environment = {
      'PATH': os.environ['PATH'],
      'FAKE_CLOUD': str(ROOT),
      'FAKE_WORKER': str(i),
      **{e['name']: e['value'].replace('$$', '$') for e in main['env']},
    }
    with open(folder / 'log', 'w') as log:
      process = subprocess.Popen(
        ['bash', '-c', POD],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )
    (folder / 'pid').write_text(str(process.pid))
    found['pods'].append(pod)


# What keeps the containers of a pod.
FETCH = 99
POD = f"""
if ! bash fetch > fetch.log 2>&1; then echo {FETCH} > code; exit; fi
bash script &
echo $! > main
wait $!
echo $? > code.new
mv code.new code
"""


def pod_code(pod):
  path = ROOT / 'pods' / pod / 'code'
  return int(path.read_text()) if path.exists() else None


def pods_of(found):
  items = []
  for i, pod in enumerate(found['pods']):
    code = pod_code(pod)
    why = 'OOMKilled' if (ROOT / 'pods' / pod / 'memory').exists() else 'Error'
    ended = {'terminated': {'exitCode': code, 'reason': why}}
    state = {} if code is None else ended
    status = {
      'phase': 'Running',
      'initContainerStatuses': [{'name': 'fetch', 'state': {}}],
      'containerStatuses': [{'name': 'main', 'state': state}],
    }
    if code == FETCH:
      waits = {'waiting': {'reason': 'PodInitializing'}}
      status = {
        'phase': 'Failed',
        'initContainerStatuses': [{'name': 'fetch', 'state': state}],
        'containerStatuses': [{'name': 'main', 'state': waits}],
      }
    labels = {'batch.kubernetes.io/job-completion-index': str(i)}
    items.append(
      {
        'metadata': {'name': pod, 'labels': labels},
        'status': status,
      }
    )
  if not items and not scenario('image', True):
    waits = {'reason': 'ImagePullBackOff', 'message': 'no such image'}
    status = {
      'phase': 'Pending',
      'containerStatuses': [{'name': 'main', 'state': {'waiting': waits}}],
    }
    items = [{'metadata': {'name': 'pod'}, 'status': status}]
  return items


# SLURM


def sbatch(arguments):
  number = submit(arguments)
  time.sleep(scenario('slow', {}).get('sbatch', 0))
  print(number)


def submit(arguments):
  script = pathlib.Path(arguments[-1])
  with world() as state:
    if next_of(state, 'create', scenario('create', [])) == 'quota':
      fail('sbatch: error: Batch job submission failed: Invalid account')
    number = str(100 + state['counts']['create'])
    options = [
      shlex.split(line)[1]
      for line in script.read_text().splitlines()
      if line.startswith('#SBATCH')
    ]
    state.setdefault('slurm', {})[number] = {
      'script': str(script),
      'log': flag(options, 'output').replace('%%', '%'),
      'nodes': flag(options, 'nodes'),
      'name': flag(options, 'job-name'),
      'cpus': flag(options, 'cpus-per-task'),
      'tasks': [],
      'restarts': 0,
      'looks': 0,
      'pid': 0,
    }
    return number


def begin(number, job):
  environment = {
    **os.environ,
    'SLURM_JOB_ID': number,
    'SLURM_RESTART_COUNT': str(job['restarts']),
    'FAKE_NODES': job['nodes'],
    **({'SLURM_CPUS_PER_TASK': job['cpus']} if job['cpus'] else {}),
  }
  with open(job['log'], 'a') as log:
    process = subprocess.Popen(
      ['bash', job['script']],
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      start_new_session=True,
    )
  job['pid'] = process.pid


def alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


def squeue(arguments):
  number, name = flag(arguments, 'jobs'), flag(arguments, 'name')
  with world() as state:
    jobs = state.get('slurm', {})
    if name:
      print(*(n for n, job in jobs.items() if job['name'] == name), sep='\n')
      return
    if number not in jobs:
      fail('slurm_load_jobs error: Invalid job id specified')
    job = jobs[number]
    job['looks'] += 1
    ready = scenario('ready', 1)
    if not job['pid']:
      if ready < 0 or job['looks'] <= ready:
        print('PENDING')
        return
      begin(number, job)
    elif job['restarts'] < scenario('preempt', 0) and have_run(
      job['restarts'] + 1, int(job['nodes'])
    ):
      end(job)
      job.update(restarts=job['restarts'] + 1, pid=0)
      print('PENDING')
      return
    elif (
      job['restarts'] < scenario('time_up', 0)
      and have_run(job['restarts'] + 1, int(job['nodes']))
      and job.pop('warn', True)
    ):
      os.kill(job['pid'], signal.SIGTERM)  # As by --signal=B:TERM@120.
    if alive(job['pid']):
      print('RUNNING')
    elif job.pop('requeue', False):
      job.update(restarts=job['restarts'] + 1, pid=0)
      print('PENDING')
    else:
      del jobs[number]


def end(job):
  for pid in (job['pid'], *job['tasks']):
    kill_group(pid)


def scancel(arguments):
  number = arguments[-1]
  with world() as state:
    job = state.get('slurm', {}).get(number)
    if job is None:
      fail('scancel: error: Invalid job id specified')
    if '--signal=TERM' in arguments:
      # To the batch script alone, or to all processes of all steps.
      with contextlib.suppress(ProcessLookupError):
        if '--batch' in arguments:
          os.kill(job['pid'], signal.SIGTERM)
        for task in [] if '--batch' in arguments else job['tasks']:
          os.killpg(task, signal.SIGTERM)
      return
    if job['pid']:
      end(job)
    del state['slurm'][number]


def scontrol(arguments):
  with world() as state:
    state['slurm'][arguments[1]]['requeue'] = True


def srun(arguments):
  command = arguments[2:]
  environment = dict(os.environ)
  environment['SLURM_CPUS_PER_TASK'] = environment.pop('SRUN_CPUS_PER_TASK', '')
  with world() as state:
    tasks = [
      subprocess.Popen(
        command,
        env={**environment, 'SLURM_PROCID': str(i), 'FAKE_WORKER': str(i)},
        start_new_session=True,
      )
      for i in range(int(os.environ['FAKE_NODES']))
    ]
    job = state['slurm'][os.environ['SLURM_JOB_ID']]
    job['tasks'] = [task.pid for task in tasks]

  def force(*_):  # "forcing job termination"
    for task in tasks:
      kill_group(task.pid)

  signal.signal(signal.SIGTERM, force)
  sys.exit(max(task.wait() for task in tasks))


def have_run(number, hosts):
  """Whether that many runs of the job have begun on all hosts."""
  for i in range(hosts):
    path = ROOT / f'runs-{i}.jsonl'
    if not path.exists() or path.read_text().count('\n') < number:
      return False
  return True


def main(program, *given):
  with open(ROOT / 'calls', 'a') as calls:
    calls.write(json.dumps([program, *given]) + '\n')
  # Named as on the machines.
  globals()[program](list(given))
