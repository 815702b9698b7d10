"""Whole runs of the launcher, with fakes of gcloud, kubectl and SLURM."""

import re
import shlex
from typing import NamedTuple

import pytest

from tests.support import launching

BACKENDS = list(launching.MACHINES)
# tpu_vm and queued differ little: one of them suffices for most tests.
FEW = ['local', 'queued', 'gke', 'slurm']
REMOTE = ['queued', 'gke', 'slurm']

# What a shell would interpret.
AWKWARD = [
  'two words',
  "it's",
  'a "quote"',
  '$HOME $(touch /tmp/no) `no` ${HOME}',
  'a;b & c | d > e',
  'back\\slash \\n',
  '*?[a]~',
  '',
  'Füße\nnext  line',
  '$$(HOME)',
  '--config=a.py:x=1,y=(1, 2)',
]


class Finished(NamedTuple):
  """A run that has ended, and what it left."""

  backend: str
  cloud: launching.Cloud
  flags: list[str]
  code: int
  out: str
  err: str


@pytest.fixture(scope='module', params=BACKENDS)
def finished(request, tmp_path_factory):
  """Yields a run whose arguments and variables a shell would interpret."""
  cloud = launching.Cloud(tmp_path_factory.mktemp(request.param))
  flags = [f'--env=TEST_{i}={text}' for i, text in enumerate(AWKWARD)]
  if request.param == 'slurm':
    flags.append('--also=--cpus-per-task=7')
  command = ['-m', 'fake_job', *AWKWARD]
  result = cloud.launch(request.param, *flags, command=command)
  arguments = cloud.arguments(request.param, *flags, command=command)
  yield Finished(request.param, cloud, arguments, *result)
  cloud.kill_processes()


def test_a_job_runs_once_and_is_deleted(finished):
  cloud, err = finished.cloud, finished.err
  assert finished.code == 0, err
  assert f'commit {cloud.commit}' in err
  assert finished.out.count('run 0 of worker 0: é') == 1, finished.out
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [1, 1]
  if finished.backend != 'slurm':  # It reports them only while the job exists.
    assert '-0, ' in err and '-1: 0' in err, err
  assert cloud.remains() == []


def test_arguments_and_environment_arrive_unchanged(finished):
  for worker in (0, 1):
    run = finished.cloud.runs(worker)[0]
    assert run['argv'][:-1] == AWKWARD
    assert run['argv'][-1].startswith('--workdir=')
    assert run['env']['MALLOC_ARENA_MAX'] == '2'
    for i, text in enumerate(AWKWARD):
      assert run['env'][f'TEST_{i}'] == text


def test_workers_get_the_group(finished):
  environments = [finished.cloud.runs(worker)[0]['env'] for worker in (0, 1)]
  if finished.backend == 'slurm':
    # jax reads the group from SLURM's variables; srun needs the cores again.
    assert environments[1]['SLURM_CPUS_PER_TASK'] == '7'
  elif finished.backend != 'gke':  # GKE sets the variables itself.
    addresses = {env['JAX_COORDINATOR_ADDRESS'] for env in environments}
    assert len(addresses) == 1
    if finished.backend != 'local':
      assert addresses == {'10.0.0.1:8482'}
    assert [env['JAX_PROCESS_ID'] for env in environments] == ['0', '1']
    assert [env['JAX_NUM_PROCESSES'] for env in environments] == ['2', '2']


@pytest.mark.parametrize('finished', ['queued'], indirect=True)
def test_a_dry_run_prints_the_commands_that_are_run(finished):
  cloud = finished.cloud
  calls = cloud.calls()
  code, out, err = cloud.start_with('--dry_run', *finished.flags).wait()
  assert code == 0, err
  steps = re.split(r'\n# \d+\. ', out)[1:]
  planned = [shlex.split(step.partition('\n')[2]) for step in steps]
  for call in calls:
    if 'tail -c +' in call[-4]:  # The offset depends on what was read.
      assert call[-4].endswith('/log 2> /dev/null | head -c 1000000\n')
    else:
      assert call in planned, call
  verbs = [call[4] for call in calls]
  assert verbs[:2] == ['describe', 'create']
  assert verbs[-1] == 'delete'


@pytest.mark.parametrize('backend', FEW)
def test_status_75_restarts_the_job(cloud, backend):
  cloud.plan(codes=[[0, 75], [0, 0]])
  code, out, err = cloud.launch(backend)
  assert code == 0, err
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [2, 2]
  # The log of a pod that ends between two polls is not seen.
  for number in [1] if backend == 'gke' else [0, 1]:
    assert out.count(f'run {number} of worker 0') == 1, out
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', ['gke', 'slurm'])
def test_schedulers_restart_as_often_as_allowed(cloud, backend):
  cloud.plan(codes=[[75, 75]] * 9)
  code, _, err = cloud.launch(backend, '--retries=1')
  assert code == 75, err
  assert len(cloud.runs()) == 2
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', REMOTE)
def test_preemption_restarts_the_job(cloud, backend):
  cloud.plan(preempt=1, codes=[['wait', 'wait']])
  code, _, err = cloud.launch(backend)
  assert code == 0, err
  assert len(cloud.runs()) == 2
  assert cloud.remains() == []
  if backend == 'queued':
    assert err.count('the machines are lost') == 1


def test_a_job_saves_before_slurms_time_limit(cloud):
  cloud.plan(time_up=1, codes=[['wait', 'wait']])
  code, out, err = cloud.launch('slurm')
  assert code == 0, out + err
  assert out.count('saved') == 2
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [2, 2]
  assert cloud.remains() == []


@pytest.mark.parametrize(
  ('backend', 'status'),
  [*((backend, 1) for backend in FEW), ('gke', 2), ('slurm', 2)],
)
def test_a_failed_worker_fails_the_job(cloud, backend, status):
  cloud.plan(codes=[[0, status]])
  code, out, err = cloud.launch(backend)
  assert code == status, err
  assert len(cloud.runs()) == 1
  if backend in ('local', 'queued'):
    assert f'-1: {status}' in err, err
    assert '-1| run 0 of worker 1' in out, out  # The last lines of its log.
  assert cloud.remains() == []


def test_the_other_workers_are_killed_after_a_failure(cloud):
  cloud.plan(codes=[[1, 'wait']])
  code, out, err = cloud.launch('tpu_vm', '--grace=0.2')
  assert code == 1
  assert '-1: killed' in err, err
  assert '| run 0 of worker 0' in out  # The last lines of its log.
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', REMOTE)
def test_the_wait_for_machines_is_limited(cloud, backend):
  cloud.plan(ready=-1)
  code, _, err = cloud.launch(backend, '--wait=0.1')
  assert code == 75
  assert 'given up' in err
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', REMOTE)
def test_a_refusal_is_one_line(cloud, backend):
  cloud.plan(create=['quota'])
  code, _, err = cloud.launch(backend)
  assert code == 2
  last = err.splitlines()[-1]
  assert last.startswith('error: '), err
  assert cloud.remains() == []


def test_an_expired_login_is_reported_once(cloud):
  cloud.plan(codes=[['wait', 'wait']])
  launcher = cloud.start('queued')
  cloud.wait_for_workers()
  cloud.plan(codes=[['wait', 'wait']], expired=True)
  cloud.wait_until(lambda: 'unreachable' in launcher.err, 'it is reported')
  calls = len(cloud.calls())
  cloud.wait_until(lambda: len(cloud.calls()) > calls + 4, 'more polls')
  cloud.plan()
  cloud.release()
  code, _, err = launcher.wait()
  assert code == 0, err
  assert err.count('launch: unreachable since ') == 1, err
  assert ': no answer (gcloud: ERROR: (gcloud) Reauthentication' in err


def test_machines_are_requested_again_after_a_lack_of_capacity(cloud):
  cloud.plan(create=['stockout', 'stockout'])
  code, _, err = cloud.launch('tpu_vm')
  assert code == 0, err
  assert err.count('no capacity at present') == 2
  assert cloud.remains() == []


def test_connections_to_new_machines_are_retried(cloud):
  # More often than commands that fail on machines that can be reached.
  cloud.plan(no_ssh=2, no_scp=4)
  code, _, err = cloud.launch('tpu_vm')
  assert code == 0, err
  assert len(cloud.runs()) == 1


def test_pods_retry_to_fetch_the_code(cloud):
  cloud.plan(fetch=3)
  assert cloud.launch('gke')[0] == 0
  assert cloud.remains() == []


def test_code_that_cannot_be_fetched_fails_the_job(cloud):
  cloud.plan(fetch=99)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'launch: JobSet: Failed for a reason\n' in out
  assert 'worker-0, fetch| ERROR: (gcloud.storage.cp) HTTPError 403' in out
  assert cloud.runs() == []
  assert cloud.remains() == []


def test_a_missing_image_is_reported(cloud):
  cloud.plan(image=False)
  code, _, err = cloud.launch('gke', '--wait=0.1')
  assert code == 75
  assert '2 of 2 pods (main: ImagePullBackOff: no such image)' in err, err
  assert cloud.remains() == []


def test_a_pod_that_ran_out_of_memory_is_not_restarted(cloud):
  cloud.plan(memory=True, codes=[['wait', 'wait']] * 2)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'launch: JobSet: a pod ran out of memory\n' in out
  assert len(cloud.runs()) == 1
  assert cloud.remains() == []


def test_a_process_killed_in_a_pod_that_survives_ran_out_of_memory(cloud):
  cloud.plan(codes=[[0, 137]] * 2)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'worker-1, main| error: killed: out of memory?\n' in out, out
  assert len(cloud.runs()) == 1


def test_only_commits_are_shipped(cloud):
  (cloud.repo / 'fake_job.py').write_text('raise SystemExit(3)')
  code, _, err = cloud.launch('local')
  assert code == 2
  assert err == (
    'error: not committed: fake_job.py; commit first, or choose what to ship, '
    'as in --commit=HEAD\n'
  )
  assert cloud.launch('local', '--commit=HEAD')[0] == 0
  assert cloud.remains() == []
