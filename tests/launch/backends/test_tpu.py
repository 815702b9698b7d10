"""TPU VMs of which not all workers answer."""

import json

import pytest

from launch import accelerators, backends, shell
from launch import job as jobs
from launch.backends import tpu, tpu_api


class FakeGcloud(shell.Shell):
  """Two machines that exist, of which some answer."""

  def __init__(self, num_answers):
    self.states = ''.join(
      f'launch-worker w-{i} running\n' for i in range(num_answers)
    )

  def __call__(self, command, creates=False):
    if 'describe' in command:
      content = {'state': {'state': 'ACTIVE'}}
      return shell.Result(0, json.dumps(content), '')
    return shell.Result(255, self.states, 'ssh: Connection timed out')


@pytest.mark.parametrize('num_answers', [0, 1])
def test_machines_are_lost_only_if_others_can_be_reached(num_answers):
  job = jobs.job_from_command(['-m', 'a'], 'gs://b')
  slice_of_two = accelerators.parse_accelerator('v4-16')
  api = tpu_api.QueuedResourceApi(job, slice_of_two, 'z', 'p')
  backend = tpu.Tpu(api, FakeGcloud(num_answers))
  outages = [backend.poll().outage for _ in range(19)]
  assert len({*outages}) == 1
  if num_answers:
    with pytest.raises(
      backends.MachinesLostError, match='1 of 2 workers answer'
    ):
      backend.poll()
  else:
    assert backend.poll().outage == (
      '0 of 2 workers answer (ssh: Connection timed out), but they exist: this '
      'machine may be offline'
    )
