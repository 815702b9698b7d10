"""Requests to stop the launcher, by Ctrl-C and SIGTERM, at any moment."""

import os
import signal

import pytest


def has_called(cloud, *words, times=1):
  """Returns whether gcloud was called with these two words so often."""
  calls = [call[3:5] for call in cloud.calls() if len(call) > 4]
  return calls.count([*words]) >= times


def is_backing_off(cloud, launcher):
  del cloud
  return 'retry 1' in launcher.err


# Scenario of each phase of a launch, and the condition that it has begun.
# Seconds that no other process of the machine sleeps.
_SLOW_COPY = 60.734
PHASES = {
  'create': (
    {'slow': {'create': 0.3}},
    lambda cloud, _: has_called(cloud, 'queued-resources', 'create'),
  ),
  'wait': (
    {'ready': -1},
    lambda cloud, _: has_called(cloud, 'queued-resources', 'describe', times=4),
  ),
  'copy the code': (
    {'slow': {'scp': _SLOW_COPY}},
    lambda cloud, _: has_called(cloud, 'tpu-vm', 'scp'),
  ),
  'install': (
    {'slow': {'ssh': 0.2}},
    lambda cloud, _: has_called(cloud, 'tpu-vm', 'ssh', times=3),
  ),
  'run': (
    {'codes': [['wait', 'wait']]},
    lambda cloud, _: cloud.runs(0) and cloud.runs(1),
  ),
  'back off': ({'codes': [[75, 75]]}, is_backing_off),
  'delete': (
    {'slow': {'delete': 0.3}},
    lambda cloud, _: has_called(cloud, 'queued-resources', 'delete'),
  ),
}


@pytest.mark.parametrize(
  ('phase', 'number'),
  [*((phase, signal.SIGINT) for phase in PHASES), ('run', signal.SIGTERM)],
)
def test_a_request_to_stop_deletes_everything(cloud, phase, number):
  scenario, is_due = PHASES[phase]
  cloud.plan(**scenario)
  launcher = cloud.start('queued', '--backoff=20')
  cloud.wait_until(lambda: is_due(cloud, launcher), phase)
  launcher.interrupt(number)
  code, out, err = launcher.wait()
  expected = 130 if number == signal.SIGINT else 75
  assert code == (0 if phase == 'delete' else expected), err
  assert cloud.remains() == []
  if phase == 'copy the code':
    assert not cloud.has_sleeping_child(_SLOW_COPY)
  if phase == 'run':  # The workers could save.
    assert '-0, ' in err and '-1: 75' in err, err
    assert 'saved' in out, out


def test_machines_that_become_visible_late_are_deleted(cloud):
  cloud.plan(lag=3, slow={'create': 0.3})
  launcher = cloud.start('queued')
  cloud.wait_until(lambda: 'job' in cloud.state().get('tpus', {}), 'created')
  launcher.interrupt()
  code, _, err = launcher.wait()
  assert code == 130, err
  assert cloud.remains() == []


def start_waiting_job(cloud, backend, *flags):
  """Starts a job whose workers wait; returns once the launcher follows it."""
  cloud.plan(codes=[['wait', 'wait']])
  launcher = cloud.start(backend, *flags)
  cloud.wait_for_workers()
  if backend == 'gke':
    # Its pods start before the launcher knows that the job runs.
    cloud.wait_until(lambda: cloud.count_calls('kubectl', 'logs'), 'followed')
  return launcher


@pytest.mark.parametrize('backend', ['local', 'gke', 'slurm'])
def test_ctrl_c_lets_the_job_save(cloud, backend):
  launcher = start_waiting_job(cloud, backend)
  launcher.interrupt()
  code, out, err = launcher.wait()
  assert code == 130, err
  assert 'saved' in out, out + err
  assert len(cloud.runs()) == 1
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', ['local', 'gke'])
def test_another_ctrl_c_kills_the_job(cloud, backend):
  launcher = start_waiting_job(cloud, backend, '--grace=60')
  for pid in cloud.processes():  # They do not react to SIGTERM.
    os.kill(pid, signal.SIGSTOP)
  launcher.interrupt()
  cloud.wait_until(lambda: 'Ctrl-C once more' in launcher.err, 'it waits')
  assert launcher.process.poll() is None
  launcher.interrupt()
  code, _, err = launcher.wait()
  assert code == 130, err
  assert cloud.remains() == []


@pytest.mark.parametrize('backend', ['tpu_vm', 'gke'])
def test_ctrl_c_with_keep_lets_the_job_run(cloud, backend):
  launcher = start_waiting_job(cloud, backend, '--keep')
  launcher.interrupt()
  # The output ends only when no process holds it any longer: none follows the
  # log.
  code, _, _ = launcher.wait()
  assert code == 130
  kind = 'jobsets' if backend == 'gke' else 'tpus'
  assert 'job' in cloud.state()[kind]
  assert len(cloud.processes()) == 2
