"""The scripts that run on workers, run here by bash."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from launch import job as jobs
from launch import worker

BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def run_bash(script):
  return subprocess.run(['bash', '-c', script], capture_output=True, text=True)


@pytest.mark.parametrize(
  ('command', 'is_signaled', 'code'),
  [
    ('true', False, 0),
    ('bash -c "exit 3"', False, 3),
    # Ended by SIGTERM before it installed a handler; and two with a handler.
    ('sleep 60', True, 75),
    ('bash -c \'trap "exit 75" TERM; while :; do sleep 0.01; done\'', True, 75),
    ('bash -c \'trap "exit 2" TERM; while :; do sleep 0.01; done\'', True, 2),
  ],
)
def test_waiting_for_a_child_yields_its_exit_status(command, is_signaled, code):
  signal = '(sleep 0.1; kill -TERM $$) &\n' if is_signaled else ''
  script = f'{signal}{command} &\n{worker.wait_for_child_script()}echo "$code"'
  assert run_bash(script).stdout == f'{code}\n'


@pytest.mark.parametrize(
  ('boot', 'state'), [(BOOT, 'running'), ('another', 'lost')]
)
def test_a_process_id_is_valid_until_a_reboot(tmp_path, boot, state):
  # This process plays the one that got the id after a reboot.
  (tmp_path / 'pid').write_text(f'{os.getpid()} {boot}\n')
  folder = worker.Folder(str(tmp_path), name='w-0')
  printed = run_bash(worker.print_state_script(folder)).stdout
  assert worker.parse_worker_states(printed) == {'w-0': state}
  if state == 'lost':  # Otherwise this process would be signaled.
    assert run_bash(worker.stop_job_script(folder)).returncode == 0


def test_a_killed_job_can_be_started_again(tmp_path):
  folder = worker.Folder(str(tmp_path), '.', sys.executable, 'w-0')
  command = ('-c', 'import time; time.sleep(60)')
  start = worker.start_job_script(folder, jobs.Job('a', command, 'r'))

  def wait_until(state):
    end = time.monotonic() + 20
    while (
      f' {state}\n' not in run_bash(worker.print_state_script(folder)).stdout
    ):
      assert time.monotonic() < end, state
      time.sleep(0.01)

  for _ in range(2):
    assert run_bash(start).returncode == 0
    wait_until('running')
    run_bash(worker.stop_job_script(folder, force=True))
    wait_until('lost')
  assert (tmp_path / 'log').read_text() == ''


def test_states_are_parsed_among_other_lines():
  text = (
    'Using ssh batch size of 1.\nlaunch-worker t1v-n-a-w-10 0\n'
    'launch-worker t1v-n-a-w-2 running\nlaunch-worker broken\n'
  )
  states = worker.parse_worker_states(text)
  assert list(states.items()) == [
    ('t1v-n-a-w-2', 'running'),
    ('t1v-n-a-w-10', '0'),
  ]
  assert worker.worker_exit_codes(states) == {
    't1v-n-a-w-2': None,
    't1v-n-a-w-10': 0,
  }
