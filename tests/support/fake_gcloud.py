"""A fake of gcloud: TPU VMs are folders, and so is the bucket."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import fake_cloud


def gcloud(arguments):
  if arguments[:1] == ['storage']:
    return storage(arguments[1:])
  group, verb, *rest = arguments[2:]
  if fake_cloud.scenario('expired', False):
    fake_cloud.fail('ERROR: (gcloud) Reauthentication failed. cannot prompt.')
  if seconds := fake_cloud.scenario('slow', {}).get(verb, 0):
    # In a child process that keeps the pipes open, as the ssh of gcloud does.
    subprocess.run(['sleep', str(seconds)])
  names = [a for a in rest if not a.startswith('--')]
  VERBS[verb](group, names, rest)


def machine(name):
  return fake_cloud.ROOT / 'machines' / name


def count_hosts(accelerator_type):
  generation, _, size = accelerator_type.rpartition('-')
  counts_cores = generation in ('v4', 'v5p')
  chips = int(size) // (2 if counts_cores else 1)
  return 1 if chips == 8 and not counts_cores else chips // 4


def create(group, names, rest):
  name = names[0]
  with fake_cloud.locked_state() as state:
    answers = fake_cloud.scenario('create', [])
    answer = fake_cloud.next_answer(state, 'create', answers)
    if answer == 'quota':
      fake_cloud.fail(
        'ERROR: RESOURCE_EXHAUSTED: Quota limit TPUS has been exceeded.'
      )
    if answer == 'stockout':
      if '--async' in rest:  # It is the operation that fails.
        return
      fake_cloud.fail('ERROR: There is no more capacity in the zone "z".')
    if name in state.setdefault('tpus', {}):
      fake_cloud.fail(f'ERROR: ALREADY_EXISTS: {name}')
    labels = fake_cloud.flag(rest, 'labels').split(',')
    accelerator_type = fake_cloud.flag(rest, 'accelerator-type')
    tpu = {
      'group': group,
      'labels': dict(label.split('=') for label in labels),
      # A command that waits returns when they are ready.
      'polls': 0 if '--async' in rest else 10**6,
      'lag': fake_cloud.scenario('lag', 0),
      'preempted': False,
      'hosts': count_hosts(accelerator_type),
      'number': state['counts']['create'] - 1,
    }
    state['tpus'][name] = tpu
    for i in range(tpu['hosts']):
      (machine(name) / str(i)).mkdir(parents=True)


def is_ready(tpu):
  ready = fake_cloud.scenario('ready', 1)
  return ready >= 0 and tpu['polls'] > ready


def visible(state, group, name):
  """Returns the machines of a name; fails if they are not visible yet."""
  tpu = state.get('tpus', {}).get(name)
  is_late = tpu is not None and tpu['lag'] > 0
  if is_late:
    tpu['lag'] -= 1
  if is_late or tpu is None or tpu['group'] != group:
    fake_cloud.fail(f'ERROR: NOT_FOUND: {name} was not found')
  return tpu


def describe(group, names, rest):
  del rest
  with fake_cloud.locked_state() as state:
    tpu = visible(state, group, names[0])
    tpu['polls'] += 1
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
  del rest
  with fake_cloud.locked_state() as state:
    answers = fake_cloud.scenario('delete', [])
    if fake_cloud.next_answer(state, 'delete', answers) == 'error':
      fake_cloud.fail('ERROR: UNAVAILABLE: try again')
    visible(state, group, names[0])
    fake_cloud.kill_below(machine(names[0]))
    shutil.rmtree(machine(names[0]))
    del state['tpus'][names[0]]


def connect(name):
  """Returns the number of hosts; preempts the machines when it is time."""
  with fake_cloud.locked_state() as state:
    tpu = state.get('tpus', {}).get(name)
    if tpu is None or not is_ready(tpu):
      fake_cloud.fail(f'ERROR: {name} does not exist')
    refusals = ['no'] * fake_cloud.scenario('no_ssh', 0)
    if fake_cloud.next_answer(state, 'ssh', refusals) == 'no':
      fake_cloud.fail('ssh: connect to host: Connection refused', 255)
    number = tpu['number']
    is_due = number < fake_cloud.scenario('preempt', 0)
    if is_due and fake_cloud.have_run(number + 1, tpu['hosts']):
      tpu['preempted'] = True
      fake_cloud.kill_below(machine(name))
    if tpu['preempted']:
      fake_cloud.fail('ssh: connect to host: Connection timed out', 255)
    return tpu['hosts']


def ssh(group, names, rest):
  del group
  script = fake_cloud.flag(rest, 'command')
  hosts = connect(names[0])
  workers = fake_cloud.flag(rest, 'worker', '0')
  worst = 0
  for i in range(hosts) if workers == 'all' else [int(workers)]:
    # gcloud splits it, ssh joins it.
    sent = ' '.join(script.split(' '))
    worst = run_on(names[0], i, sent) or worst
  sys.exit(worst)


def run_on(name, i, script):
  home = machine(name) / str(i)
  environment = {
    'PATH': os.environ['PATH'],
    'HOME': str(home),
    'FAKE_CLOUD': str(fake_cloud.ROOT),
    'FAKE_WORKER': str(i),
  }
  return subprocess.run(
    ['bash', '-c', script], cwd=home, env=environment
  ).returncode


def scp(group, names, rest):
  del group, rest
  path, target = names
  name, _, target = target.partition(':')
  with fake_cloud.locked_state() as state:
    refusals = ['no'] * fake_cloud.scenario('no_scp', 0)
    if fake_cloud.next_answer(state, 'scp', refusals) == 'no':
      fake_cloud.fail('scp: Connection closed', 255)
  for i in range(connect(name)):
    shutil.copy(path, machine(name) / str(i) / target)


def storage(arguments):
  verb, *paths = arguments
  local = [
    fake_cloud.ROOT / 'bucket' / path[5:]
    if path.startswith('gs://')
    else pathlib.Path(path)
    for path in paths
  ]
  if verb == 'rm':
    local[0].unlink()
    return
  if paths[0].startswith('gs://'):
    with fake_cloud.locked_state() as state:
      refusals = ['no'] * fake_cloud.scenario('fetch', 0)
      if fake_cloud.next_answer(state, 'fetch', refusals) == 'no':
        fake_cloud.fail('ERROR: (gcloud.storage.cp) HTTPError 403: no access')
  local[1].parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(*local)


VERBS = {
  'create': create,
  'describe': describe,
  'delete': delete,
  'ssh': ssh,
  'scp': scp,
}


def main(program, *arguments):
  fake_cloud.call({'gcloud': gcloud}, program, list(arguments))
