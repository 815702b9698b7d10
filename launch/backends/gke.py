"""A JobSet of GKE: what is advised for TPU7x and later, and serves the others.

The cluster restarts it: the JobSet starts all pods again after status 75 and
after preemption; status 2 and other failures end it.
"""

import dataclasses
import json
import math
import pathlib
import shlex
import subprocess
import time
from typing import Any

from launch import accelerators, backends, shell, source, worker
from launch import job as jobs
from runtime import errors

_JOB = 'launch/job'
_COMMIT = 'launch/commit'
_NAME = 'jobset.sigs.k8s.io/jobset-name'
_INDEX = 'batch.kubernetes.io/job-completion-index'
_CONTAINER, _FETCH = 'main', 'fetch'
# A pod that waits for these is on its way.
_ON_THE_WAY = ('PodInitializing', 'ContainerCreating')
# Beyond the pods' own time for saving, until deleting counts as failed.
_DELETION_SECONDS = 60.0

# Statuses of a pod that do not say the job is wrong: saved and interrupted,
# killed, asked to stop. Those of the loss of another host are held back.
_TRANSIENT = (jobs.PREEMPTED, 137, 143)
_HOLD_SECONDS = 60
# Workers of which the last lines are shown.
_MOST_NAMED = 3

# What is killed while this shell lives on was so for want of memory: a pod that
# is taken away ends as a whole. And a worker that fails because another one was
# taken away is to be seen after it: the first failure decides whether the
# JobSet is restarted.
_HOLD = f"""\
if [ "$code" -eq 137 ]; then
  echo 'error: killed: out of memory?' >&2
  exit 1
fi
case "$code" in
  0|2|{'|'.join(map(str, _TRANSIENT))}) ;;
  *) sleep {_HOLD_SECONDS} & child=$!; wait "$child" ;;
esac
exit "$code"
"""

_TOLERATES_SPOT = {
  'key': 'cloud.google.com/gke-spot',
  'operator': 'Equal',
  'value': 'true',
  'effect': 'NoSchedule',
}
# Disruptions count as restarts; exit statuses that are not transient end all,
# those of fetching the code too.
_POD_FAILURES = [
  {
    'action': 'Count',
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  },
  {
    'action': 'FailJob',
    'onExitCodes': {'operator': 'NotIn', 'values': list(_TRANSIENT)},
  },
]


@dataclasses.dataclass
class Gke:
  """A JobSet.

  Attributes:
    job: what is run.
    run: runs commands.
    accelerator: what each pod's node is part of.
    provisioning: 'on_demand', 'spot' or 'reserved'.
    reservation: name of the reservation, for 'reserved'.
    context: of kubectl; the current one if ''.
    namespace: of the JobSet; that of the context if ''.
    image: of the pods; has Python 3.11 and bash.
    fetch_image: fetches the code; has gcloud.
    service_account: of Kubernetes, that may read the bucket; '' is the default.
    retries: how often the JobSet is restarted.
    grace: seconds a pod has for saving.
    wait_seconds: until all pods run.
    pause: seconds between two looks while it is deleted.
  """

  job: jobs.Job
  run: shell.Shell
  accelerator: accelerators.Accelerator
  provisioning: str = 'on_demand'
  reservation: str = ''
  context: str = ''
  namespace: str = ''
  image: str = 'python:3.11'
  fetch_image: str = 'gcr.io/google.com/cloudsdktool/google-cloud-cli:stable'
  service_account: str = ''
  retries: int = 50
  grace: float = 120.0
  wait_seconds: float = 86400.0
  pause: float = 2.0
  restarts_itself: bool = True
  _commit: str = ''
  _codes: dict[str, int | None] = dataclasses.field(default_factory=dict)
  # Pod and container of each worker that has failed; what is said of the whole.
  _failed: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  _said: str = ''
  _follower: subprocess.Popen | None = None
  _followed: str = ''
  _broken: bool = False

  def __post_init__(self):
    if not self.job.workdir.startswith('gs://'):
      raise errors.UserError(
        f'--workdir: found {self.job.workdir}, expected gs://…: nothing else '
        'outlives a pod'
      )
    if self.provisioning == 'reserved' and not self.reservation:
      raise errors.UserError(
        '--reservation is missing: expected the name of one, for '
        '--provisioning=reserved'
      )
    if self.reservation and self.provisioning != 'reserved':
      raise errors.UserError(
        f'--reservation: found {self.reservation}, expected it with '
        '--provisioning=reserved only'
      )

  # What is done, as a manifest and commands.

  @property
  def where(self) -> str:
    """See `Backend`."""
    return (
      f'namespace {self.namespace or "of the context"} of '
      f'{self.context or "the current context"}'
    )

  @property
  def manifest_path(self) -> pathlib.Path:
    """Where the manifest lies while it is needed."""
    return source.CACHE.expanduser() / f'{self.job.name}.json'

  def archive_there(self, commit: str) -> str:
    """Where the pods find the code."""
    name = f'{self.job.name}-{commit[:12]}.tar.gz'
    return f'{self.job.workdir.rstrip("/")}/launch/{name}'

  def _selector(self) -> dict[str, str]:
    gke = 'cloud.google.com'
    found = {
      f'{gke}/gke-tpu-accelerator': self.accelerator.generation.gke,
      f'{gke}/gke-tpu-topology': self.accelerator.topology,
    }
    if self.provisioning == 'spot':
      found[f'{gke}/gke-spot'] = 'true'
    if self.provisioning == 'reserved':
      found[f'{gke}/reservation-name'] = self.reservation
    return found

  def fetch_script(self, commit: str) -> str:
    """Fetches the code; a pod's rights to do so may be some seconds late."""
    there = shlex.quote(self.archive_there(commit))
    copy = f'gcloud storage cp {there} /work/code.tar.gz'
    return f"""\
for pause in 5 10 20 40; do
  {copy} && exit 0
  sleep "$pause"
done
exec {copy}
"""

  def script(self) -> str:
    """What each pod runs."""
    command = shlex.join(['../venv/bin/python', *self.job.arguments])
    return f"""\
set -e
trap 'exit 143' TERM  # The first process of a pod has no default for it.
cd /work
mkdir -p tree
tar -xzf code.tar.gz -C tree
python3 -m venv venv
{worker.requirements('tpu')}set +e
cd tree
{command} &
{worker.wait()}{_HOLD}"""

  def manifest(self, commit: str) -> dict[str, Any]:
    """The JobSet, which makes a headless service for its pods by itself."""
    job = {
      'completionMode': 'Indexed',
      'completions': self.accelerator.hosts,
      'parallelism': self.accelerator.hosts,
      # The first pod that fails ends the job, and the JobSet starts all of it
      # again, unless the policy says otherwise.
      'backoffLimit': 0,
      'podFailurePolicy': {'rules': _POD_FAILURES},
      'template': {'spec': self._pod(commit)},
    }
    return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2',
      'kind': 'JobSet',
      'metadata': {
        'name': self.job.name,
        'annotations': {
          _JOB: self.job.digest,
          _COMMIT: commit,
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
          {'name': 'workers', 'replicas': 1, 'template': {'spec': job}}
        ],
      },
    }

  def _pod(self, commit: str) -> dict[str, Any]:
    """What runs on each host: the code is fetched, then it is started."""
    chips = {'google.com/tpu': self.accelerator.chips_per_host}
    volume = {'name': 'work', 'mountPath': '/work'}
    fetch = {
      'name': _FETCH,
      'image': self.fetch_image,
      'command': ['sh', '-c', _escaped(self.fetch_script(commit))],
      'volumeMounts': [volume],
    }
    container = {
      'name': _CONTAINER,
      'image': self.image,
      'command': ['bash', '-c', _escaped(self.script())],
      'env': [
        {'name': name, 'value': _escaped(value)}
        for name, value in self.job.environment
      ],
      # Those of the chips' own network, and of jax.
      'ports': [{'containerPort': port} for port in (8471, 8482)],
      'resources': {'requests': chips, 'limits': chips},
      'volumeMounts': [volume],
    }
    spot = self.provisioning == 'spot'
    pod: dict[str, Any] = {
      'restartPolicy': 'Never',
      'terminationGracePeriodSeconds': max(1, math.ceil(self.grace)),
      'nodeSelector': self._selector(),
      'tolerations': [
        {'key': 'google.com/tpu', 'operator': 'Exists'},
        *([_TOLERATES_SPOT] if spot else []),
      ],
      'volumes': [{'name': 'work', 'emptyDir': {}}],
      'initContainers': [fetch],
      'containers': [container],
    }
    if self.service_account:
      pod['serviceAccountName'] = self.service_account
    return pod

  def _kubectl(self, *words: str) -> list[str]:
    where = {'context': self.context, 'namespace': self.namespace}
    return [
      'kubectl',
      *words,
      *(f'--{name}={value}' for name, value in where.items() if value),
    ]

  def _get_command(self) -> list[str]:
    words = ('get', 'jobset', self.job.name, '--ignore-not-found')
    return self._kubectl(*words, '--output=json')

  def _pods_command(self) -> list[str]:
    selector = f'--selector={_NAME}={self.job.name}'
    return self._kubectl('get', 'pods', selector, '--output=json')

  def _upload_command(self, commit: str, archive: pathlib.Path) -> list[str]:
    there = self.archive_there(commit)
    return ['gcloud', 'storage', 'cp', str(archive), there]

  def _apply_command(self) -> list[str]:
    return self._kubectl('apply', f'--filename={self.manifest_path}')

  def _logs_command(self, pod: str) -> list[str]:
    words = ('logs', pod, f'--container={_CONTAINER}', '--follow')
    return self._kubectl(*words)

  def _last_words_command(self, pod: str, container: str) -> list[str]:
    return self._kubectl('logs', pod, f'--container={container}', '--tail=20')

  def _delete_command(self) -> list[str]:
    """It is gone once its pods are; waiting for it would be deaf to Ctrl-C."""
    words = ('delete', 'jobset', self.job.name, '--ignore-not-found')
    more = ('--cascade=foreground', '--wait=false', '--request-timeout=60s')
    return self._kubectl(*words, *more)

  def _force_command(self) -> list[str]:
    selector = f'--selector={_NAME}={self.job.name}'
    more = ('--grace-period=0', '--force', '--wait=false')
    return self._kubectl('delete', 'pods', selector, *more)

  def _remove_command(self, commit: str) -> list[str]:
    return ['gcloud', 'storage', 'rm', self.archive_there(commit)]

  def steps(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    archive = source.archive_path(self.job.name, commit)
    commands = {
      'is it there already?': self._get_command(),
      'the code': source.archive_command(commit, archive),
      'ship the code': self._upload_command(commit, archive),
    }
    later = {
      'submit': self._apply_command(),
      'watch: the whole': self._get_command(),
      'watch: each worker': self._pods_command(),
      'watch: what it prints': self._logs_command('POD'),
      'if the code was not fetched': self._last_words_command('POD', _FETCH),
    }
    return [
      *backends.steps(commands),
      backends.Step(
        f'the file {self.manifest_path}', _json(self.manifest(commit))
      ),
      *backends.steps(later),
      *self.deletion(commit),
    ]

  def deletion(self, commit: str) -> list[backends.Step]:
    """See `Backend`."""
    return backends.steps(
      {
        'at the end, whatever happened': self._delete_command(),
        'until it is gone': self._get_command(),
        'on Ctrl-C once more': self._force_command(),
        'and the code': self._remove_command(commit),
      }
    )

  # Doing it.

  def _jobset(self) -> dict[str, Any] | None:
    result = self.run(self._get_command())
    if result.code:
      raise errors.UserError(f'kubectl: {result.last_line}')
    return json.loads(result.out) if result.out.strip() else None

  def find(self) -> backends.Found | None:
    """See `Backend`."""
    jobset = self._jobset()
    if jobset is None:
      return None
    notes = jobset['metadata'].get('annotations', {})
    self._commit = notes.get(_COMMIT, '')
    return backends.Found(notes.get(_JOB, ''), self._commit)

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """See `Backend`."""
    self._commit = commit
    result = self.run(self._upload_command(commit, archive))
    if result.code:
      raise errors.UserError(f'gcloud: {result.last_line}')
    self.manifest_path.parent.mkdir(parents=True, exist_ok=True)
    self.manifest_path.write_text(_json(self.manifest(commit)))
    with self.run.undisturbed():
      result = self.run(self._apply_command(), whole=True)
      if result.code:
        self.run(self._remove_command(commit))
        self.manifest_path.unlink()
        raise errors.UserError(f'kubectl: {result.last_line}')

  def pending(self) -> str:
    """See `Backend`."""
    try:
      jobset = self._jobset()
      pods = self._pods()
    except errors.UserError as error:
      return f'{backends.NO_ANSWER} ({error})'
    if jobset is None:
      raise backends.Deleted('there is no JobSet')
    if _terminal(jobset)[0]:
      return ''
    waits = self.accelerator.hosts - sum(
      pod['status'].get('phase') not in (None, 'Pending') for pod in pods
    )
    if waits <= 0:
      return ''
    why = next(filter(None, map(_stuck, pods)), '')
    return f'{waits} of {self.accelerator.hosts} pods{why and f" ({why})"}'

  def _pods(self) -> list[dict[str, Any]]:
    result = self.run(self._pods_command())
    if result.code:
      raise errors.UserError(f'kubectl: {result.last_line}')
    return json.loads(result.out)['items']

  def prepare(self, archive: pathlib.Path) -> None:
    """Nothing: the pods fetch the code."""

  def start(self) -> None:
    """Nothing: the JobSet starts its pods."""

  def poll(self) -> backends.Report:
    """See `Backend`."""
    try:
      jobset, pods = self._jobset(), self._pods()
    except errors.UserError as error:  # Later somebody may answer.
      return backends.Report(silence=f'{backends.NO_ANSWER} ({error})')
    if jobset is None:
      raise backends.Deleted('there is no JobSet')
    # Pods go with their job: what they left is kept here.
    for pod in sorted(
      pods, key=lambda pod: pod['metadata'].get('creationTimestamp', '')
    ):
      self._note(pod)
    state, self._said = _terminal(jobset)
    codes = dict(sorted(self._codes.items(), key=lambda i: int(i[0][7:])))
    if any(map(_out_of_memory, pods)):
      self._said = 'a pod ran out of memory'
      return backends.Report(codes, True, over=jobs.FAILED)
    if not state:
      return backends.Report(codes, True)
    self._end_following()
    known = {n: c for n, c in codes.items() if c is not None}
    if state == 'Completed':
      over = jobs.DONE
    elif known:
      over = jobs.combine(known) or jobs.FAILED
    else:
      over = jobs.FAILED  # No pod has come as far as to run the job.
    return backends.Report(codes, True, over=over)

  def _note(self, pod: dict[str, Any]) -> None:
    """Remembers how a pod ended; follows what the first one prints."""
    meta, status = pod['metadata'], pod['status']
    notes = {**meta.get('labels', {}), **meta.get('annotations', {})}
    index = notes.get(_INDEX, '0')
    codes = {
      name: state.get('terminated', {}).get('exitCode')
      for name, state in _states(pod)
    }
    name, code = f'worker-{index}', codes.get(_CONTAINER)
    self._codes[name] = code
    self._failed.pop(name, None)
    if failed := [container for container, code in codes.items() if code]:
      self._failed[name] = meta['name'], failed[0]
    if index == '0' and status.get('phase') not in (None, 'Pending'):
      self._follow(meta['name'], code is None)

  def _follow(self, pod: str, alive: bool) -> None:
    """Prints what a pod prints, from now on."""
    command = self._logs_command(pod)
    if pod == self._followed:
      if not self._follower or self._follower.poll() is None:
        return
      # It ends with the pod, whose end may be seen only at the next look.
      broken, self._broken = self._broken, alive
      if not (alive and broken):
        return
      command.append('--since=1m')  # The connection was lost.
    self._end_following()
    self._followed, self._broken = pod, False
    self._follower = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, start_new_session=True
    )

  def _end_following(self) -> None:
    """Lets what was printed arrive."""
    if self._follower:
      try:
        self._follower.wait(timeout=5)
      except subprocess.TimeoutExpired:
        self._follower.kill()
        self._follower.wait()
      self._follower = None

  def last_words(self) -> str:
    """See `Backend`; what the first pod has printed is known already."""
    text = f'launch: JobSet: {self._said}\n' if self._said else ''
    for name, (pod, container) in sorted(self._failed.items())[:_MOST_NAMED]:
      if pod == self._followed and container == _CONTAINER:
        continue
      result = self.run(self._last_words_command(pod, container))
      lines = (result.out or result.err).splitlines()
      text += ''.join(f'{name}, {container}| {line}\n' for line in lines)
    return text

  def stop(self, now: bool = False) -> bool:
    """Nothing: a pod that is deleted may save first."""
    return False

  def leave(self) -> None:
    """See `Backend`."""
    if self._follower:
      self._follower.kill()
      self._follower.wait()
      self._follower = None

  def delete(self) -> str:
    """See `Backend`."""
    result = self.run(self._delete_command())
    if result.code:
      return result.last_line
    if problem := self._await_deletion():
      return problem
    self._end_following()
    if self._commit:
      self.run(self._remove_command(self._commit))
    self.manifest_path.unlink(missing_ok=True)
    return ''

  def _await_deletion(self) -> str:
    """Returns when nothing is left; what went wrong, '' if nothing.

    Pods may save. Whoever asks to stop once more ends that.
    """
    asked, forced = self.run.requests, False
    end = time.monotonic() + self.grace + _DELETION_SECONDS
    try:
      while self._jobset() is not None:
        if time.monotonic() > end:
          return f'its pods are still there after {self.grace:g} s for saving'
        if self.run.requests > min(asked, 1) and not forced:
          self.run(self._force_command())
          forced = True
        self.run.sleep(self.pause)
    except errors.UserError as error:
      return str(error)
    return ''


def _terminal(jobset: dict[str, Any]) -> tuple[str, str]:
  """'Completed' or 'Failed' and why, once the JobSet is over; '' before."""
  for condition in jobset.get('status', {}).get('conditions', []):
    if condition['status'] == 'True' and condition['type'] in (
      'Completed',
      'Failed',
    ):
      return condition['type'], errors.one_line(condition.get('message', ''))
  return '', ''


def _states(pod: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Name and state of each container, those that prepare the pod first."""
  return [
    (container['name'], container.get('state', {}))
    for kind in ('initContainerStatuses', 'containerStatuses')
    for container in pod['status'].get(kind, [])
  ]


def _stuck(pod: dict[str, Any]) -> str:
  """What a pod waits for in vain, such as an image that is not there."""
  for name, state in _states(pod):
    waiting = state.get('waiting', {})
    if waiting.get('reason', _ON_THE_WAY[0]) not in _ON_THE_WAY:
      said = errors.one_line(waiting.get('message', ''))
      return f'{name}: {waiting["reason"]}{said and f": {said}"}'
  return ''


def _out_of_memory(pod: dict[str, Any]) -> bool:
  """Whether it was killed for that: another time it would be, too."""
  return any(
    state.get('terminated', {}).get('reason') == 'OOMKilled'
    for _, state in _states(pod)
  )


def _escaped(text: str) -> str:
  """Text that Kubernetes leaves as it is: `$(NAME)` would be its own."""
  return text.replace('$', '$$')


def _json(content: Any) -> str:
  """JSON, which is YAML too, and quotes everything that has to be."""
  return json.dumps(content, indent=2, ensure_ascii=False) + '\n'
