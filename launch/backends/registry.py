"""Builds backends from command-line flags."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from launch import accelerators, backends, shell
from launch import job as jobs
from launch.backends import (
  gke,
  gke_manifest,
  kubectl,
  local,
  slurm,
  slurm_scripts,
  tpu,
  tpu_api,
)
from runtime import errors

# Longest pauses, in seconds, before a failed gcloud command is repeated and
# between two polls of a deletion of pods.
_GCLOUD_PAUSE = 10.0
_KUBECTL_PAUSE = 2.0
# Default limits, in seconds, until the machines are ready.
_TPU_VM_WAIT = 1800.0
_QUEUE_WAIT = 86400.0


@dataclasses.dataclass(frozen=True)
class Entry:
  """Describes the flags of a backend, and builds the backend from them.

  Attributes:
    required: names of the flags that have to be given.
    optional: names of the flags that may be given.
    deletes_in_workdir: whether deleting a job needs its work folder.
    build: function that builds the backend from the job, the shell, the values
      of these flags by name, and all parsed arguments.
  """

  required: tuple[str, ...]
  optional: tuple[str, ...]
  deletes_in_workdir: bool
  build: Callable[
    [jobs.Job, shell.Shell, dict[str, Any], argparse.Namespace],
    backends.Backend,
  ]


def _wait(arguments: argparse.Namespace) -> dict[str, float]:
  return {} if arguments.wait is None else {'wait_seconds': arguments.wait}


def _build_local(
  job: jobs.Job,
  run: shell.Shell,
  values: Mapping[str, Any],
  arguments: argparse.Namespace,
) -> local.Local:
  return local.Local(job, run, **values, **_wait(arguments))


def _build_tpu(
  api: type[tpu_api.TpuApi],
  wait_seconds: float,
  job: jobs.Job,
  run: shell.Shell,
  values: dict[str, Any],
  arguments: argparse.Namespace,
) -> tpu.Tpu:
  is_mounted = values.pop('mounted', False)
  return tpu.Tpu(
    api(job, **values),
    run,
    is_mounted=is_mounted,
    pause=min(arguments.poll, _GCLOUD_PAUSE),
    **{'wait_seconds': wait_seconds, **_wait(arguments)},
  )


def _build_gke(
  job: jobs.Job,
  run: shell.Shell,
  values: dict[str, Any],
  arguments: argparse.Namespace,
) -> gke.Gke:
  commands = kubectl.Kubectl(
    job.name, values.pop('context', ''), values.pop('namespace', '')
  )
  manifest = gke_manifest.Manifest(
    job, retries=arguments.retries, grace=arguments.grace, **values
  )
  pause = min(arguments.poll, _KUBECTL_PAUSE)
  return gke.Gke(manifest, commands, run, pause=pause, **_wait(arguments))


def _build_slurm(
  job: jobs.Job,
  run: shell.Shell,
  values: Mapping[str, Any],
  arguments: argparse.Namespace,
) -> slurm.Slurm:
  scripts = slurm_scripts.Scripts(
    job, retries=arguments.retries, grace=arguments.grace, **values
  )
  return slurm.Slurm(scripts, run, **_wait(arguments))


_TPU_REQUIRED = ('accelerator', 'zone', 'project')
_TPU_OPTIONAL = ('provisioning', 'runtime', 'also', 'mounted')

BACKENDS = {
  'local': Entry(
    required=(),
    optional=('hosts', 'port'),
    deletes_in_workdir=True,
    build=_build_local,
  ),
  'tpu_vm': Entry(
    required=_TPU_REQUIRED,
    optional=_TPU_OPTIONAL,
    deletes_in_workdir=False,
    build=functools.partial(_build_tpu, tpu_api.TpuVmApi, _TPU_VM_WAIT),
  ),
  'queued': Entry(
    required=_TPU_REQUIRED,
    optional=_TPU_OPTIONAL,
    deletes_in_workdir=False,
    build=functools.partial(_build_tpu, tpu_api.QueuedResourceApi, _QUEUE_WAIT),
  ),
  'gke': Entry(
    required=('accelerator',),
    optional=(
      'provisioning',
      'reservation',
      'context',
      'namespace',
      'image',
      'fetch_image',
      'service_account',
    ),
    deletes_in_workdir=True,
    build=_build_gke,
  ),
  'slurm': Entry(
    required=(),
    optional=(
      'hosts',
      'gres',
      'partition',
      'account',
      'time',
      'python',
      'extra',
      'also',
    ),
    deletes_in_workdir=True,
    build=_build_slurm,
  ),
}


def build_backend(
  arguments: argparse.Namespace, job: jobs.Job, run: shell.Shell
) -> backends.Backend:
  """Builds the backend that the flags ask for.

  Raises:
    UserError: flags are missing, or belong to other backends.
  """
  name = arguments.backend
  backend = BACKENDS[name]
  known = (*backend.required, *backend.optional)
  all_flags = {
    flag
    for other in BACKENDS.values()
    for flag in (*other.required, *other.optional)
  }
  for flag in sorted(all_flags.difference(known)):
    if getattr(arguments, flag) is not None:
      expected = ', '.join(f'--{flag}' for flag in known)
      raise errors.UserError(
        f'--backend={name}: expected no flags but {expected}, got --{flag}'
      )
  for flag in backend.required:
    if not getattr(arguments, flag):
      raise errors.UserError(f'--{flag} is missing: --backend={name} needs it')
  values = {
    flag: getattr(arguments, flag)
    for flag in known
    if getattr(arguments, flag) is not None
  }
  if 'accelerator' in values:
    values['accelerator'] = accelerators.parse_accelerator(
      values['accelerator']
    )
  return backend.build(job, run, values, arguments)
