"""A JobSet on GKE: recommended for TPU7x and later, usable for the others."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from launch import backends, shell, source
from launch import job as jobs
from launch.backends import gke_manifest, gke_status
from launch.backends import kubectl as kubectl_lib
from runtime import errors, exit_status

# Added to the pods' own time for saving until a deletion counts as failed.
_DELETION_SECONDS = 60.0
# Number of failed workers whose last lines are shown.
_MAX_FAILURE_LOGS = 3


@dataclasses.dataclass
class Gke:
  """The JobSet of a job, which restarts its pods itself.

  Attributes:
    manifest: manifest of the JobSet.
    kubectl: commands of kubectl for the JobSet.
    run: shell that runs the commands.
    wait_seconds: limit of the time until all pods run.
    pause: seconds between two polls of a deletion.
  """

  manifest: gke_manifest.Manifest
  kubectl: kubectl_lib.Kubectl
  run: shell.Shell
  wait_seconds: float = 86400.0
  pause: float = 2.0
  restarts_itself: bool = True
  _commit: str = ''
  _exit_codes: dict[str, int | None] = dataclasses.field(default_factory=dict)
  # Pod and container of each worker that failed, and why the JobSet did.
  _failures: dict[str, tuple[str, str]] = dataclasses.field(
    default_factory=dict
  )
  _failure_message: str = ''

  def __post_init__(self):
    self._follower = kubectl_lib.LogFollower(
      self.kubectl, gke_manifest.MAIN_CONTAINER
    )

  @property
  def job(self) -> jobs.Job:
    """Returns the job to run."""
    return self.manifest.job

  @property
  def location(self) -> str:
    """Returns namespace and context of the JobSet."""
    return (
      f'namespace {self.kubectl.namespace or "of the context"} of '
      f'{self.kubectl.context or "the current context"}'
    )

  @property
  def manifest_path(self) -> pathlib.Path:
    """Returns the local path of the manifest."""
    return source.CACHE.expanduser() / f'{self.job.name}.json'

  def steps(self, commit: str) -> list[backends.Step]:
    """Returns manifest and commands from creating the JobSet to deleting."""
    archive = source.code_archive_path(self.job.name, commit)
    url = self.manifest.archive_url(commit)
    before = {
      'check whether it exists': self.kubectl.get_jobset(),
      'pack the code': source.code_archive_command(commit, archive),
      'upload the code': _upload_command(archive, url),
    }
    after = {
      'submit': self.kubectl.apply(self.manifest_path),
      'poll: the JobSet': self.kubectl.get_jobset(),
      'poll: each worker': self.kubectl.get_pods(),
      'follow the log': self.kubectl.follow_log(
        'POD', gke_manifest.MAIN_CONTAINER
      ),
      'if fetching the code failed': self.kubectl.print_log_end(
        'POD', gke_manifest.FETCH_CONTAINER
      ),
    }
    return [
      *backends.build_launch_steps(before),
      backends.Step(
        f'the file {self.manifest_path}', self.manifest.dump(commit)
      ),
      *backends.build_launch_steps(after),
      *self.deletion_steps(commit),
    ]

  def deletion_steps(self, commit: str) -> list[backends.Step]:
    """Returns the commands that delete the JobSet and its code."""
    return backends.build_launch_steps(
      {
        'at the end, whatever happened': self.kubectl.delete_jobset(),
        'poll until it is deleted': self.kubectl.get_jobset(),
        'on another Ctrl-C': self.kubectl.kill_pods(),
        'delete the code': _remove_command(self.manifest.archive_url(commit)),
      }
    )

  def _get_jobset(self) -> dict[str, Any] | None:
    text = self._run_kubectl(self.kubectl.get_jobset())
    return json.loads(text) if text.strip() else None

  def _get_pods(self) -> list[dict[str, Any]]:
    return json.loads(self._run_kubectl(self.kubectl.get_pods()))['items']

  def _run_kubectl(self, command: list[str]) -> str:
    result = self.run(command)
    if result.code:
      raise errors.UserError(f'kubectl: {result.error_line}')
    return result.out

  def find(self) -> backends.Existing | None:
    """Reads digest and commit from the annotations of the JobSet."""
    jobset = self._get_jobset()
    if jobset is None:
      return None
    notes = jobset['metadata'].get('annotations', {})
    self._commit = notes.get(gke_manifest.COMMIT_ANNOTATION, '')
    digest = notes.get(gke_manifest.DIGEST_ANNOTATION, '')
    return backends.Existing(digest, self._commit)

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Uploads the code and submits the JobSet."""
    self._commit = commit
    url = self.manifest.archive_url(commit)
    result = self.run(_upload_command(archive, url))
    if result.code:
      raise errors.UserError(f'gcloud: {result.error_line}')
    self.manifest_path.parent.mkdir(parents=True, exist_ok=True)
    self.manifest_path.write_text(self.manifest.dump(commit))
    with self.run.deferring_stop():
      result = self.run(self.kubectl.apply(self.manifest_path), creates=True)
      if result.code:
        self.run(_remove_command(url))
        self.manifest_path.unlink()
        raise errors.UserError(f'kubectl: {result.error_line}')

  def waiting_for(self) -> str:
    """Returns how many pods do not run yet, and why."""
    try:
      jobset = self._get_jobset()
      pods = self._get_pods()
    except errors.UserError as error:
      return f'{backends.NO_ANSWER} ({error})'
    if jobset is None:
      raise backends.JobDeletedError('there is no JobSet')
    if gke_status.jobset_outcome(jobset).condition:
      return ''
    hosts = self.manifest.accelerator.hosts
    missing = hosts - sum(map(gke_status.pod_has_begun, pods))
    if missing <= 0:
      return ''
    blocker = next(filter(None, map(gke_status.pod_blocker, pods)), '')
    reason = f' ({blocker})' if blocker else ''
    return f'{missing} of {hosts} pods{reason}'

  def install(self, archive: pathlib.Path) -> None:
    """Does nothing: the pods fetch the code and install its requirements."""

  def start(self) -> None:
    """Does nothing: the JobSet starts its pods."""

  def poll(self) -> backends.Report:
    """Reads the state of JobSet and pods; follows the log of the first pod."""
    try:
      jobset, pods = self._get_jobset(), self._get_pods()
    except errors.UserError as error:  # The next poll may succeed.
      return backends.Report(outage=f'{backends.NO_ANSWER} ({error})')
    if jobset is None:
      raise backends.JobDeletedError('there is no JobSet')
    # Pods are deleted with their job: their exit statuses are kept here.
    for pod in gke_status.pods_by_creation(pods):
      self._record(pod)
    outcome = gke_status.jobset_outcome(jobset)
    self._failure_message = outcome.message
    exit_codes = dict(
      sorted(self._exit_codes.items(), key=lambda item: int(item[0][7:]))
    )
    if any(map(gke_status.pod_ran_out_of_memory, pods)):
      # It would do so again after a restart.
      self._failure_message = 'a pod ran out of memory'
      return backends.Report(exit_codes, True, final_code=exit_status.FAILURE)
    if not outcome.condition:
      return backends.Report(exit_codes, True)
    self._follower.finish()
    final_code = _final_code(outcome.condition, exit_codes)
    return backends.Report(exit_codes, True, final_code=final_code)

  def _record(self, pod: dict[str, Any]) -> None:
    """Stores how a pod ended, and follows the log of the first worker."""
    index, name = gke_status.pod_worker_index(pod), pod['metadata']['name']
    worker, code = f'worker-{index}', gke_status.pod_exit_code(pod)
    self._exit_codes[worker] = code
    self._failures.pop(worker, None)
    failed = [
      c for c, code in gke_status.container_exit_codes(pod).items() if code
    ]
    if failed:
      self._failures[worker] = name, failed[0]
    if index == '0' and gke_status.pod_has_begun(pod):
      self._follower.follow(name, is_alive=code is None)

  def failure_log(self) -> str:
    """Returns why the JobSet failed, and the last lines of some workers.

    The log of the pod that is followed is left out: it was printed already.
    """
    text = ''
    if self._failure_message:
      text = f'launch: JobSet: {self._failure_message}\n'
    failures = sorted(self._failures.items())[:_MAX_FAILURE_LOGS]
    for worker, (pod, container) in failures:
      if (pod, container) == (self._follower.pod, self._follower.container):
        continue
      result = self.run(self.kubectl.print_log_end(pod, container))
      lines = (result.out or result.err).splitlines()
      text += ''.join(f'{worker}, {container}| {line}\n' for line in lines)
    return text

  def stop(self, force: bool = False) -> bool:
    """Does nothing: a pod that is deleted may save first."""
    return False

  def detach(self) -> None:
    """Ends the process that follows the log."""
    self._follower.kill()

  def delete(self) -> str:
    """Deletes the JobSet, waits for its pods and deletes the code."""
    result = self.run(self.kubectl.delete_jobset())
    if result.code:
      return result.error_line
    if problem := self._wait_for_deletion():
      return problem
    self._follower.finish()
    if self._commit:
      self.run(_remove_command(self.manifest.archive_url(self._commit)))
    self.manifest_path.unlink(missing_ok=True)
    return ''

  def _wait_for_deletion(self) -> str:
    """Waits until the JobSet is gone; returns the problem, '' if none.

    The pods may save first. Another request to stop kills them.
    """
    requests, is_killed = self.run.stop_requests, False
    grace = self.manifest.grace
    end = time.monotonic() + grace + _DELETION_SECONDS
    try:
      while self._get_jobset() is not None:
        if time.monotonic() > end:
          return f'its pods still exist after {grace:g} s for saving'
        if self.run.stop_requests > min(requests, 1) and not is_killed:
          self.run(self.kubectl.kill_pods())
          is_killed = True
        self.run.sleep(self.pause)
    except errors.UserError as error:
      return str(error)
    return ''


def _upload_command(archive: pathlib.Path, url: str) -> list[str]:
  return ['gcloud', 'storage', 'cp', str(archive), url]


def _remove_command(url: str) -> list[str]:
  return ['gcloud', 'storage', 'rm', url]


def _final_code(condition: str, exit_codes: Mapping[str, int | None]) -> int:
  """Returns the exit status of a JobSet that has ended."""
  if condition == 'Completed':
    return exit_status.SUCCESS
  known = {n: c for n, c in exit_codes.items() if c is not None}
  if not known:
    return exit_status.FAILURE  # No pod got as far as running the job.
  return jobs.combine_worker_exit_codes(known) or exit_status.FAILURE
