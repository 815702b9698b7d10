"""What the launcher would do: golden texts, quoting, refusals. Nothing is run.

To write the golden texts anew: LAUNCH_GOLDEN=write, and look at the difference.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from launch import __main__ as command_line
from launch import accelerators, shell, supervise, worker
from launch import job as jobs
from launch.backends import slurm
from runtime import errors, exit_status
from tests.support import launching

GOLDEN = pathlib.Path(__file__).parent / 'golden'
COMMAND = ['-m', 'ddep.main', "--config=configs/a.py:x='a b'", 'c;$d']
FLAGS = {
  'local': ['--workdir=/runs/a b', '--hosts=1'],
  'tpu_vm': [
    '--accelerator=v4-8',
    *('--zone=us-central2-b', '--project=mine', '--workdir=gs://bucket/run'),
  ],
  'queued': [
    *('--accelerator=v5e-64', '--provisioning=spot', '--zone=us-west4-a'),
    *('--project=mine', '--workdir=gs://bucket/run', '--also=--network=a'),
  ],
  'gke': [
    *('--accelerator=tpu7x-128', '--provisioning=spot', '--context=cluster'),
    *('--namespace=team', '--service_account=trainer'),
    '--workdir=gs://bucket/run',
  ],
  'slurm': [
    *('--hosts=2', '--gres=gpu:8', '--partition=long', '--time=24:00:00'),
    *('--workdir=/shared/50% off', '--also=--qos=a b'),
  ],
}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  made = launching.Cloud(tmp_path)
  monkeypatch.chdir(made.repo)
  monkeypatch.setenv('PATH', made.environment['PATH'])
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.setenv('FAKE_CLOUD', str(tmp_path))
  return made


def run(capfd, *arguments):
  code = command_line.main(arguments)
  out, err = capfd.readouterr()
  return code, out, err


def shown(capfd, place, *more):
  flags = [f'--backend={place}', *FLAGS[place], '--name=run', '--env=DATA=a b']
  code, out, err = run(capfd, *flags, *more, '--dry_run', '--', *COMMAND)
  assert (code, err) == (0, '')
  return out


@pytest.mark.parametrize('place', list(FLAGS))
def test_a_dry_run_says_all_and_touches_nothing(cloud, capfd, place):
  before = sorted(cloud.root.rglob('*'))
  text = shown(capfd, place)
  assert sorted(cloud.root.rglob('*')) == before
  assert not pathlib.Path('/home/me').exists()
  text = text.replace(cloud.commit, 'c' * 40).replace(
    cloud.commit[:12], 'c' * 12
  )
  text = text.replace(sys.executable, '/venv/bin/python')
  path = GOLDEN / f'launch_{place}.txt'
  if os.environ.get('LAUNCH_GOLDEN') == 'write':
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  assert text == path.read_text()


def commands(text):
  """The command lines of a dry run."""
  steps = [
    step.partition('\n')[2] for step in re.split(r'\n# \d+\. ', text)[1:]
  ]
  return [shlex.split(step) for step in steps]


def test_what_is_done_is_what_a_dry_run_says(tmp_path, capfd, monkeypatch):
  cloud = launching.Cloud(tmp_path)
  arguments = cloud.arguments('queued')
  assert cloud.launch('queued')[0] == 0
  monkeypatch.chdir(cloud.repo)
  monkeypatch.setenv('HOME', cloud.environment['HOME'])
  _, out, _ = run(capfd, '--dry_run', *arguments)
  planned = commands(out)
  for call in cloud.calls():
    if 'tail -c +' in call[-4]:  # From where it has read to.
      assert call[-4].endswith('/log 2> /dev/null | head -c 1000000\n')
    else:
      assert call in planned, call
  verbs = [call[4] for call in cloud.calls()]
  assert verbs[:2] == ['describe', 'create']
  assert verbs[-1] == 'delete'


def test_a_manifest_is_yaml_and_kubernetes_leaves_it_alone(cloud, capfd):
  text = shown(capfd, 'gke')
  content = text[text.index('{\n') : text.index('\n}\n') + 3]
  manifest = yaml.safe_load(content)
  assert manifest == json.loads(content)
  job = manifest['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  # tpu7x-128: 64 chips, 16 hosts.
  assert (job['completions'], job['parallelism']) == (16, 16)
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu7x',
    'cloud.google.com/gke-tpu-topology': '4x4x4',
    'cloud.google.com/gke-spot': 'true',
  }
  main = pod['containers'][0]
  assert main['resources']['limits'] == {'google.com/tpu': 4}
  script = main['command'][2]
  assert '$' not in script.replace('$$', '')
  assert shlex.join(COMMAND) in script.replace('$$', '$')


@pytest.mark.parametrize(
  ('name', 'expected'),
  [  # Hosts, chips a host, topology, type: from the pages of each generation.
    ('v4-8', (1, 4, '2x2x1', 'v4-8')),
    ('v4-32', (4, 4, '2x2x4', 'v4-32')),
    ('v5e-1', (1, 1, '1x1', 'v5litepod-1')),
    ('v5e-8', (1, 8, '2x4', 'v5litepod-8')),
    ('v5litepod-16', (4, 4, '4x4', 'v5litepod-16')),
    ('v5e-64', (16, 4, '8x8', 'v5litepod-64')),
    ('v5e-256', (64, 4, '16x16', 'v5litepod-256')),
    ('v5p-128', (16, 4, '4x4x4', 'v5p-128')),
    ('v6e-256', (64, 4, '16x16', 'v6e-256')),
    ('tpu7x-8', (1, 4, '2x2x1', 'tpu7x-8')),
  ],
)
def test_accelerators(name, expected):
  found = accelerators.parse(name)
  assert expected == (
    found.hosts,
    found.chips_per_host,
    found.topology,
    found.type,
  )


def test_every_topology_has_its_chips():
  for name, generation in accelerators.GENERATIONS.items():
    for size in generation.topologies:
      found = accelerators.parse(f'{name}-{size}')
      sides = 1
      for side in found.topology.split('x'):
        sides *= int(side)
      assert found.chips == sides
      assert found.hosts * found.chips_per_host == sides


LOCAL = ['--backend=local', '--workdir=r']
GKE = ['--backend=gke', '--accelerator=v4-8', '--workdir=gs://b/r']
TPU = ['--backend=queued', '--zone=z', '--project=p', '--workdir=gs://b/r']


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      [*TPU, '--accelerator=v9-8'],
      "--accelerator: found 'v9-8', expected one of v4-8 to v4-4096, v5e-1 to "
      'v5e-256, v5p-8 to v5p-4096, v6e-1 to v6e-256, tpu7x-8 to tpu7x-4096',
    ),
    (
      [*TPU, '--accelerator=v5e-7'],
      "--accelerator: found 'v5e-7', expected v5e- and one of 1, 4, 8, 16, 32, "
      '64, 128, 256',
    ),
    (
      [*TPU, '--accelerator=tpu7x-8'],
      '--accelerator: the Cloud TPU API does not serve tpu7x-8: use '
      '--backend=gke',
    ),
    (
      ['--backend=tpu_vm', *TPU[1:], '--accelerator=v7x-8'],
      '--accelerator: the Cloud TPU API does not serve v7x-8: use '
      '--backend=gke',
    ),
    (TPU, '--accelerator is missing: --backend=queued needs it'),
    (
      [*TPU, '--accelerator=v4-8', '--gres=gpu:8'],
      '--gres is not of --backend=queued, which takes --accelerator, --zone, '
      '--project, --provisioning, --runtime, --also, --mounted',
    ),
    (
      ['--backend=local', '--workdir=r', '--zone=z'],
      '--zone is not of --backend=local, which takes --hosts, --port',
    ),
    (
      ['--backend=local', '--workdir=gs://b'],
      '--workdir: found gs://b, expected a folder of this machine for '
      '--backend=local',
    ),
    (
      ['--backend=gke', '--accelerator=v4-8', '--workdir=/r'],
      '--workdir: found /r, expected gs://…: nothing else outlives a pod',
    ),
    (
      [*TPU[:3], '--workdir=/r', '--accelerator=v4-8'],
      '--workdir: found /r, expected gs://…: the disks of the machines go with '
      'them; --mounted says that all machines mount it',
    ),
    (
      [*TPU[:3], '--workdir=gs:/b/r', '--accelerator=v4-8'],
      '--workdir: found gs:/b/r, expected two slashes after the colon',
    ),
    (
      [*LOCAL, '--mounted'],
      '--mounted is not of --backend=local, which takes --hosts, --port',
    ),
    (
      [*LOCAL, '--port=99999'],
      '--port: found 99999, expected 1 to 65535',
    ),
    (
      [*LOCAL, '--hosts=0'],
      '--hosts: found 0, expected a whole number >= 1',
    ),
    (
      [*LOCAL, '--poll=0'],
      '--poll: found 0, expected a number >= 0.1',
    ),
    (
      [*LOCAL, '--grace=nan'],
      '--grace: found nan, expected a number >= 0',
    ),
    (
      [*LOCAL, '--retries=-3'],
      '--retries: found -3, expected a whole number >= 0',
    ),
    (
      [*LOCAL, '--wait=soon'],
      '--wait: found soon, expected a number >= 0',
    ),
    (
      [*GKE, '--provisioning=spot', '--reservation=r'],
      '--reservation: found r, expected it with --provisioning=reserved only',
    ),
    (
      ['--backend=slurm', '--workdir=/r', '--also=--qos=a\ntouch b'],
      "found '--qos=a\\ntouch b', expected no line breaks in options of sbatch",
    ),
    (
      ['--backend=local'],
      '--workdir is missing: expected a folder that every worker reaches',
    ),
    (
      ['--backend=local', '--workdir=r', '--name=A b'],
      "--name: found 'A b', expected at most 40 of a-z, 0-9 and -, beginning "
      'with a letter',
    ),
    (
      ['--backend=local', '--workdir=r', '--env=A'],
      "--env: found 'A', expected NAME=VALUE",
    ),
    (
      ['--backend=local', '--workdir=r', '--env=a;b=1'],
      "--env: found 'a;b', expected NAME=VALUE with a name of letters, digits "
      'and _',
    ),
    (
      ['--backend=local', '--workdir=r', '--commit=nothing'],
      "--commit: found 'nothing', which is no commit",
    ),
  ],
)
def test_what_a_user_can_mend_is_one_line(cloud, capfd, flags, message):
  code, out, err = run(capfd, *flags, '--dry_run', '--', '-m', 'a')
  assert (code, out, err) == (2, '', f'error: {message}\n')


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    ([], "found '' after --, expected -m MODULE"),
    (['python', '-m', 'a'], "found 'python -m a' after --, expected -m"),
    (['-m', 'a', '--workdir=b'], '--workdir stands after --'),
  ],
)
def test_commands_that_are_refused(command, message):
  with pytest.raises(errors.UserError, match=message):
    jobs.make(command, 'runs/a')


def test_outside_of_a_checkout(tmp_path, capfd, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags = ['--backend=local', '--workdir=r', '--dry_run', '--', '-m', 'a']
  code, _, err = run(capfd, *flags)
  assert code == 2
  assert err.startswith('error: cannot tell which code to ship: fatal: not a ')


def test_what_is_not_installed(tmp_path, capfd, monkeypatch, cloud):
  monkeypatch.setenv('PATH', str(tmp_path / 'nothing'))
  flags = [*TPU, '--accelerator=v4-8', '--', '-m', 'a']
  code, _, err = run(capfd, *flags)
  assert (code, err) == (
    2,
    'error: gcloud is not installed here: install it, or choose another '
    '--backend\n',
  )


def test_the_same_command_has_the_same_name():
  one, same = (jobs.make(COMMAND, 'runs/a') for _ in range(2))
  other = jobs.make([*COMMAND, '--more'], 'runs/a')
  assert one == same
  assert one.name != other.name
  assert one.name.startswith('a-')


@pytest.mark.parametrize(
  ('codes', 'together'),
  [
    ([0, 0], 0),
    ([0, 75], 75),
    ([75, 75], 75),
    ([75, 1], 1),
    ([0, 137], 137),
    ([1, 2], 2),
    ([0, None], 1),
    ([0, jobs.LOST], 75),
    ([jobs.LOST, 1], 1),
  ],
)
def test_what_exit_statuses_mean_together(codes, together):
  assert jobs.combine(dict(zip('ab', codes, strict=True))) == together


def test_exit_statuses_are_those_of_training():
  assert jobs.USER_ERROR == exit_status.USER_ERROR
  assert jobs.PREEMPTED == exit_status.PREEMPTED


@pytest.mark.parametrize(('grace', 'wait'), [('0.2', 1), ('7.5', 8)])
def test_slurm_waits_for_a_while_and_not_for_ever(cloud, capfd, grace, wait):
  assert f' --wait={wait} ' in shown(capfd, 'slurm', f'--grace={grace}')


def test_pauses_grow_to_their_end():
  limits = supervise.Limits(backoff=1.0, backoff_max=5.0)
  assert [limits.pause(n) for n in (1, 2, 3, 4, 999)] == [1, 2, 4, 5, 5]


def test_states_of_workers_among_other_lines():
  text = (
    'Using ssh batch size of 1.\nlaunch-worker t1v-n-a-w-10 0\n'
    'launch-worker t1v-n-a-w-2 running\nlaunch-worker broken\n'
  )
  found = worker.read_states(text)
  assert list(found.items()) == [
    ('t1v-n-a-w-2', 'running'),
    ('t1v-n-a-w-10', '0'),
  ]
  assert worker.codes(list(found.items())) == {
    't1v-n-a-w-2': None,
    't1v-n-a-w-10': 0,
  }


@pytest.mark.parametrize('place', list(FLAGS))
def test_a_dry_run_of_deleting_says_the_deletion_alone(cloud, capfd, place):
  text = shown(capfd, place)
  flags = [f'--backend={place}', *FLAGS[place], '--name=run']
  code, out, err = run(capfd, *flags, '--delete', '--dry_run')
  assert (code, err) == (0, '')
  steps = [c for c in commands(out) if c[:3] != ['gcloud', 'storage', 'rm']]
  assert steps
  assert all(step in commands(text) for step in steps)
  assert 'create' not in out and 'sbatch' not in out and 'apply' not in out


@pytest.mark.parametrize(
  ('command', 'asked', 'code'),
  [
    ('true', False, 0),
    ('bash -c "exit 3"', False, 3),
    # Ended by the request before it could hear it; and those that could.
    ('sleep 60', True, 75),
    ('bash -c \'trap "exit 75" TERM; while :; do sleep 0.01; done\'', True, 75),
    ('bash -c \'trap "exit 2" TERM; while :; do sleep 0.01; done\'', True, 2),
  ],
)
def test_what_is_waited_for_leaves_its_status(command, asked, code):
  ask = '(sleep 0.1; kill -TERM $$) &\n' if asked else ''
  done = subprocess.run(
    ['bash', '-c', f'{ask}{command} &\n{worker.wait()}echo "$code"'],
    capture_output=True,
    text=True,
  )
  assert done.stdout == f'{code}\n'


BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()


@pytest.mark.parametrize(
  ('boot', 'state'), [(BOOT, 'running'), ('another', 'lost')]
)
def test_the_number_of_a_process_counts_until_a_reboot(tmp_path, boot, state):
  """This process stands for one that got the number after a reboot."""
  (tmp_path / 'pid').write_text(f'{os.getpid()} {boot}\n')
  folder = worker.Folder(str(tmp_path), name='w-0')
  done = subprocess.run(
    ['bash', '-c', worker.tell(folder)], capture_output=True, text=True
  )
  assert worker.read_states(done.stdout) == {'w-0': state}
  if state == 'lost':  # Or this test would end here.
    script = worker.stop(folder)
    assert subprocess.run(['bash', '-c', script]).returncode == 0


@pytest.mark.parametrize(
  'codes',
  [
    *((0, 0), (0, 75), (75, 1), (1, 2), (2, 75), (137, 0)),
    *((75, None), (0, None), (1, None), (2, None)),
  ],
)
def test_slurms_script_combines_statuses_as_the_supervisor_does(
  tmp_path, codes
):
  for i, code in enumerate(codes):
    if code is not None:
      (tmp_path / f'exit.{i}').write_text(f'{code}\n')
  script = slurm._COMBINE.format(last=len(codes) - 1)
  done = subprocess.run(
    ['bash', '-c', f'root={tmp_path}\n{script}echo "$result"'],
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout) == jobs.combine(
    {str(i): code for i, code in enumerate(codes)}
  )


@pytest.mark.parametrize(
  ('out', 'err', 'line'),
  [
    ('a\nb\n', '', 'b'),
    ('a', 'warning\nit failed\n', 'it failed'),
    # Hints come after the error.
    ('', 'look:\nERROR: no such\nproject\n$ gcloud help', None),
    ('', '', 'exit status 1'),
  ],
)
def test_what_a_command_complained_of(out, err, line):
  expected = line or 'ERROR: no such project $ gcloud help'
  assert shell.Result(1, out, err).last_line == expected
