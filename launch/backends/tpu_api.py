"""Commands of the Cloud TPU API: TPU VMs created directly, or from a queue.

The API gets only fixes and does not offer TPU7x.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from launch import accelerators, worker
from launch import job as jobs
from runtime import errors

_PROVISIONING_FLAGS = {'spot': ['--spot'], 'reserved': ['--reserved']}


class Description(NamedTuple):
  """The state of machines as the API reports it.

  Attributes:
    state: 'READY', 'CREATING', …
    message: explanation of a failure; '' if there is none.
    labels: the labels that were given at their creation.
  """

  state: str
  message: str
  labels: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class TpuApi(abc.ABC):
  """gcloud commands for the machines of a job.

  Attributes:
    resource: group of gcloud commands that creates and deletes the machines.
    job: job to run, whose name the machines get.
    accelerator: TPU slice to request.
    zone: zone of the machines.
    project: Google Cloud project that pays for the machines.
    provisioning: 'on_demand', 'spot' or 'reserved'.
    runtime: software version of the VMs; '' for the default of the generation.
    also: more flags of the create command.
  """

  resource: ClassVar[str]
  job: jobs.Job
  accelerator: accelerators.Accelerator
  zone: str
  project: str
  provisioning: str = 'on_demand'
  runtime: str = ''
  also: Sequence[str] = ()

  def __post_init__(self):
    if not self.accelerator.generation.runtime:
      raise errors.UserError(
        '--accelerator: expected one that the Cloud TPU API offers, got '
        f'{self.accelerator.name}: use --backend=gke'
      )

  def describe_command(self) -> list[str]:
    """Returns the command that describes the machines as JSON."""
    return [
      *self._gcloud(self.resource, 'describe', self.job.name),
      '--format=json',
    ]

  @abc.abstractmethod
  def create_command(self, commit: str) -> list[str]:
    """Returns the command that requests the machines."""

  @abc.abstractmethod
  def delete_command(self) -> list[str]:
    """Returns the command that deletes the machines and waits for the end."""

  @abc.abstractmethod
  def parse_description(self, described: dict[str, Any]) -> Description:
    """Parses the JSON of the describe command."""

  def ssh_command(self, script: str, workers: str = 'all') -> list[str]:
    """Returns the command that runs a script on one worker or on all."""
    return self._gcloud(
      'tpu-vm',
      'ssh',
      self.job.name,
      f'--worker={workers}',
      f'--command={script}',
    )

  def scp_command(self, path: pathlib.Path, target: str) -> list[str]:
    """Returns the command that copies a file to the home of all workers."""
    return self._gcloud(
      'tpu-vm', 'scp', str(path), f'{self.job.name}:{target}', '--worker=all'
    )

  def _gcloud(self, *words: str) -> list[str]:
    place = (f'--zone={self.zone}', f'--project={self.project}', '--quiet')
    return ['gcloud', 'compute', 'tpus', *words, *place]

  @property
  def _runtime(self) -> str:
    return self.runtime or self.accelerator.generation.runtime

  def _create_flags(self, commit: str) -> list[str]:
    return [
      f'--accelerator-type={self.accelerator.type}',
      f'--labels=launch-job={self.job.digest},launch-commit={commit}',
      *_PROVISIONING_FLAGS.get(self.provisioning, []),
      *self.also,
    ]


class TpuVmApi(TpuApi):
  """TPU VMs created directly: available at once, or refused.

  The create command waits for them: only then it reports a lack of capacity.
  """

  resource = 'tpu-vm'

  def create_command(self, commit: str) -> list[str]:
    """Returns the command that creates the TPU VM and waits for it."""
    return [
      *self._gcloud(self.resource, 'create', self.job.name),
      f'--version={self._runtime}',
      *self._create_flags(commit),
    ]

  def delete_command(self) -> list[str]:
    """Returns the command that deletes the TPU VM."""
    return self._gcloud(self.resource, 'delete', self.job.name)

  def parse_description(self, described: dict[str, Any]) -> Description:
    """Parses a `Node` of the API."""
    return Description(
      described.get('state', ''),
      described.get('healthDescription', ''),
      described.get('labels', {}),
    )


class QueuedResourceApi(TpuApi):
  """TPU VMs from a queue, as recommended for v4 to v6e."""

  resource = 'queued-resources'

  def create_command(self, commit: str) -> list[str]:
    """Returns the command that enqueues the request."""
    return [
      *self._gcloud(self.resource, 'create', self.job.name),
      f'--node-id={self.job.name}',
      f'--runtime-version={self._runtime}',
      *self._create_flags(commit),
      '--async',
    ]

  def delete_command(self) -> list[str]:
    """Returns the command that deletes the request and its TPU VMs."""
    return [
      *self._gcloud(self.resource, 'delete', self.job.name),
      '--force',
    ]

  def parse_description(self, described: dict[str, Any]) -> Description:
    """Parses a `QueuedResource` of the API."""
    state = described.get('state', {})
    error = state.get('failedData', {}).get('error', {})
    nodes = described.get('tpu', {}).get('nodeSpec', [{}])
    return Description(
      state.get('state', ''),
      errors.format_on_one_line(error.get('message', '')),
      nodes[0].get('node', {}).get('labels', {}),
    )


@dataclasses.dataclass(frozen=True)
class WorkerCommands:
  """Commands that run on the workers, by gcloud's ssh and scp.

  Attributes:
    api: the commands for the machines.
  """

  api: TpuApi

  @property
  def _folder(self) -> worker.Folder:
    """Returns the folder of the job, relative to a worker's home."""
    return worker.Folder(f'launch/{self.api.job.name}')

  @property
  def _archive(self) -> str:
    return f'launch-{self.api.job.name}.tar.gz'

  def copy_code(self, archive: pathlib.Path) -> list[str]:
    """Returns the command that copies the code archive to all workers."""
    return self.api.scp_command(archive, self._archive)

  def unpack(self) -> list[str]:
    """Returns the command that unpacks the archive on all workers."""
    return self.api.ssh_command(
      worker.unpack_code_script(self._folder, self._archive)
    )

  def install(self) -> list[str]:
    """Returns the command that installs the requirements on all workers."""
    return self.api.ssh_command(worker.install_code_script(self._folder, 'tpu'))

  def start(self) -> list[str]:
    """Returns the command that starts the job on all workers."""
    hosts = self.api.accelerator.hosts
    setup = worker.EXPORT_SLICE.format(hosts=hosts) if hosts > 1 else ''
    script = worker.start_job_script(self._folder, self.api.job, setup)
    return self.api.ssh_command(script)

  def print_state(self) -> list[str]:
    """Returns the command that prints the state of all workers."""
    return self.api.ssh_command(worker.print_state_script(self._folder))

  def print_log(self, offset: int) -> list[str]:
    """Returns the command that prints the first worker's log from an offset."""
    return self.api.ssh_command(
      worker.print_log_script(self._folder, offset), '0'
    )

  def print_failure_log(self) -> list[str]:
    """Returns the command that prints the last lines of failed workers."""
    return self.api.ssh_command(worker.print_failure_log_script(self._folder))

  def stop(self, force: bool = False) -> list[str]:
    """Returns the command that sends SIGTERM, or SIGKILL, to all workers."""
    return self.api.ssh_command(worker.stop_job_script(self._folder, force))
