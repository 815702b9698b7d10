"""A fake of SLURM: tasks are processes; the scheduler acts at each squeue."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import fake_cloud


def sbatch(arguments):
  number = submit(arguments)
  time.sleep(fake_cloud.scenario('slow', {}).get('sbatch', 0))
  print(number)


def submit(arguments):
  script = pathlib.Path(arguments[-1])
  with fake_cloud.locked_state() as state:
    answers = fake_cloud.scenario('create', [])
    if fake_cloud.next_answer(state, 'create', answers) == 'quota':
      fake_cloud.fail(
        'sbatch: error: Batch job submission failed: Invalid account'
      )
    number = str(100 + state['counts']['create'])
    options = [
      shlex.split(line)[1]
      for line in script.read_text().splitlines()
      if line.startswith('#SBATCH')
    ]
    state.setdefault('slurm', {})[number] = {
      'script': str(script),
      'log': fake_cloud.flag(options, 'output').replace('%%', '%'),
      'nodes': fake_cloud.flag(options, 'nodes'),
      'name': fake_cloud.flag(options, 'job-name'),
      'cpus': fake_cloud.flag(options, 'cpus-per-task'),
      'tasks': [],
      'restarts': 0,
      'polls': 0,
      'pid': 0,
    }
    return number


def begin(number, job):
  cpus = {'SLURM_CPUS_PER_TASK': job['cpus']} if job['cpus'] else {}
  environment = {
    **os.environ,
    'SLURM_JOB_ID': number,
    'SLURM_RESTART_COUNT': str(job['restarts']),
    'FAKE_NODES': job['nodes'],
    **cpus,
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


def is_alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


def squeue(arguments):
  number = fake_cloud.flag(arguments, 'jobs')
  name = fake_cloud.flag(arguments, 'name')
  with fake_cloud.locked_state() as state:
    jobs = state.get('slurm', {})
    if name:
      print(*(n for n, job in jobs.items() if job['name'] == name), sep='\n')
      return
    if number not in jobs:
      fake_cloud.fail('slurm_load_jobs error: Invalid job id specified')
    job_state = schedule(number, jobs[number])
    if job_state:
      print(job_state)
    else:
      del jobs[number]


def schedule(number, job):
  """Starts, preempts and requeues a job; returns its state, '' at its end."""
  job['polls'] += 1
  ready = fake_cloud.scenario('ready', 1)
  have_begun = fake_cloud.have_run(job['restarts'] + 1, int(job['nodes']))
  if not job['pid']:
    if ready < 0 or job['polls'] <= ready:
      return 'PENDING'
    begin(number, job)
  elif have_begun and job['restarts'] < fake_cloud.scenario('preempt', 0):
    end(job)
    job.update(restarts=job['restarts'] + 1, pid=0)
    return 'PENDING'
  elif (
    have_begun
    and job['restarts'] < fake_cloud.scenario('time_up', 0)
    and job.pop('warn', True)
  ):
    os.kill(job['pid'], signal.SIGTERM)  # As by --signal=B:TERM@120.
  if is_alive(job['pid']):
    return 'RUNNING'
  if job.pop('requeue', False):
    job.update(restarts=job['restarts'] + 1, pid=0)
    return 'PENDING'
  return ''


def end(job):
  for pid in (job['pid'], *job['tasks']):
    fake_cloud.kill_group(pid)


def scancel(arguments):
  number = arguments[-1]
  with fake_cloud.locked_state() as state:
    job = state.get('slurm', {}).get(number)
    if job is None:
      fake_cloud.fail('scancel: error: Invalid job id specified')
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
  with fake_cloud.locked_state() as state:
    state['slurm'][arguments[1]]['requeue'] = True


def srun(arguments):
  command = arguments[2:]
  environment = dict(os.environ)
  environment['SLURM_CPUS_PER_TASK'] = environment.pop('SRUN_CPUS_PER_TASK', '')
  with fake_cloud.locked_state() as state:
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
      fake_cloud.kill_group(task.pid)

  signal.signal(signal.SIGTERM, force)
  sys.exit(max(task.wait() for task in tasks))


PROGRAMS = {
  'sbatch': sbatch,
  'squeue': squeue,
  'scancel': scancel,
  'scontrol': scontrol,
  'srun': srun,
}


def main(program, *arguments):
  fake_cloud.call(PROGRAMS, program, list(arguments))
