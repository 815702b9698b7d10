"""Rendezvous and heartbeats of hosts, among threads and bare processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from runtime import errors
from segcore.distributed import heartbeat, host_settings, rendezvous
from segcore.experiment import command, hosts
from tests.support import runs

HERE = socket.gethostname()


def connect_hosts(*settings, count=None, timeout=20.0, indices=None):
  """Returns what each host got: the names of all, or an error message."""
  port = runs.free_port()
  indices = range(len(settings)) if indices is None else indices
  results = [None] * len(settings)

  def connect(place, index):
    group = rendezvous.ProcessGroup(
      f'127.0.0.1:{port}', count or len(settings), index
    )
    try:
      connections = rendezvous.connect_processes(
        group, settings[place], timeout
      )
      results[place] = connections.host_names
    except errors.UserError as error:
      results[place] = str(error)

  threads = [
    threading.Thread(target=connect, args=pair) for pair in enumerate(indices)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return results


def test_hosts_with_equal_settings_connect():
  same = {'jax': '1', 'config': {'seed': 0}}
  assert connect_hosts(same, same, same) == [[HERE] * 3] * 3


def test_settings_that_differ_are_named():
  majority = {'jax': '1', 'config': {'a': {'b': 0}}}
  other = {'jax': '2', 'config': {'a': {'b': 3}}}
  message = (
    'the hosts differ, make them equal:\n'
    f'- jax is 1 on process 0 ({HERE}), process 1 ({HERE}), 2 on process 2 '
    f'({HERE})\n'
    f'- config.a.b: 0 -> 3 on process 2 ({HERE})'
  )
  assert connect_hosts(majority, majority, other) == [message] * 3


def test_missing_hosts_are_named_at_the_timeout():
  start = time.monotonic()
  messages = connect_hosts({}, {}, count=5, timeout=1.0, indices=(0, 3))
  assert time.monotonic() - start < 5
  assert messages[0] == messages[1]
  assert messages[0].startswith('processes 1, 2, 4 of 5 did not report to 127.')
  assert (
    f'within 1 s (process 0 ({HERE}), process 3 ({HERE}) did)' in messages[0]
  )


def test_missing_process_0_is_named_by_the_others():
  (message,) = connect_hosts({}, count=2, timeout=0.5, indices=(1,))
  assert message.startswith('process 0 of 2 did not answer at 127.0.0.1:')


def test_two_processes_of_one_number_are_refused():
  messages = connect_hosts({}, {}, {}, indices=(0, 1, 1), count=3)
  both = f'got process 1 ({HERE}) and process 1 ({HERE}): '
  assert both in messages[0]
  assert len({*messages}) == 1


def test_numbers_of_processes_that_differ():
  settings = {
    'process 0 (a)': {'number of processes': 2},
    'process 1 (b)': {'number of processes': 4},
  }
  assert host_settings.describe_host_differences(settings) == (
    'the hosts differ, make them equal:\n'
    '- number of processes is 2 on process 0 (a), 4 on process 1 (b)'
  )


def test_connections_of_other_programs_are_ignored():
  port = runs.free_port()
  group = rendezvous.ProcessGroup(f'127.0.0.1:{port}', 2, 0)
  results = []
  thread = threading.Thread(
    target=lambda: results.append(
      rendezvous.connect_processes(group, {}, timeout=20.0)
    )
  )
  thread.start()
  for text in (b'GET / HTTP/1.1\r\n\r\n', b'{"process": 1}\n', b'', b'[1]\n'):
    while True:
      try:
        with socket.create_connection(('127.0.0.1', port)) as stranger:
          stranger.sendall(text)
        break
      except ConnectionRefusedError:
        time.sleep(0.01)
  rendezvous.connect_processes(group._replace(index=1), {}, timeout=20.0)
  thread.join()
  assert results[0].host_names == [HERE] * 2


def test_shared_settings_name_code_config_and_libraries():
  settings = host_settings.shared_host_settings({'seed': 3}, stages='all')
  assert settings['config'] == {'seed': 3}
  assert {'stages', 'code', 'jax', 'orbax-checkpoint', 'numpy'} <= {*settings}
  assert 'not installed' not in [
    settings[name] for name in host_settings.LIBRARIES
  ]
  assert settings == host_settings.shared_host_settings(
    {'seed': 3}, stages='all'
  )


@pytest.fixture
def _no_variables(monkeypatch):
  for name in os.environ:
    if name.startswith(('JAX_COORD', 'JAX_NUM_', 'JAX_PROCESS', 'TPU_')):
      monkeypatch.delenv(name)
    if name.startswith('SLURM_'):
      monkeypatch.delenv(name)


def set_variables(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


@pytest.mark.usefixtures('_no_variables')
def test_hosts_given_by_variables(monkeypatch):
  set_variables(
    monkeypatch,
    JAX_COORDINATOR_ADDRESS='a:1234',
    JAX_NUM_PROCESSES='4',
    JAX_PROCESS_ID='3',
  )
  assert rendezvous.discover_process_group(None, 1.0) == ('a:1234', 4, 3, None)
  assert rendezvous.discover_process_group(99, 1.0) == ('a:99', 4, 3, None)
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a')
  assert rendezvous.discover_process_group(None, 1.0).address == 'a:8482'
  monkeypatch.setenv('JAX_PROCESS_ID', '4')
  with pytest.raises(errors.UserError, match='expected 0 to 3, .* got 4'):
    rendezvous.discover_process_group(None, 1.0)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '1')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  assert rendezvous.discover_process_group(None, 1.0) is None


@pytest.mark.usefixtures('_no_variables')
def test_tpus_are_detected_on_the_bus_and_not_by_files(monkeypatch):
  # A machine with /dev/vfio but without TPU chips on its bus: a GPU.
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', False)
  assert rendezvous.discover_process_group(None, 1.0) is None
  metadata = {
    'agent-worker-number': '1',
    'worker-network-endpoints': 'x:y:10.0.0.1,x:y:10.0.0.2',
    'tpu-env': '',
  }
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  monkeypatch.setattr(
    cloud_tpu_cluster, 'get_metadata', lambda key: (metadata[key], 200)
  )
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
  assert rendezvous.discover_process_group(None, 1.0) == (
    '10.0.0.1:8482',
    2,
    1,
    None,
  )
  assert rendezvous.discover_process_group(7000, 1.0).address == '10.0.0.1:7000'


@pytest.mark.usefixtures('_no_variables')
def test_under_slurm_only_tasks_of_srun_are_processes_of_a_run(monkeypatch):
  monkeypatch.setattr(clusters.GceTpuCluster, 'is_env_present', lambda: False)
  set_variables(monkeypatch, SLURM_NTASKS='2', SLURM_JOB_ID='4097')
  # In a batch script, outside of srun.
  assert rendezvous.discover_process_group(None, 1.0) is None
  set_variables(
    monkeypatch,
    SLURM_STEP_NODELIST='n[3-4]',
    SLURM_PROCID='1',
    SLURM_LOCALID='0',
    SLURM_STEP_NUM_NODES='2',
  )
  assert rendezvous.discover_process_group(None, 1.0) == (
    'n3:61441',
    2,
    1,
    None,
  )
  # Several tasks share a node, and each has one of its devices.
  set_variables(monkeypatch, SLURM_NTASKS='8', SLURM_LOCALID='3')
  assert rendezvous.discover_process_group(None, 1.0).local_device_ids == (3,)


@pytest.mark.usefixtures('_no_variables')
@pytest.mark.parametrize('devices', [None, (3,)])
def test_jax_gets_all_arguments_and_detects_nothing(monkeypatch, devices):
  arguments = {}
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda address, **more: arguments.update(more),
  )
  hosts._start_among(
    rendezvous.ProcessGroup('n3:61441', 2, 1, devices), command.HostOptions()
  )
  # By its detection of SLURM, jax would take one device of the node.
  assert arguments['cluster_detection_method'] == 'deactivate'
  assert arguments['local_device_ids'] == devices


def test_monitoring_starts_before_jax(monkeypatch):
  events = []
  group = rendezvous.ProcessGroup('a:1', 2, 1)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: False)
  monkeypatch.setattr(rendezvous, 'discover_process_group', lambda *_: group)
  monkeypatch.setattr(rendezvous, 'connect_processes', lambda *_: 'connections')
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **__: events.append('jax')
  )

  class Monitor:
    def __init__(self, *arguments):
      events.append(arguments)

    def close(self):
      events.append('closed')

  monkeypatch.setattr(heartbeat, 'HeartbeatMonitor', Monitor)
  config = f'--config={runs.ROOT}/configs/ddep_shapes.py'
  with hosts.joined_hosts(
    command.parse_command(['main', config, '--stall_timeout=7'])
  ):
    events.append('work')
  assert events == [('connections', 60.0, 7.0), 'jax', 'work', 'closed']


def test_flags_set_port_and_timeouts():
  config = f'--config={runs.ROOT}/configs/ddep_shapes.py'
  flags = ('--coordinator_port=9', '--init_timeout=7', '--peer_timeout=5')
  flags = (*flags, '--stall_timeout=0')
  assert command.parse_command(['main', config, *flags]).hosts == (
    9,
    7.0,
    5.0,
    0.0,
  )
  with pytest.raises(errors.UserError, match='coordinator_port'):
    command.parse_command(['main', config, '--coordinator_port=0'])


class FakeHosts:
  """Processes of `tests.support.fake_host`, which use no devices."""

  def __init__(self, *behaviors, stall_timeout=0.0):
    port = runs.free_port()
    self.processes = [
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'tests.support.fake_host',
          str(i),
          str(len(behaviors)),
          str(port),
          behavior,
          str(stall_timeout),
        ],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for i, behavior in enumerate(behaviors)
    ]

  def wait_until_connected(self):
    for process in self.processes:
      assert process.stdout.readline() == 'connected\n'

  def results(self, exclude=()):
    """Returns the last line and the exit status of each."""
    results = []
    for i, process in enumerate(self.processes):
      if i not in exclude:
        out, _ = process.communicate(timeout=60)
        results.append((out.strip().rpartition('\n')[2], process.returncode))
    return results


AGAIN = '; run the same command again on all hosts to continue'


@pytest.mark.slow
def test_killed_and_suspended_hosts_end_all_and_are_named():
  killed = FakeHosts('waits', 'waits', 'waits')
  stopped = FakeHosts('waits', 'waits')
  killed.wait_until_connected()
  stopped.wait_until_connected()
  killed.processes[1].kill()
  stopped.processes[0].send_signal(signal.SIGSTOP)
  text = f'error: process 1 ({HERE}) is gone: it was killed, or crashed'
  assert killed.results(exclude=[1]) == [(text + AGAIN, 1)] * 2
  text = f'error: process 0 ({HERE}) did not answer for 3 s: hung, stopped or '
  assert stopped.results(exclude=[0]) == [(f'{text}cut off{AGAIN}', 75)]
  stopped.processes[0].kill()
  killed.results()
  stopped.results()


def test_stalled_host_is_named_once_no_host_makes_progress():
  group = FakeHosts('works for a while', 'works', 'stalls', stall_timeout=1.0)
  group.wait_until_connected()
  time.sleep(1.5)
  # One process still makes progress.
  assert [process.poll() for process in group.processes] == [None] * 3
  group.processes[1].send_signal(signal.SIGUSR1)
  text = (
    f'error: no process has made progress for 1 s: process 2 ({HERE}) stopped '
    'first, after step 1; if it needs more time, raise --stall_timeout'
    f'{AGAIN}'
  )
  assert group.results() == [(text, 75)] * 3


@pytest.mark.slow
def test_failing_host_ends_those_that_are_not_done():
  user_error = FakeHosts('waits', 'user error')
  crashed = FakeHosts('crash', 'waits', 'done')
  for group in (user_error, crashed):
    group.wait_until_connected()
  text = f'error: process 1 ({HERE}) stopped: the data is missing'
  assert user_error.results() == [(text, 2), ('', 2)]
  text = f'error: process 0 ({HERE}) stopped: ZeroDivisionError: by 0'
  assert crashed.results() == [('', 1), (text + AGAIN, 1), ('', 0)]
