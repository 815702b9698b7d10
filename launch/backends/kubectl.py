"""Commands of kubectl for a JobSet, and a process that follows a pod's log."""

import dataclasses
import pathlib
import subprocess

_NAME_LABEL = 'jobset.sigs.k8s.io/jobset-name'


@dataclasses.dataclass(frozen=True)
class Kubectl:
  """Builds the commands for one JobSet.

  Attributes:
    name: name of the JobSet.
    context: context of kubectl; '' for the current one.
    namespace: namespace of the JobSet; '' for that of the context.
  """

  name: str
  context: str = ''
  namespace: str = ''

  def get_jobset(self) -> list[str]:
    """Returns the command that prints the JobSet, if it exists."""
    return self._command(
      'get', 'jobset', self.name, '--ignore-not-found', '--output=json'
    )

  def get_pods(self) -> list[str]:
    """Returns the command that prints the pods of the JobSet."""
    return self._command('get', 'pods', self._selector, '--output=json')

  def apply(self, manifest: pathlib.Path) -> list[str]:
    """Returns the command that creates the JobSet of a manifest."""
    return self._command('apply', f'--filename={manifest}')

  def follow_log(self, pod: str, container: str) -> list[str]:
    """Returns the command that prints a container's log until it ends."""
    return self._command('logs', pod, f'--container={container}', '--follow')

  def print_log_end(self, pod: str, container: str) -> list[str]:
    """Returns the command that prints the last lines of a container's log."""
    return self._command('logs', pod, f'--container={container}', '--tail=20')

  def delete_jobset(self) -> list[str]:
    """Returns the command that deletes the JobSet after its pods.

    The command does not wait until they are deleted, since Ctrl-C has to work
    in the meantime.
    """
    return self._command(
      'delete',
      'jobset',
      self.name,
      '--ignore-not-found',
      '--cascade=foreground',
      '--wait=false',
      '--request-timeout=60s',
    )

  def kill_pods(self) -> list[str]:
    """Returns the command that ends all pods without time for saving."""
    return self._command(
      'delete',
      'pods',
      self._selector,
      '--grace-period=0',
      '--force',
      '--wait=false',
    )

  @property
  def _selector(self) -> str:
    return f'--selector={_NAME_LABEL}={self.name}'

  def _command(self, *words: str) -> list[str]:
    place = {'context': self.context, 'namespace': self.namespace}
    flags = [f'--{name}={value}' for name, value in place.items() if value]
    return ['kubectl', *words, *flags]


@dataclasses.dataclass
class LogFollower:
  """A background process that prints the log of one container.

  Attributes:
    kubectl: builder of the command.
    container: name of the container.
    pod: name of the pod that is followed; '' before the first.
  """

  kubectl: Kubectl
  container: str
  pod: str = ''
  _process: subprocess.Popen | None = None
  _was_broken: bool = False

  def follow(self, pod: str, is_alive: bool) -> None:
    """Starts to print the log of a pod, or reconnects to it.

    Args:
      pod: name of the pod.
      is_alive: whether the pod still runs.
    """
    command = self.kubectl.follow_log(pod, self.container)
    if pod == self.pod:
      if not self._process or self._process.poll() is None:
        return
      # The process ends with the pod, whose end may only be visible at the next
      # poll: the connection counts as lost if the pod is alive at two polls.
      was_broken, self._was_broken = self._was_broken, is_alive
      if not (is_alive and was_broken):
        return
      command.append('--since=1m')
    self.finish()
    self.pod, self._was_broken = pod, False
    self._process = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, start_new_session=True
    )

  def finish(self) -> None:
    """Waits for the rest of the log, then ends the process."""
    if self._process:
      try:
        self._process.wait(timeout=5)
      except subprocess.TimeoutExpired:
        self.kill()
      self._process = None

  def kill(self) -> None:
    """Ends the process at once."""
    if self._process:
      self._process.kill()
      self._process.wait()
      self._process = None
