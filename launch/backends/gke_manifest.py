"""The manifest of a JobSet: one pod on each host of a TPU slice.

The JobSet restarts all pods after status 75 and after preemption; status 2 and
other failures end it.
"""

import dataclasses
import json
import math
import shlex
from typing import Any

from launch import accelerators, worker
from launch import job as jobs
from runtime import errors, exit_status

DIGEST_ANNOTATION = 'launch/job'
COMMIT_ANNOTATION = 'launch/commit'
MAIN_CONTAINER, FETCH_CONTAINER = 'main', 'fetch'

# Exit statuses of a pod that do not mean that the job is wrong: interrupted
# and saved, killed, terminated.
_TRANSIENT = (
  exit_status.PREEMPTED,
  exit_status.KILLED,
  exit_status.TERMINATED,
)
# Exit statuses that a pod reports at once.
_NOT_HELD = (exit_status.SUCCESS, exit_status.USER_ERROR, *_TRANSIENT)
_HOLD_SECONDS = 60

# If the job's process is killed while this shell survives, the reason is lack
# of memory: a pod that is preempted ends as a whole. Other failures are
# delayed by a minute, since the first failed pod decides whether the JobSet is
# restarted: a worker that fails because another one was preempted must be seen
# after that one.
_HOLD_FAILURE = f"""\
if [ "$code" -eq {exit_status.KILLED} ]; then
  echo 'error: killed: out of memory?' >&2
  exit {exit_status.FAILURE}
fi
case "$code" in
  {'|'.join(map(str, _NOT_HELD))}) ;;
  *) sleep {_HOLD_SECONDS} & child=$!; wait "$child" ;;
esac
exit "$code"
"""

_SPOT_TOLERATION = {
  'key': 'cloud.google.com/gke-spot',
  'operator': 'Equal',
  'value': 'true',
  'effect': 'NoSchedule',
}
# Preemptions count as restarts. Exit statuses that are not transient end the
# JobSet, also those of fetching the code.
_POD_FAILURE_RULES = [
  {
    'action': 'Count',
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  },
  {
    'action': 'FailJob',
    'onExitCodes': {'operator': 'NotIn', 'values': list(_TRANSIENT)},
  },
]


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Builds the manifest of a job.

  Attributes:
    job: the job to run.
    accelerator: the TPU slice whose nodes run the pods.
    provisioning: 'on_demand', 'spot' or 'reserved'.
    reservation: name of the reservation, for 'reserved'.
    image: container image of the pods, with Python 3.11 and bash.
    fetch_image: image of the container that fetches the code, with gcloud.
    service_account: Kubernetes service account with access to the bucket; ''
      for the default of the namespace.
    retries: number of times that the JobSet is restarted.
    grace: seconds that a pod has for saving.
  """

  job: jobs.Job
  accelerator: accelerators.Accelerator
  provisioning: str = 'on_demand'
  reservation: str = ''
  image: str = 'python:3.11'
  fetch_image: str = 'gcr.io/google.com/cloudsdktool/google-cloud-cli:stable'
  service_account: str = ''
  retries: int = 50
  grace: float = 120.0

  def __post_init__(self):
    if not self.job.workdir.startswith('gs://'):
      raise errors.UserError(
        f'--workdir: expected gs://…, got {self.job.workdir}: nothing else '
        'outlives a pod'
      )
    if self.provisioning == 'reserved' and not self.reservation:
      raise errors.UserError(
        '--reservation is missing: expected the name of a reservation for '
        '--provisioning=reserved'
      )
    if self.reservation and self.provisioning != 'reserved':
      raise errors.UserError(
        '--reservation: expected only with --provisioning=reserved, got '
        f'{self.reservation}'
      )

  def archive_url(self, commit: str) -> str:
    """Returns the URL from which the pods fetch the code."""
    name = f'{self.job.name}-{commit[:12]}.tar.gz'
    return f'{self.job.workdir.rstrip("/")}/launch/{name}'

  def build(self, commit: str) -> dict[str, Any]:
    """Builds the JobSet, which creates a headless service for its pods."""
    return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2',
      'kind': 'JobSet',
      'metadata': {
        'name': self.job.name,
        'annotations': {
          DIGEST_ANNOTATION: self.job.digest,
          COMMIT_ANNOTATION: commit,
          # All pods of the job on the nodes of one slice.
          'alpha.jobset.sigs.k8s.io/exclusive-topology': (
            'cloud.google.com/gke-nodepool'
          ),
        },
      },
      'spec': {
        'network': {'enableDNSHostnames': True},
        'failurePolicy': {
          'maxRestarts': self.retries,
          'rules': [
            {
              'action': 'FailJobSet',
              'onJobFailureReasons': ['PodFailurePolicy'],
            }
          ],
        },
        'replicatedJobs': [
          {
            'name': 'workers',
            'replicas': 1,
            'template': {'spec': self._job_spec(commit)},
          }
        ],
      },
    }

  def dump(self, commit: str) -> str:
    """Returns the manifest as JSON, which is valid YAML with safe quoting."""
    content = self.build(commit)
    return json.dumps(content, indent=2, ensure_ascii=False) + '\n'

  def _job_spec(self, commit: str) -> dict[str, Any]:
    return {
      'completionMode': 'Indexed',
      'completions': self.accelerator.hosts,
      'parallelism': self.accelerator.hosts,
      # The first failed pod ends the job, and the JobSet restarts it as a whole
      # unless the failure policy applies.
      'backoffLimit': 0,
      'podFailurePolicy': {'rules': _POD_FAILURE_RULES},
      'template': {'spec': self._pod_spec(commit)},
    }

  def _pod_spec(self, commit: str) -> dict[str, Any]:
    """Builds the pod of a host: it fetches the code, then runs the job."""
    is_spot = self.provisioning == 'spot'
    pod: dict[str, Any] = {
      'restartPolicy': 'Never',
      'terminationGracePeriodSeconds': max(1, math.ceil(self.grace)),
      'nodeSelector': self._node_selector(),
      'tolerations': [
        {'key': 'google.com/tpu', 'operator': 'Exists'},
        *([_SPOT_TOLERATION] if is_spot else []),
      ],
      'volumes': [{'name': 'work', 'emptyDir': {}}],
      'initContainers': [self._fetch_container(commit)],
      'containers': [self._main_container()],
    }
    if self.service_account:
      pod['serviceAccountName'] = self.service_account
    return pod

  def _node_selector(self) -> dict[str, str]:
    gke = 'cloud.google.com'
    labels = {
      f'{gke}/gke-tpu-accelerator': self.accelerator.generation.gke_accelerator,
      f'{gke}/gke-tpu-topology': self.accelerator.topology,
    }
    if self.provisioning == 'spot':
      labels[f'{gke}/gke-spot'] = 'true'
    if self.provisioning == 'reserved':
      labels[f'{gke}/reservation-name'] = self.reservation
    return labels

  def _fetch_container(self, commit: str) -> dict[str, Any]:
    return {
      'name': FETCH_CONTAINER,
      'image': self.fetch_image,
      'command': ['sh', '-c', _escape(self._fetch_script(commit))],
      'volumeMounts': [_VOLUME_MOUNT],
    }

  def _main_container(self) -> dict[str, Any]:
    chips = {'google.com/tpu': self.accelerator.chips_per_host}
    return {
      'name': MAIN_CONTAINER,
      'image': self.image,
      'command': ['bash', '-c', _escape(self._main_script())],
      'env': [
        {'name': name, 'value': _escape(value)}
        for name, value in self.job.environment
      ],
      # Ports of the TPU runtime's own network, and of jax's coordinator.
      'ports': [{'containerPort': port} for port in (8471, 8482)],
      'resources': {'requests': chips, 'limits': chips},
      'volumeMounts': [_VOLUME_MOUNT],
    }

  def _fetch_script(self, commit: str) -> str:
    """Returns the script that fetches the code.

    It retries, as a pod's permissions may take effect after its start.
    """
    copy = (
      f'gcloud storage cp {shlex.quote(self.archive_url(commit))} '
      '/work/code.tar.gz'
    )
    return f"""\
for pause in 5 10 20 40; do
  {copy} && exit 0
  sleep "$pause"
done
exec {copy}
"""

  def _main_script(self) -> str:
    """Returns the script that installs the requirements and runs the job."""
    command = shlex.join(['../venv/bin/python', *self.job.arguments])
    return f"""\
set -e
trap 'exit {exit_status.TERMINATED}' TERM  \
# The first process of a pod has no default handler.
cd /work
mkdir -p tree
tar -xzf code.tar.gz -C tree
python3 -m venv venv
{worker.install_requirements_script('tpu')}set +e
cd tree
{command} &
{worker.wait_for_child_script()}{_HOLD_FAILURE}"""


_VOLUME_MOUNT = {'name': 'work', 'mountPath': '/work'}


def _escape(text: str) -> str:
  """Escapes text for Kubernetes, which would expand `$(NAME)`."""
  return text.replace('$', '$$')
