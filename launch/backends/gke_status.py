"""Reads the state of a JobSet and its pods from the JSON of kubectl."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from launch.backends import gke_manifest
from runtime import errors

_INDEX = 'batch.kubernetes.io/job-completion-index'
# Reasons for which a container waits during a normal start.
_STARTING = ('PodInitializing', 'ContainerCreating')


class Outcome(NamedTuple):
  """The end of a JobSet.

  Attributes:
    condition: 'Completed' or 'Failed'; '' while it has not ended.
    message: the explanation of Kubernetes.
  """

  condition: str
  message: str


def jobset_outcome(jobset: dict[str, Any]) -> Outcome:
  """Reads the outcome of a JobSet, which is empty before its end."""
  for condition in jobset.get('status', {}).get('conditions', []):
    if condition['status'] == 'True' and condition['type'] in (
      'Completed',
      'Failed',
    ):
      message = errors.format_on_one_line(condition.get('message', ''))
      return Outcome(condition['type'], message)
  return Outcome('', '')


def pods_by_creation(pods: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Sorts pods by the time of their creation, so that replacements are last."""
  return sorted(
    pods, key=lambda pod: pod['metadata'].get('creationTimestamp', '')
  )


def pod_has_begun(pod: dict[str, Any]) -> bool:
  """Returns whether the containers of a pod run or have run."""
  return pod['status'].get('phase') not in (None, 'Pending')


def pod_worker_index(pod: dict[str, Any]) -> str:
  """Returns the index of a pod in its job."""
  meta = pod['metadata']
  notes = {**meta.get('labels', {}), **meta.get('annotations', {})}
  return notes.get(_INDEX, '0')


def container_exit_codes(pod: dict[str, Any]) -> dict[str, int | None]:
  """Returns the exit status of each container, None before its end."""
  return {
    name: state.get('terminated', {}).get('exitCode')
    for name, state in _container_states(pod)
  }


def pod_exit_code(pod: dict[str, Any]) -> int | None:
  """Returns the exit status of the job in a pod, None before its end."""
  return container_exit_codes(pod).get(gke_manifest.MAIN_CONTAINER)


def pod_blocker(pod: dict[str, Any]) -> str:
  """Returns the reason that prevents a pod from starting: a missing image."""
  for name, state in _container_states(pod):
    waiting = state.get('waiting', {})
    if waiting.get('reason', _STARTING[0]) not in _STARTING:
      message = errors.format_on_one_line(waiting.get('message', ''))
      separator = ': ' if message else ''
      return f'{name}: {waiting["reason"]}{separator}{message}'
  return ''


def pod_ran_out_of_memory(pod: dict[str, Any]) -> bool:
  """Returns whether a container was killed for lack of memory."""
  return any(
    state.get('terminated', {}).get('reason') == 'OOMKilled'
    for _, state in _container_states(pod)
  )


def _container_states(pod: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Returns name and state of each container, init containers first."""
  return [
    (container['name'], container.get('state', {}))
    for kind in ('initContainerStatuses', 'containerStatuses')
    for container in pod['status'].get(kind, [])
  ]
