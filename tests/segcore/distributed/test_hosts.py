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


def meet(*known, count=None, timeout=20.0, indices=None):
  """What each host got of the roll call: names, or the refusal."""
  port = runs.free_port()
  indices = range(len(known)) if indices is None else indices
  found = [None] * len(known)

  def come(place, index):
    group = rendezvous.ProcessGroup(
      f'127.0.0.1:{port}', count or len(known), index
    )
    try:
      found[place] = rendezvous.connect(group, known[place], timeout).host_names
    except errors.UserError as error:
      found[place] = str(error)

  threads = [
    threading.Thread(target=come, args=pair) for pair in enumerate(indices)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_hosts_that_agree_get_to_know_each_other():
  same = {'jax': '1', 'config': {'seed': 0}}
  assert meet(same, same, same) == [[HERE] * 3] * 3


def test_hosts_that_differ_are_named():
  found = meet(
    *({'jax': '1', 'config': {'a': {'b': 0}}},) * 2,
    {'jax': '2', 'config': {'a': {'b': 3}}},
  )
  assert (
    found
    == [
      f'the hosts differ: jax is 1 on process 0 ({HERE}), process 1 ({HERE}), '
      f'2 on process 2 ({HERE}); config.a.b: 0 -> 3 on process 2 ({HERE}): '
      'make them equal'
    ]
    * 3
  )


def test_absent_hosts_are_named_within_the_time_out():
  start = time.monotonic()
  found = meet({}, {}, count=5, timeout=1.0, indices=(0, 3))
  assert time.monotonic() - start < 5
  assert found[0] == found[1]
  assert found[0].startswith('processes 1, 2, 4 of 5 did not report to 127.')
  assert f'within 1 s (process 0 ({HERE}), process 3 ({HERE}) did)' in found[0]


def test_an_absent_process_0_is_named_by_the_others():
  (found,) = meet({}, count=2, timeout=0.5, indices=(1,))
  assert found.startswith('process 0 of 2 did not answer at 127.0.0.1:')


def test_two_hosts_of_one_number_are_refused():
  found = meet({}, {}, {}, indices=(0, 1, 1), count=3)
  assert f'process 1 ({HERE}) came where process 1 ({HERE}) is' in found[0]
  assert len({*found}) == 1


def test_other_numbers_of_processes_are_a_difference():
  told = {
    'process 0 (a)': {'number of processes': 2},
    'process 1 (b)': {'number of processes': 4},
  }
  assert host_settings.describe_differences(told) == (
    'the hosts differ: number of processes is 2 on process 0 (a), 4 on process '
    '1 (b): make them equal'
  )


def test_strangers_at_the_door_do_not_disturb():
  port = runs.free_port()
  group = rendezvous.ProcessGroup(f'127.0.0.1:{port}', 2, 0)
  found = []
  thread = threading.Thread(
    target=lambda: found.append(rendezvous.connect(group, {}, timeout=20.0))
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
  rendezvous.connect(group._replace(index=1), {}, timeout=20.0)
  thread.join()
  assert found[0].host_names == [HERE] * 2


def test_facts_name_code_config_and_libraries():
  found = host_settings.shared_settings({'seed': 3}, stages='all')
  assert found['config'] == {'seed': 3}
  assert {'stages', 'code', 'jax', 'orbax-checkpoint', 'numpy'} <= {*found}
  assert 'not installed' not in [
    found[name] for name in host_settings.LIBRARIES
  ]
  assert found == host_settings.shared_settings({'seed': 3}, stages='all')


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
def test_hosts_that_are_named(monkeypatch):
  set_variables(
    monkeypatch,
    JAX_COORDINATOR_ADDRESS='a:1234',
    JAX_NUM_PROCESSES='4',
    JAX_PROCESS_ID='3',
  )
  assert rendezvous.discover(None, 1.0) == ('a:1234', 4, 3, None)
  assert rendezvous.discover(99, 1.0) == ('a:99', 4, 3, None)
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a')
  assert rendezvous.discover(None, 1.0).address == 'a:8482'
  monkeypatch.setenv('JAX_PROCESS_ID', '4')
  with pytest.raises(errors.UserError, match='found 4, expected 0 to 3'):
    rendezvous.discover(None, 1.0)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '1')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  assert rendezvous.discover(None, 1.0) is None


@pytest.mark.usefixtures('_no_variables')
def test_a_tpu_is_known_by_jax_and_not_by_files(monkeypatch):
  # A machine with /dev/vfio but without TPU chips on its bus: a GPU.
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', False)
  assert rendezvous.discover(None, 1.0) is None
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
  assert rendezvous.discover(None, 1.0) == ('10.0.0.1:8482', 2, 1, None)
  assert rendezvous.discover(7000, 1.0).address == '10.0.0.1:7000'


@pytest.mark.usefixtures('_no_variables')
def test_under_slurm_only_tasks_of_srun_are_a_group(monkeypatch):
  monkeypatch.setattr(clusters.GceTpuCluster, 'is_env_present', lambda: False)
  set_variables(monkeypatch, SLURM_NTASKS='2', SLURM_JOB_ID='4097')
  assert (
    rendezvous.discover(None, 1.0) is None
  )  # In a batch script, outside of srun.
  set_variables(
    monkeypatch,
    SLURM_STEP_NODELIST='n[3-4]',
    SLURM_PROCID='1',
    SLURM_LOCALID='0',
    SLURM_STEP_NUM_NODES='2',
  )
  assert rendezvous.discover(None, 1.0) == ('n3:61441', 2, 1, None)
  # Of several tasks on a node each has a device.
  set_variables(monkeypatch, SLURM_NTASKS='8', SLURM_LOCALID='3')
  assert rendezvous.discover(None, 1.0).local_device_ids == (3,)


@pytest.mark.usefixtures('_no_variables')
@pytest.mark.parametrize('devices', [None, (3,)])
def test_jax_is_told_all_and_finds_out_nothing(monkeypatch, devices):
  told = {}
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda address, **more: told.update(more),
  )
  hosts._start_among(
    rendezvous.ProcessGroup('n3:61441', 2, 1, devices), command.HostOptions()
  )
  # As SLURM, jax would take one device of the node.
  assert told['cluster_detection_method'] == 'deactivate'
  assert told['local_device_ids'] == devices


def test_hosts_are_watched_before_jax_joins_them(monkeypatch):
  happened = []
  group = rendezvous.ProcessGroup('a:1', 2, 1)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: False)
  monkeypatch.setattr(rendezvous, 'discover', lambda *_: group)
  monkeypatch.setattr(rendezvous, 'connect', lambda *_: 'links')
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **__: happened.append('jax')
  )

  class Watching:
    def __init__(self, links, patience, stall):
      happened.append((links, patience, stall))

    def close(self):
      happened.append('left')

  monkeypatch.setattr(heartbeat, 'HeartbeatMonitor', Watching)
  config = f'--config={runs.ROOT}/configs/ddep_shapes.py'
  with hosts.joined(command.parse(['main', config, '--stall_timeout=7'])):
    happened.append('work')
  assert happened == [('links', 60.0, 7.0), 'jax', 'work', 'left']


def test_flags_say_where_and_how_long():
  config = f'--config={runs.ROOT}/configs/ddep_shapes.py'
  flags = ('--coordinator_port=9', '--init_timeout=7', '--peer_timeout=5')
  flags = (*flags, '--stall_timeout=0')
  assert command.parse(['main', config, *flags]).hosts == (9, 7.0, 5.0, 0.0)
  with pytest.raises(errors.UserError, match='coordinator_port'):
    command.parse(['main', config, '--coordinator_port=0'])


class Started:
  """Hosts without devices, in processes of their own."""

  def __init__(self, *endings, stall=0.0):
    port = runs.free_port()
    self.processes = [
      subprocess.Popen(
        [
          *(sys.executable, '-m', 'tests.support.fake_host'),
          *(str(i), str(len(endings)), str(port), ending, str(stall)),
        ],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for i, ending in enumerate(endings)
    ]

  def wait_until_all_are_there(self):
    for process in self.processes:
      assert process.stdout.readline() == 'all are there\n'

  def endings(self, but=()):
    """Last line and exit status of each."""
    found = []
    for i, process in enumerate(self.processes):
      if i not in but:
        out, _ = process.communicate(timeout=60)
        found.append((out.strip().rpartition('\n')[2], process.returncode))
    return found


AGAIN = '; run the same command again on all hosts to go on'


def test_a_host_that_is_killed_or_hangs_ends_all_and_is_named():
  killed = Started('waits', 'waits', 'waits')
  stopped = Started('waits', 'waits')
  killed.wait_until_all_are_there()
  stopped.wait_until_all_are_there()
  killed.processes[1].kill()
  stopped.processes[0].send_signal(signal.SIGSTOP)
  text = f'error: process 1 ({HERE}) is gone: it was killed, or crashed'
  assert killed.endings(but=[1]) == [(text + AGAIN, 1)] * 2
  text = f'error: process 0 ({HERE}) did not answer for 3 s: hung, stopped or '
  assert stopped.endings(but=[0]) == [(f'{text}cut off{AGAIN}', 75)]
  stopped.processes[0].kill()
  killed.endings()
  stopped.endings()


def test_a_host_that_stalls_is_named_when_nobody_comes_further():
  group = Started('works for a while', 'works', 'stalls', stall=1.0)
  group.wait_until_all_are_there()
  time.sleep(1.5)
  # As long as somebody comes further, nobody minds.
  assert [process.poll() for process in group.processes] == [None] * 3
  group.processes[1].send_signal(signal.SIGUSR1)
  text = (
    f'error: nobody has come further for 1 s: process 2 ({HERE}) stopped '
    'first, after step 1; where more time is needed, give it by '
    f'--stall_timeout{AGAIN}'
  )
  assert group.endings() == [(text, 75)] * 3


def test_a_host_that_fails_takes_along_those_that_are_not_done():
  mistaken = Started('waits', 'mistake')
  crashed = Started('crash', 'waits', 'done')
  for group in (mistaken, crashed):
    group.wait_until_all_are_there()
  text = f'error: process 1 ({HERE}) stopped: the moon is missing'
  assert mistaken.endings() == [(text, 2), ('', 2)]
  text = f'error: process 0 ({HERE}) stopped: ZeroDivisionError: by 0'
  assert crashed.endings() == [('', 1), (text + AGAIN, 1), ('', 0)]
