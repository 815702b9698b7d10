"""The launcher among stand-ins: what happens, and that nothing is left."""

import json
import os
import pathlib
import signal
import time

import pytest

from launch import accelerators, backends, shell, supervise
from launch import job as jobs
from launch.backends import local, tpu
from tests.support import launching

PLACES = list(launching.PLACES)
# What differs between tpu_vm and queued is little: one of them does.
FEW = ['local', 'queued', 'gke', 'slurm']
CLOUDS = ['queued', 'gke', 'slurm']

# What a shell would take apart.
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


@pytest.fixture
def cloud(tmp_path):
  made = launching.Cloud(tmp_path)
  yield made
  made.clear()


@pytest.mark.parametrize('place', PLACES)
def test_a_job_runs_and_nothing_is_left(cloud, place):
  code, out, err = cloud.launch(place)
  assert code == 0, err
  assert f'commit {cloud.commit}' in err
  assert out.count('run 0 of worker 0: é') == 1, out
  for worker in (0, 1):
    assert len(cloud.runs(worker)) == 1
  if place != 'slurm':  # Whose tasks are told by it, not by these variables.
    assert '-0, ' in err and '-1: 0' in err, err
  assert cloud.left() == []


@pytest.mark.parametrize('place', FEW)
def test_arguments_and_environment_arrive_as_they_are(cloud, place):
  flags = [f'--env=TEST_{i}={text}' for i, text in enumerate(AWKWARD)]
  code, _, err = cloud.launch(
    place, *flags, command=['-m', 'fake_job', *AWKWARD]
  )
  assert code == 0, err
  for worker in (0, 1):
    run = cloud.runs(worker)[0]
    assert run['argv'][:-1] == AWKWARD
    assert run['argv'][-1].startswith('--workdir=')
    for i, text in enumerate(AWKWARD):
      assert run['env'][f'TEST_{i}'] == text


@pytest.mark.parametrize('place', ['local', 'tpu_vm'])
def test_workers_are_told_of_each_other(cloud, place):
  assert cloud.launch(place)[0] == 0
  told = [cloud.runs(worker)[0]['env'] for worker in (0, 1)]
  addresses = {env['JAX_COORDINATOR_ADDRESS'] for env in told}
  assert len(addresses) == 1
  if place == 'tpu_vm':
    assert addresses == {'10.0.0.1:8482'}
  assert [env['JAX_PROCESS_ID'] for env in told] == ['0', '1']
  assert [env['JAX_NUM_PROCESSES'] for env in told] == ['2', '2']


@pytest.mark.parametrize('place', FEW)
def test_status_75_starts_it_again(cloud, place):
  cloud.plan(codes=[[75, 75], [0, 75], [0, 0]])
  code, out, err = cloud.launch(place)
  assert code == 0, err
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [3, 3]
  # Of pods that live shorter than two looks are apart, nothing is seen.
  for number in [2] if place == 'gke' else range(3):
    assert out.count(f'run {number} of worker 0') == 1, out
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['queued', 'gke', 'slurm'])
def test_retries_end(cloud, place):
  cloud.plan(codes=[[75, 75]] * 9)
  code, _, err = cloud.launch(place, '--retries=1')
  assert code == 75, err
  assert len(cloud.runs()) == 2
  assert cloud.left() == []


class Moody(local.Local):
  """A place where a job ends with 75 three times before it is done."""

  def find(self):
    return None

  def create(self, commit, archive):
    self.looks, self.codes = 0, [75, 75, 75, 0]

  def prepare(self, archive):
    pass

  def start(self):
    pass

  def poll(self):
    # It is seen running, then ended.
    self.looks += 1
    code = None if self.looks % 2 else self.codes.pop(0)
    return backends.Report({'worker-0': code}, started=True)

  def delete(self):
    return ''


@pytest.mark.parametrize(('settled', 'code'), [(0.0, 0), (3600.0, 75)])
def test_retries_count_anew_after_some_time(settled, code):
  run = shell.Shell()
  supervisor = supervise.Supervisor(
    Moody(jobs.make(['-m', 'a'], 'r'), run),
    run,
    supervise.Limits(retries=1, backoff=0.0, poll=0.0, settled=settled),
    lambda: 'commit',
    lambda _: pathlib.Path('archive'),
  )
  assert supervisor() == code


@pytest.mark.parametrize('place', CLOUDS)
def test_preemption_starts_it_again(cloud, place):
  cloud.plan(preempt=2, codes=[['wait', 'wait']] * 2)
  code, _, err = cloud.launch(place)
  assert code == 0, err
  assert len(cloud.runs()) == 3
  assert cloud.left() == []
  if place == 'queued':
    assert err.count('the machines are gone') == 2


def test_the_end_of_slurms_time_is_used_to_save(cloud):
  cloud.plan(time_up=1, codes=[['wait', 'wait']])
  code, out, err = cloud.launch('slurm')
  assert code == 0, out + err
  assert out.count('saved') == 2
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [2, 2]
  assert cloud.left() == []


def test_srun_is_told_of_the_cores_of_a_task(cloud):
  assert cloud.launch('slurm', '--also=--cpus-per-task=7')[0] == 0
  assert cloud.runs(1)[0]['env']['SLURM_CPUS_PER_TASK'] == '7'


def test_a_job_of_slurm_whose_number_was_not_noted_is_found(cloud):
  cloud.plan(ready=-1, slow={'sbatch': 1})
  first = cloud.start('slurm')
  cloud.until(lambda: cloud.state().get('slurm'), 'it is submitted')
  first.kill()
  first.wait()
  cloud.plan()
  code, _, err = cloud.launch('slurm')
  assert code == 0, err
  assert 'attached' in err
  assert cloud.called('sbatch') == 1
  assert [path for path in cloud.left() if '.cache' not in path] == []


@pytest.mark.parametrize(
  ('place', 'status'),
  [*((place, 1) for place in FEW), ('gke', 2), ('slurm', 2)],
)
def test_one_worker_fails(cloud, place, status):
  cloud.plan(codes=[[0, status]])
  code, _, err = cloud.launch(place)
  assert code == status, err
  assert len(cloud.runs()) == 1
  if place in ('local', 'queued'):
    assert f'-1: {status}' in err, err
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['local', 'tpu_vm'])
def test_the_others_of_a_worker_that_failed_are_ended(cloud, place):
  cloud.plan(codes=[[1, 'wait']])
  code, out, err = cloud.launch(place, '--grace=0.2')
  assert code == 1
  assert '-1: killed' in err, err
  assert '| run 0 of worker 0' in out  # Its last words.
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['local', 'tpu_vm'])
def test_the_loss_of_a_worker_that_hangs_starts_all_again(cloud, place):
  # The first notices that the other does not answer, and says so by 75.
  cloud.plan(codes=[[75, 'wait'], [0, 0]])
  code, _, err = cloud.launch(place, '--grace=3')
  assert code == 0, err
  assert 'killed' in err and 'a worker hung and was ended: retry 1' in err
  assert cloud.left() == []


@pytest.mark.parametrize('place', CLOUDS)
def test_the_wait_for_machines_has_an_end(cloud, place):
  cloud.plan(ready=-1)
  code, _, err = cloud.launch(place, '--wait=0.1')
  assert code == 75
  assert 'given up' in err
  assert cloud.left() == []


@pytest.mark.parametrize('place', CLOUDS)
def test_a_refusal_is_one_line(cloud, place):
  cloud.plan(create=['quota'])
  code, _, err = cloud.launch(place)
  assert code == 2
  last = err.splitlines()[-1]
  assert last.startswith('error: '), err
  assert cloud.left() == []


class Slice(shell.Shell):
  """Stands for gcloud: two machines that are there, of which some answer."""

  def __init__(self, answers):
    self.told = ''.join(
      f'launch-worker w-{i} running\n' for i in range(answers)
    )

  def __call__(self, command, whole=False):
    if 'describe' in command:
      content = {'state': {'state': 'ACTIVE'}}
      return shell.Result(0, json.dumps(content), '')
    return shell.Result(255, self.told, 'ssh: Connection timed out')


@pytest.mark.parametrize('answers', [0, 1])
def test_machines_are_gone_only_if_others_are_reached(answers):
  place = tpu.Queued(
    jobs.make(['-m', 'a'], 'gs://b'),
    Slice(answers),
    accelerators.parse('v4-16'),
    'z',
    'p',
  )
  look = place.poll
  silences = [look().silence for _ in range(19)]
  assert len({*silences}) == 1
  if answers:
    with pytest.raises(backends.Gone, match='1 of 2 workers answer'):
      look()
  else:
    assert look().silence == (
      '0 of 2 workers answer (ssh: Connection timed out), but they are there: '
      'this machine may be cut off'
    )


@pytest.mark.parametrize('place', ['tpu_vm', 'queued', 'gke'])
def test_what_somebody_deletes_is_not_made_again(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  process = cloud.start(place)
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  assert cloud.launch(place, '--delete')[0] == 0
  _, err = process.communicate(timeout=20)
  assert process.returncode == 1, err
  assert 'launch: somebody has deleted job (there is no' in err
  assert len(cloud.runs()) == 1
  assert cloud.left() == []


def test_an_expired_login_is_told(cloud):
  cloud.plan(codes=[['wait', 'wait']])
  process = cloud.start('queued')
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  cloud.plan(codes=[['wait', 'wait']], expired=True)
  calls = len(cloud.calls())
  cloud.until(lambda: len(cloud.calls()) > calls + 2 * 5, 'looks')
  cloud.plan()
  (cloud.root / 'go').touch()
  _, err = process.communicate(timeout=20)
  assert process.returncode == 0, err
  assert err.count('launch: not reached since ') == 1, err
  assert ': no answer (gcloud: ERROR: (gcloud) Reauthentication' in err


def test_what_is_seen_late_is_deleted(cloud):
  cloud.plan(lag=3, slow={'create': 0.3})
  process = cloud.start('queued')
  cloud.until(lambda: 'job' in cloud.state().get('tpus', {}), 'it is made')
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 130, err
  assert cloud.left() == []


def test_no_room_is_asked_for_again(cloud):
  cloud.plan(create=['stockout', 'stockout'])
  code, _, err = cloud.launch('tpu_vm')
  assert code == 0, err
  assert err.count('there is no room now') == 2
  assert cloud.left() == []


def test_machines_that_do_not_answer_at_once(cloud):
  cloud.plan(no_ssh=3, no_scp=5)
  code, _, err = cloud.launch('tpu_vm')
  assert code == 0, err
  assert len(cloud.runs()) == 1


def test_code_that_is_not_fetched_at_once(cloud):
  cloud.plan(fetch=3)
  assert cloud.launch('gke')[0] == 0
  assert cloud.left() == []


def test_code_that_is_never_fetched_ends_the_job_and_says_why(cloud):
  cloud.plan(fetch=99)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'launch: JobSet: Failed for a reason\n' in out
  assert 'worker-0, fetch| ERROR: (gcloud.storage.cp) HTTPError 403' in out
  assert cloud.runs() == []
  assert cloud.left() == []


def test_an_image_that_is_not_there_is_told(cloud):
  cloud.plan(image=False)
  code, _, err = cloud.launch('gke', '--wait=0.1')
  assert code == 75
  assert '2 of 2 pods (main: ImagePullBackOff: no such image)' in err, err
  assert cloud.left() == []


def test_a_pod_without_memory_is_not_started_again(cloud):
  cloud.plan(memory=True, codes=[['wait', 'wait']] * 2)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'launch: JobSet: a pod ran out of memory\n' in out
  assert len(cloud.runs()) == 1
  assert cloud.left() == []


def test_what_is_killed_in_a_pod_that_lives_on_had_no_memory(cloud):
  cloud.plan(codes=[[0, 137]] * 2)
  code, out, err = cloud.launch('gke')
  assert code == 1, err
  assert 'worker-1, main| error: killed: out of memory?\n' in out, out
  assert len(cloud.runs()) == 1


PHASES = {
  'create': {'slow': {'create': 0.3}},
  'wait': {'ready': -1},
  'scp': {'slow': {'scp': 60}},
  'install': {'slow': {'ssh': 0.2}},
  'run': {'codes': [['wait', 'wait']]},
  'back off': {'codes': [[75, 75]]},
  'delete': {'slow': {'delete': 0.3}},
}


@pytest.mark.parametrize(
  ('phase', 'sign'),
  [*((phase, signal.SIGINT) for phase in PHASES), ('run', signal.SIGTERM)],
)
def test_a_request_to_stop_leaves_nothing(cloud, phase, sign):
  cloud.plan(**PHASES[phase])
  process = cloud.start('queued', '--backoff=20')

  def due():
    words = [call[3:5] for call in cloud.calls() if len(call) > 4]
    return {
      'create': ['queued-resources', 'create'] in words,
      'wait': words.count(['queued-resources', 'describe']) > 3,
      'scp': ['tpu-vm', 'scp'] in words,
      'install': words.count(['tpu-vm', 'ssh']) == 3,
      'run': bool(cloud.runs(0) and cloud.runs(1)),
      'back off': bool(cloud.runs(1)) and not cloud.processes(),
      'delete': ['queued-resources', 'delete'] in words,
    }[phase]

  cloud.until(due, phase)
  if phase == 'back off':
    time.sleep(0.3)
  process.send_signal(sign)
  _, err = process.communicate(timeout=20)
  expected = 130 if sign == signal.SIGINT else 75
  assert process.returncode == (0 if phase == 'delete' else expected), err
  assert cloud.left() == []
  if phase == 'scp':
    assert not cloud.sleeping()
  if phase == 'run':
    assert '-0, ' in err and '-1: 75' in err, err  # They could save.


@pytest.mark.parametrize('place', FEW)
def test_ctrl_c_lets_the_job_save(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  process = cloud.start(place)
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  if place == 'gke':
    cloud.until(lambda: cloud.called('kubectl', 'logs'), 'it is followed')
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=20)
  assert process.returncode == 130, err
  assert 'saved' in out, out + err
  assert len(cloud.runs()) == 1
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['local', 'gke'])
def test_ctrl_c_twice_does_not_wait(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  process = cloud.start(place, '--grace=60')
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  for pid in cloud.processes():  # They do not hear.
    os.kill(pid, signal.SIGSTOP)
  process.send_signal(signal.SIGINT)
  time.sleep(0.3)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 130, err
  assert cloud.left() == []


@pytest.mark.parametrize('place', FEW)
def test_the_same_command_attaches(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  first = cloud.start(place)
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  first.kill()
  first.wait()
  # The checkout has moved on, which is no matter.
  (cloud.repo / 'more').write_text('')
  second = cloud.start(place)
  time.sleep(0.5)
  (cloud.root / 'go').touch()
  out, err = second.communicate(timeout=20)
  assert second.returncode == 0, err
  assert f'with commit {cloud.commit}: attached' in err
  assert 'Ctrl-C ends and deletes it' in err
  assert 'run 0 of worker 0' in out
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [1, 1]
  # Of the first one, which could not clean up, only its archive.
  assert [path for path in cloud.left() if '.cache' not in path] == []


def test_attaching_finishes_what_was_cut_off(cloud):
  cloud.plan(slow={'scp': 5})
  first = cloud.start('queued')
  cloud.until(
    lambda: any('scp' in call for call in cloud.calls()), 'it is shipped'
  )
  first.kill()
  first.wait()
  cloud.plan()
  code, _, err = cloud.launch('queued')
  assert code == 0, err
  assert 'attached' in err
  assert len(cloud.runs()) == 1
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['local', 'queued'])
def test_another_job_of_the_name_is_refused(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  first = cloud.start(place)
  cloud.until(lambda: cloud.runs(0), 'it runs')
  code, _, err = cloud.launch(place, command=['-m', 'fake_job', 'other'])
  assert code == 2
  assert err == (
    'error: --name: job is there already, for another command or other '
    'machines; choose another name, or delete it with --delete\n'
  )
  assert first.poll() is None
  first.send_signal(signal.SIGINT)
  first.communicate(timeout=20)


@pytest.mark.parametrize('place', ['local', 'queued', 'slurm'])
def test_other_machines_are_another_job(cloud, place):
  assert cloud.launch(place, '--keep')[0] == 0
  flag = '--accelerator=v4-32' if place == 'queued' else '--hosts=3'
  code, _, err = cloud.launch(place, flag)
  assert code == 2
  assert 'is there already, for another command or other machines' in err
  assert cloud.left()  # What runs is not touched.


@pytest.mark.parametrize('place', FEW)
def test_keep_and_delete(cloud, place):
  code, _, err = cloud.launch(place, '--keep')
  assert code == 0, err
  assert 'job is kept' in err
  assert cloud.left()
  code, _, err = cloud.launch(place, '--delete')
  assert code == 0, err
  assert cloud.left() == []
  code, _, err = cloud.launch(place, '--delete')
  assert code == 0
  assert err.startswith('launch: job is not there: ')
  if place == 'queued':
    assert err.endswith(': zone z of project p\n')


@pytest.mark.parametrize('place', FEW)
def test_to_delete_a_job_its_name_is_enough(cloud, place):
  assert cloud.launch(place, '--keep')[0] == 0
  where = [f for f in cloud.arguments(place) if '--workdir' in f]
  if place == 'queued':
    where = ['--zone=z', '--project=p']
  process = cloud.run(f'--backend={place}', '--name=job', *where, '--delete')
  _, err = process.communicate(timeout=20)
  assert process.returncode == 0, err
  assert cloud.left() == []


@pytest.mark.parametrize('place', ['tpu_vm', 'gke'])
def test_ctrl_c_with_keep_lets_it_run(cloud, place):
  cloud.plan(codes=[['wait', 'wait']])
  process = cloud.start(place, '--keep')
  cloud.until(lambda: cloud.runs(0) and cloud.runs(1), 'it runs')
  if place == 'gke':
    cloud.until(lambda: cloud.called('kubectl', 'logs'), 'it is followed')
  process.send_signal(signal.SIGINT)
  # Ends only when nobody holds the pipes any longer, as one who follows would.
  process.communicate(timeout=20)
  assert process.returncode == 130
  kind = 'jobsets' if place == 'gke' else 'tpus'
  assert 'job' in cloud.state()[kind]
  assert len(cloud.processes()) == 2


def test_what_cannot_be_deleted_at_once_is_tried_again(cloud):
  cloud.plan(delete=['error'] * 6)
  code, _, err = cloud.launch('tpu_vm', '--backoff_max=0.01')
  assert code == 0, err
  assert cloud.left() == []


def test_what_cannot_be_deleted_is_said_aloud(cloud):
  cloud.plan(delete=['error'] * 12)
  code, _, err = cloud.launch('tpu_vm', '--backoff_max=0.01')
  assert code == 1
  assert sum('delete' in call for call in cloud.calls()) == 12
  assert 'job MAY STILL COST MONEY' in err.splitlines()[-1]


@pytest.mark.parametrize('place', ['local', 'tpu_vm'])
def test_only_what_is_committed_is_shipped(cloud, place):
  (cloud.repo / 'fake_job.py').write_text('raise SystemExit(3)')
  code, _, err = cloud.launch(place)
  assert code == 2
  assert err == (
    'error: fake_job.py is not committed: commit, or name what to ship, as in '
    '--commit=HEAD\n'
  )
  assert cloud.launch(place, '--commit=HEAD')[0] == 0
  assert cloud.left() == []


@pytest.mark.parametrize('place', FEW)
def test_memory_is_kept_from_growing(cloud, place):
  # One that is named is taken.
  more = ['--env=MALLOC_ARENA_MAX=5'] if place == 'slurm' else []
  assert cloud.launch(place, *more)[0] == 0
  expected = '5' if more else '2'
  assert cloud.runs()[0]['env']['MALLOC_ARENA_MAX'] == expected


def test_the_lock_file_is_installed(cloud):
  assert cloud.launch('tpu_vm', '--keep')[0] == 0
  for worker in '01':
    folder = cloud.root / 'machines' / 'job' / worker / 'launch' / 'job'
    assert (folder / 'pip.log').read_text() == (
      '-m pip install --quiet --requirement requirements.lock --constraint '
      'requirements.lock --editable .[tpu]\n'
    )
