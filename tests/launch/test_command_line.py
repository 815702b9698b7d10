"""Dry runs and user errors of the command line. Nothing is launched.

LAUNCH_GOLDEN=write rewrites the golden texts: check the difference.
"""

import json
import os
import pathlib
import re
import shlex
import sys

import pytest
import yaml

from launch import __main__ as command_line
from tests.support import launching

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# Characters that a shell interprets.
COMMAND = ['-m', 'ddep.main', "--config=configs/a.py:x='a b'", 'c;$d']
FLAGS = {
  'local': ['--workdir=/runs/a b', '--hosts=1'],
  'tpu_vm': [
    '--accelerator=v4-8',
    '--zone=us-central2-b',
    '--project=mine',
    '--workdir=gs://bucket/run',
  ],
  'queued': [
    '--accelerator=v5e-64',
    '--provisioning=spot',
    '--zone=us-west4-a',
    '--project=mine',
    '--workdir=gs://bucket/run',
    '--also=--network=a',
  ],
  'gke': [
    '--accelerator=tpu7x-128',
    '--provisioning=spot',
    '--context=cluster',
    '--namespace=team',
    '--service_account=trainer',
    '--workdir=gs://bucket/run',
  ],
  'slurm': [
    '--hosts=2',
    '--gres=gpu:8',
    '--partition=long',
    '--time=24:00:00',
    '--workdir=/shared/50% off',
    '--also=--qos=a b',
  ],
}


@pytest.fixture(scope='module')
def shared_cloud(tmp_path_factory):
  return launching.Cloud(tmp_path_factory.mktemp('cloud'))


@pytest.fixture
def cloud(shared_cloud, monkeypatch):
  """Fakes in $PATH and a checkout as current folder, which nothing changes."""
  monkeypatch.chdir(shared_cloud.repo)
  monkeypatch.setenv('PATH', shared_cloud.environment['PATH'])
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.setenv('FAKE_CLOUD', str(shared_cloud.root))
  return shared_cloud


def run(capfd, *arguments):
  code = command_line.main(arguments)
  out, err = capfd.readouterr()
  return code, out, err


def dry_run(capfd, backend, *more):
  flags = [f'--backend={backend}', *FLAGS[backend], '--name=run']
  code, out, err = run(
    capfd, *flags, '--env=DATA=a b', *more, '--dry_run', '--', *COMMAND
  )
  assert (code, err) == (0, '')
  return out


def parse_steps(text):
  """Returns the steps of a dry run, split into words as by a shell."""
  steps = re.split(r'\n# \d+\. ', text)[1:]
  return [shlex.split(step.partition('\n')[2]) for step in steps]


@pytest.mark.parametrize('backend', list(FLAGS))
def test_a_dry_run_prints_all_steps_and_changes_nothing(cloud, capfd, backend):
  before = sorted(cloud.root.rglob('*'))
  text = dry_run(capfd, backend)
  assert sorted(cloud.root.rglob('*')) == before
  assert not pathlib.Path('/home/me').exists()
  text = text.replace(cloud.commit, 'c' * 40)
  text = text.replace(cloud.commit[:12], 'c' * 12)
  text = text.replace(sys.executable, '/venv/bin/python')
  path = GOLDEN / f'launch_{backend}.txt'
  if os.environ.get('LAUNCH_GOLDEN') == 'write':
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  assert text == path.read_text()


@pytest.mark.parametrize('backend', list(FLAGS))
def test_a_dry_run_of_a_deletion_prints_its_last_steps(cloud, capfd, backend):
  text = dry_run(capfd, backend)
  flags = [f'--backend={backend}', *FLAGS[backend], '--name=run']
  code, out, err = run(capfd, *flags, '--delete', '--dry_run')
  assert (code, err) == (0, '')
  # The name of the archive contains the commit, which a deletion reads later.
  steps = [s for s in parse_steps(out) if s[:3] != ['gcloud', 'storage', 'rm']]
  assert steps
  assert all(step in parse_steps(text) for step in steps)
  assert 'create' not in out and 'sbatch' not in out and 'apply' not in out


def test_the_manifest_is_yaml_and_kubernetes_expands_nothing(cloud, capfd):
  text = dry_run(capfd, 'gke')
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


@pytest.mark.parametrize(('grace', 'wait'), [('0.2', 1), ('7.5', 8)])
def test_slurm_waits_for_whole_seconds_but_not_forever(
  cloud, capfd, grace, wait
):
  assert f' --wait={wait} ' in dry_run(capfd, 'slurm', f'--grace={grace}')


LOCAL = ['--backend=local', '--workdir=r']
GKE = ['--backend=gke', '--accelerator=v4-8', '--workdir=gs://b/r']
TPU = ['--backend=queued', '--zone=z', '--project=p', '--workdir=gs://b/r']


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      [*TPU, '--accelerator=v9-8'],
      '--accelerator: expected one of v4-8 to v4-4096, v5e-1 to v5e-256, v5p-8 '
      "to v5p-4096, v6e-1 to v6e-256, tpu7x-8 to tpu7x-4096, got 'v9-8'",
    ),
    (
      [*TPU, '--accelerator=v5e-7'],
      '--accelerator: expected v5e- and one of 1, 4, 8, 16, 32, 64, 128, 256, '
      "got 'v5e-7'",
    ),
    (
      [*TPU, '--accelerator=tpu7x-8'],
      '--accelerator: expected one that the Cloud TPU API offers, got tpu7x-8: '
      'use --backend=gke',
    ),
    (
      ['--backend=tpu_vm', *TPU[1:], '--accelerator=v7x-8'],
      '--accelerator: expected one that the Cloud TPU API offers, got v7x-8: '
      'use --backend=gke',
    ),
    (TPU, '--accelerator is missing: --backend=queued needs it'),
    (
      [*TPU, '--accelerator=v4-8', '--gres=gpu:8'],
      '--backend=queued: expected no flags but --accelerator, --zone, '
      '--project, --provisioning, --runtime, --also, --mounted, got --gres',
    ),
    (
      ['--backend=local', '--workdir=r', '--zone=z'],
      '--backend=local: expected no flags but --hosts, --port, got --zone',
    ),
    (
      ['--backend=local', '--workdir=gs://b'],
      '--workdir: expected a folder of this machine for --backend=local, got '
      'gs://b',
    ),
    (
      ['--backend=gke', '--accelerator=v4-8', '--workdir=/r'],
      '--workdir: expected gs://…, got /r: nothing else outlives a pod',
    ),
    (
      [*TPU[:3], '--workdir=/r', '--accelerator=v4-8'],
      '--workdir: expected gs://…, got /r: the disks of the machines are '
      'deleted with them; --mounted states that all machines mount it',
    ),
    (
      [*TPU[:3], '--workdir=gs:/b/r', '--accelerator=v4-8'],
      '--workdir: expected two slashes after the colon, got gs:/b/r',
    ),
    (
      [*LOCAL, '--mounted'],
      '--backend=local: expected no flags but --hosts, --port, got --mounted',
    ),
    (
      [*LOCAL, '--port=99999'],
      '--port: expected 1 to 65535, got 99999',
    ),
    (
      [*LOCAL, '--hosts=0'],
      '--hosts: expected a whole number >= 1, got 0',
    ),
    (
      [*LOCAL, '--poll=0'],
      '--poll: expected a number >= 0.1, got 0',
    ),
    (
      [*LOCAL, '--grace=nan'],
      '--grace: expected a number >= 0, got nan',
    ),
    (
      [*LOCAL, '--retries=-3'],
      '--retries: expected a whole number >= 0, got -3',
    ),
    (
      [*LOCAL, '--wait=soon'],
      '--wait: expected a number >= 0, got soon',
    ),
    (
      [*GKE, '--provisioning=spot', '--reservation=r'],
      '--reservation: expected only with --provisioning=reserved, got r',
    ),
    (
      ['--backend=slurm', '--workdir=/r', '--also=--qos=a\ntouch b'],
      "expected options of sbatch without line breaks, got '--qos=a\\ntouch b'",
    ),
    (
      ['--backend=local'],
      '--workdir is missing: expected a folder that every worker can access',
    ),
    (
      ['--backend=local', '--workdir=r', '--name=A b'],
      '--name: expected at most 40 of a-z, 0-9 and -, beginning with a letter, '
      "got 'A b'",
    ),
    (
      ['--backend=local', '--workdir=r', '--env=A'],
      "--env: expected NAME=VALUE, got 'A'",
    ),
    (
      ['--backend=local', '--workdir=r', '--env=a;b=1'],
      '--env: expected NAME=VALUE with a name of letters, digits and _, got '
      "'a;b'",
    ),
    (
      ['--backend=local', '--workdir=r', '--commit=nothing'],
      "--commit: expected a commit, got 'nothing'",
    ),
  ],
)
def test_user_errors_are_one_line(cloud, capfd, flags, message):
  code, out, err = run(capfd, *flags, '--dry_run', '--', '-m', 'a')
  assert (code, out, err) == (2, '', f'error: {message}\n')


def test_a_folder_without_git_is_refused(tmp_path, capfd, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags = ['--backend=local', '--workdir=r', '--dry_run', '--', '-m', 'a']
  code, _, err = run(capfd, *flags)
  assert code == 2
  assert err.startswith(
    'error: cannot determine the commit to ship: fatal: not a '
  )


def test_a_missing_program_is_named(cloud, tmp_path, capfd, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path / 'nothing'))
  flags = [*TPU, '--accelerator=v4-8', '--', '-m', 'a']
  code, _, err = run(capfd, *flags)
  assert (code, err) == (
    2,
    'error: gcloud is not installed here: install it, or choose another '
    '--backend\n',
  )
