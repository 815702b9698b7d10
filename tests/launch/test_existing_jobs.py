"""Jobs that exist already: attaching, refusing, deleting."""

import pytest

# tpu_vm and queued differ little: one of them suffices.
BACKENDS = ['local', 'queued', 'gke', 'slurm']


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_same_command_attaches(cloud, backend):
  cloud.plan(codes=[['wait', 'wait']])
  first = cloud.start(backend)
  cloud.wait_for_workers()
  first.kill()
  # The checkout may change meanwhile.
  (cloud.repo / 'more').write_text('')
  second = cloud.start(backend)
  cloud.wait_until(lambda: 'attached to job' in second.err, 'it attaches')
  cloud.release()
  code, out, err = second.wait()
  assert code == 0, err
  assert f'attached to job with commit {cloud.commit}' in err
  assert 'Ctrl-C stops and deletes it' in err
  assert 'run 0 of worker 0' in out
  assert [len(cloud.runs(worker)) for worker in (0, 1)] == [1, 1]
  # Except the archive of the first launcher, which could not clean up.
  assert [path for path in cloud.remains() if '.cache' not in path] == []


def test_attaching_completes_an_interrupted_launch(cloud):
  cloud.plan(slow={'scp': 5})
  first = cloud.start('queued')
  cloud.wait_until(
    lambda: any('scp' in call for call in cloud.calls()), 'the code is copied'
  )
  first.kill()
  cloud.plan()
  code, _, err = cloud.launch('queued')
  assert code == 0, err
  assert 'attached to job' in err
  assert len(cloud.runs()) == 1
  assert cloud.remains() == []


def test_a_slurm_job_whose_id_was_not_stored_is_attached_to(cloud):
  cloud.plan(ready=-1, slow={'sbatch': 1})
  first = cloud.start('slurm')
  cloud.wait_until(lambda: cloud.state().get('slurm'), 'it is submitted')
  first.kill()
  cloud.plan()
  code, _, err = cloud.launch('slurm')
  assert code == 0, err
  assert 'attached to job' in err
  assert cloud.count_calls('sbatch') == 1
  assert [path for path in cloud.remains() if '.cache' not in path] == []


def test_another_command_under_the_name_of_a_running_job_is_refused(cloud):
  cloud.plan(codes=[['wait', 'wait']])
  first = cloud.start('local')
  cloud.wait_for_workers()
  code, _, err = cloud.launch('local', command=['-m', 'fake_job', 'other'])
  assert code == 2
  assert err == (
    'error: --name: job exists already, for another command or other machines; '
    'choose another name, or delete it with --delete\n'
  )
  cloud.release()  # The first job is not affected.
  assert first.wait()[0] == 0


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_kept_job_exists_until_it_is_deleted_by_name(cloud, backend):
  code, _, err = cloud.launch(backend, '--keep')
  assert code == 0, err
  assert 'job is kept' in err
  if backend == 'queued':
    for worker in '01':
      folder = cloud.root / 'machines' / 'job' / worker / 'launch' / 'job'
      assert (folder / 'pip.log').read_text() == (
        '-m pip install --quiet --requirement requirements.lock --constraint '
        'requirements.lock --editable .[tpu]\n'
      )

  # It is not touched by a command with other machines.
  by_hosts = backend in ('local', 'slurm')
  other = '--hosts=3' if by_hosts else '--accelerator=v4-32'
  code, _, err = cloud.launch(backend, other)
  assert code == 2
  assert 'exists already, for another command or other machines' in err
  assert cloud.remains()

  place = [f for f in cloud.arguments(backend) if '--workdir' in f]
  if backend == 'queued':
    place = ['--zone=z', '--project=p']
  delete = [f'--backend={backend}', '--name=job', *place, '--delete']
  code, _, err = cloud.start_with(*delete).wait()
  assert code == 0, err
  assert cloud.remains() == []
  code, _, err = cloud.start_with(*delete).wait()
  assert code == 0
  assert err.startswith('launch: job does not exist: ')
  if backend == 'queued':
    assert err.endswith(': zone z of project p\n')


@pytest.mark.parametrize('backend', ['queued', 'gke'])
def test_a_job_deleted_by_another_command_is_not_recreated(cloud, backend):
  cloud.plan(codes=[['wait', 'wait']])
  launcher = cloud.start(backend)
  cloud.wait_for_workers()
  assert cloud.launch(backend, '--delete')[0] == 0
  code, _, err = launcher.wait()
  assert code == 1, err
  assert 'launch: job was deleted by another command (there is no' in err
  assert len(cloud.runs()) == 1
  assert cloud.remains() == []


def test_a_failed_deletion_is_retried(cloud):
  cloud.plan(delete=['error'])
  code, _, err = cloud.launch('tpu_vm', '--backoff_max=0.01')
  assert code == 0, err
  assert 'deleting job failed and is retried: ERROR: UNAVAILABLE' in err
  assert cloud.remains() == []
