"""A fake of kubectl, and of a cluster with the JobSet controller.

A pod is a folder and a process. The controller acts when somebody asks.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import fake_cloud

PODS = fake_cloud.ROOT / 'pods'

# The containers of a pod; exit status 99 stands for a failed fetch.
FETCH = 99
POD = f"""
if ! bash fetch > fetch.log 2>&1; then echo {FETCH} > code; exit; fi
bash script &
echo $! > main
wait $!
echo $? > code.new
mv code.new code
"""


def kubectl(arguments):
  verb = arguments[0]
  if verb == 'logs':
    print_logs(arguments)
    return
  with fake_cloud.locked_state() as state:
    jobsets = state.setdefault('jobsets', {})
    if verb == 'apply':
      apply(state, jobsets, arguments)
      return
    name = arguments[2] if arguments[1] == 'jobset' else ''
    name = name or fake_cloud.flag(arguments, 'selector').partition('=')[2]
    if verb == 'delete':
      delete_pods(jobsets.get(name), '--force' in arguments)
      return
    if name in jobsets:
      control(name, jobsets[name])
    if name in jobsets and is_gone(jobsets[name]):
      del jobsets[name]
    if arguments[1] == 'pods':
      items = describe_pods(jobsets.get(name, {'pods': []}))
      print(json.dumps({'items': items}))
    elif name in jobsets:
      print(json.dumps(describe(jobsets[name])))


def apply(state, jobsets, arguments):
  answers = fake_cloud.scenario('create', [])
  if fake_cloud.next_answer(state, 'create', answers) == 'quota':
    fake_cloud.fail('error: admission webhook denied the request')
  path = pathlib.Path(fake_cloud.flag(arguments, 'filename'))
  content = json.loads(path.read_text())
  jobsets[content['metadata']['name']] = {
    'content': content,
    'restarts': 0,
    'end': '',
    'pods': [],
    'polls': 0,
  }


def describe(jobset):
  message = f'{jobset["end"]} for a reason'
  conditions = [{'type': jobset['end'], 'status': 'True', 'message': message}]
  return {
    'metadata': jobset['content']['metadata'],
    'status': {'conditions': conditions if jobset['end'] else []},
  }


def delete_pods(jobset, force):
  """Ends pods, after they saved or at once; the JobSet is deleted with them."""
  if jobset is None:
    return
  jobset['deleted'] = True
  for pod in jobset['pods']:
    folder = PODS / pod
    if pod_code(pod) is not None:
      continue
    if force or not (folder / 'main').exists():
      kill(pod)
    else:
      with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / 'main').read_text()), signal.SIGTERM)


def kill(pod):
  fake_cloud.kill_below(PODS / pod)
  (PODS / pod / 'code').write_text('137')


def is_gone(jobset):
  have_ended = all(pod_code(pod) is not None for pod in jobset['pods'])
  return jobset.get('deleted') and have_ended


def print_logs(arguments):
  folder = PODS / arguments[1]
  if '--follow' in arguments:
    follow(folder)
  elif fake_cloud.flag(arguments, 'container') == 'fetch':
    print((folder / 'fetch.log').read_text(), end='')
  else:
    print((folder / 'log').read_text(), end='')


def follow(folder):
  offset = 0
  log = folder / 'log'
  while True:
    has_ended = (folder / 'code').exists() or not folder.exists()
    text = log.read_bytes() if log.exists() else b''
    sys.stdout.buffer.write(text[offset:])
    sys.stdout.flush()
    offset = len(text)
    if has_ended:
      return
    time.sleep(0.02)


def control(name, jobset):
  """Does what the JobSet controller does between two polls."""
  jobset['polls'] += 1
  ready = fake_cloud.scenario('ready', 1)
  is_waiting = ready < 0 or jobset['polls'] <= ready
  if is_waiting or jobset['end'] or jobset.get('deleted'):
    return
  if not fake_cloud.scenario('image', True):
    return
  job = jobset['content']['spec']['replicatedJobs'][0]['template']['spec']
  if not jobset['pods']:
    start_pods(name, jobset, job)
    return
  have_begun = fake_cloud.have_run(jobset['restarts'] + 1, job['completions'])
  if have_begun and jobset['restarts'] < fake_cloud.scenario('preempt', 0):
    kill(jobset['pods'][-1])
    (PODS / jobset['pods'][-1] / 'disrupted').touch()
  if have_begun and fake_cloud.scenario('memory', False):
    kill(jobset['pods'][-1])
    (PODS / jobset['pods'][-1] / 'memory').touch()
    return
  codes = [pod_code(pod) for pod in jobset['pods']]
  if not have_begun and FETCH not in codes:
    return  # So that all pods take part in each run.
  decide(jobset, job, codes)


def decide(jobset, job, codes):
  """Ends or restarts a JobSet by the exit statuses of its pods."""
  failed = [
    (code, (PODS / pod / 'disrupted').exists())
    for code, pod in zip(codes, jobset['pods'], strict=True)
    if code
  ]
  if all(code == 0 for code in codes):
    jobset['end'] = 'Completed'
  elif failed:
    policy = jobset['content']['spec']['failurePolicy']
    is_fatal = any(ends_job(job, *failure) for failure in failed)
    if is_fatal or jobset['restarts'] >= policy['maxRestarts']:
      jobset['end'] = 'Failed'
    else:
      jobset['restarts'] += 1
      for pod in jobset['pods']:
        kill(pod)
      jobset['pods'] = []


def ends_job(job, code, disrupted):
  """Applies the rules of the pod failure policy."""
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
  """Returns the script of a container, for a folder and without its pauses."""
  # Kubernetes' own escape.
  script = command[2].replace('$$', '$')
  script = script.replace('cd /work\n', f'cd {shlex.quote(str(folder))}\n')
  script = script.replace(' /work/', f' {shlex.quote(str(folder))}/')
  return re.sub(r'sleep \S+', 'sleep 0.1', script)


def start_pods(name, jobset, job):
  spec = job['template']['spec']
  main = spec['containers'][0]
  scripts = {'fetch': spec['initContainers'][0], 'script': main}
  for i in range(job['completions']):
    pod = f'{name}-workers-0-{i}-{jobset["restarts"]}'
    folder = PODS / pod
    folder.mkdir(parents=True)
    for file, container in scripts.items():
      (folder / file).write_text(pod_script(container['command'], folder))
    environment = {
      'PATH': os.environ['PATH'],
      'FAKE_CLOUD': str(fake_cloud.ROOT),
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
    jobset['pods'].append(pod)


def pod_code(pod):
  path = PODS / pod / 'code'
  return int(path.read_text()) if path.exists() else None


def describe_pods(jobset):
  items = []
  for i, pod in enumerate(jobset['pods']):
    labels = {'batch.kubernetes.io/job-completion-index': str(i)}
    items.append(
      {
        'metadata': {'name': pod, 'labels': labels},
        'status': pod_status(pod),
      }
    )
  if not items and not fake_cloud.scenario('image', True):
    waiting = {'reason': 'ImagePullBackOff', 'message': 'no such image'}
    status = {
      'phase': 'Pending',
      'containerStatuses': [{'name': 'main', 'state': {'waiting': waiting}}],
    }
    items = [{'metadata': {'name': 'pod'}, 'status': status}]
  return items


def pod_status(pod):
  code = pod_code(pod)
  reason = 'OOMKilled' if (PODS / pod / 'memory').exists() else 'Error'
  terminated = {'terminated': {'exitCode': code, 'reason': reason}}
  if code == FETCH:
    waiting = {'waiting': {'reason': 'PodInitializing'}}
    return {
      'phase': 'Failed',
      'initContainerStatuses': [{'name': 'fetch', 'state': terminated}],
      'containerStatuses': [{'name': 'main', 'state': waiting}],
    }
  state = {} if code is None else terminated
  return {
    'phase': 'Running',
    'initContainerStatuses': [{'name': 'fetch', 'state': {}}],
    'containerStatuses': [{'name': 'main', 'state': state}],
  }


def main(program, *arguments):
  fake_cloud.call({'kubectl': kubectl}, program, list(arguments))
