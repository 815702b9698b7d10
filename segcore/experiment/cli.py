"""The command line of training: flags, start of the devices, exit status.

  def stages(config): ...
  if __name__ == '__main__':
    app.run(stages)

Exit status: 0 when the last stage is done, 75 when the machine asked to stop
and everything needed to go on is saved, or another host does not answer (run
the same command again), 2 for what the user can mend, 141 when nobody reads
what is printed any longer.
"""

import contextlib
import errno
import importlib.util
import math
import pathlib
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from runtime import console, errors, exit_status, files
from segcore.cost import topology as topology_lib
from segcore.distributed import heartbeat, host_settings, rendezvous
from segcore.eval import export, predict
from segcore.experiment import stage
from segcore.train import workspace as workspace_lib

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: launchers start the same command again.
EXIT_INTERRUPTED = 130

# A process alone must not miss its own heartbeats when it is suspended.
_NEVER_SECONDS = 10**8
# How ml_collections tells of a ValueError that a config file raises; of others
# the traceback stays, as they are mistakes in the file.
_REFUSED_BY_CONFIG = re.compile(
  r'(?P<flag>.*)Error whilst parsing config file:\s+Traceback .*'
  r'\nValueError: (?P<text>.*)',
  re.DOTALL,
)
# Characters of an exception that other hosts print.
_MOST_TOLD = 500

# Builds the stages of an experiment from its config; for these devices, if they
# are given.
BuildStages = Callable[..., Sequence[stage.Stage]]
# Reads what a finished run in a folder has trained.
LoadModel = Callable[[ml_collections.ConfigDict, files.Path], predict.Model]


def run(build: BuildStages, load: LoadModel) -> NoReturn:
  """Runs the command line of this process and exits."""
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  # What Orbax's threads log with a traceback, they also raise.
  logging.get_absl_logger().addFilter(
    lambda record: 'orbax' not in record.pathname
  )
  exit_status.run(lambda: main(build, sys.argv, load))


def main(
  build: BuildStages, argv: Sequence[str], load: LoadModel | None = None
) -> int:
  """Runs a command line; returns the exit status."""
  command = None
  try:
    command = parse(argv)
    if command is None:
      return 0
    if command.topology:
      _rehearse_elsewhere(build, command)
      return 0
    with _hosts(command), _disk_full(command.workdir):
      stages = build(command.config)
      if command.dry_run:
        stage.dry_run_stages(stages, command.stages, command.compiles)
        return 0
      if command.request is None:
        stage.run_stages(stages, command.workdir, command.stages)
      else:
        stage.check(stages, command.workdir)
        model = load(command.config, command.workdir)
        if isinstance(command.request, export.Request):
          export.run(model, command.workdir / 'export', command.request)
        else:
          predict.run(model, command.request)
  except errors.UserError as error:
    _complain(_told(error, command))
    return EXIT_USER_ERROR
  except workspace_lib.Preempted as stopped:
    console.log(f'stopped: {stopped}; run the same command again to go on')
    return EXIT_PREEMPTED
  except KeyboardInterrupt:
    console.log('interrupted; run the same command again to go on')
    return EXIT_INTERRUPTED
  console.log(f'done: {command.workdir}')
  return 0


class Hosts(NamedTuple):
  """How the hosts of a run find and watch each other.

  Attributes:
    coordinator_port: of process 0; None for the one that is named or found.
    init_timeout: seconds in which all have to come.
    peer_timeout: seconds of silence after which one counts as lost.
    stall_timeout: seconds in which somebody has to come further; 0 is any time.
  """

  coordinator_port: int | None = None
  init_timeout: float = 600.0
  peer_timeout: float = 60.0
  stall_timeout: float = 1800.0


class Command(NamedTuple):
  """A command line of training.

  Attributes:
    config: the experiment, locked.
    workdir: its folder, absolute, or an address (gs://…).
    stages: to run; all of them if empty.
    request: what to predict or export, instead of running stages.
    dry_run: only say what the stages would compute and cost.
    compiles: say what the compiler finds, too.
    topology: devices that the dry run is for, instead of those at hand.
    hosts: how they find and watch each other.
  """

  config: ml_collections.ConfigDict
  workdir: files.Path
  stages: tuple[str, ...]
  request: predict.Request | export.Request | None = None
  dry_run: bool = False
  compiles: bool = False
  topology: topology_lib.Topology | None = None
  hosts: Hosts = Hosts()


def parse(argv: Sequence[str]) -> Command | None:
  """Reads a command line; None if only help was asked for.

  Raises:
    UserError: a flag is unknown, or the config does not load.
  """
  values = _flags(argv)
  try:
    rest = values(list(argv))[1:]
  except Exception as error:  # Whatever a config file raises is its author's.
    raise errors.UserError(_one_line(error)) from error
  # Grain's worker processes ask for absl's own flags.
  flags.FLAGS.mark_as_parsed()
  if values.help:
    print(values.main_module_help() or values.get_help())
    return None
  if rest:
    raise errors.UserError(f'{rest[0]!r} is no flag: expected --name=value')
  config = values.config
  if config is None:
    raise errors.UserError(
      '--config is missing: expected a file such as configs/ddep_shapes.py'
    )
  if not isinstance(config, ml_collections.ConfigDict):
    # It stands in for a file that could not be loaded: any use says why.
    try:
      config.program  # noqa: B018
    except OSError as error:
      raise errors.UserError(_one_line(error)) from error
  workdir = values.workdir or default_workdir(
    config_flags.get_config_filename(values['config'])
  )
  return Command(
    config,
    files.absolute(files.parse_path(workdir, '--workdir')),
    tuple(values.stage),
    _request(values),
    values.dry_run or values.dry_run_xla,
    values.dry_run_xla,
    _topology(values),
    Hosts(
      values.coordinator_port,
      values.init_timeout,
      values.peer_timeout,
      values.stall_timeout,
    ),
  )


def _flags(argv: Sequence[str]) -> flags.FlagValues:
  """The flags of a command line, not read yet."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Experiment: a file, and options after a colon.',
    lock_config=True,
    flag_values=values,
    sys_argv=list(argv),
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of checkpoints and results, or gs://BUCKET/FOLDER; '
    'runs/<config> by default.',
    flag_values=values,
  )
  flags.DEFINE_list(
    'stage',
    [],
    'Stages to run; all of them by default. Or: predict; or: export.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Say what the stages would compute and cost; read and write nothing.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'dry_run_xla',
    False,
    'The same, and compile, for what XLA says of operations and memory.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'topology',
    None,
    'Devices that --dry_run compiles for: v4:2x2x1, v5e:16x16, cpu:256.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'images', None, 'Folder of images to predict.', flag_values=values
  )
  flags.DEFINE_string(
    'out', None, 'Folder of the predictions.', flag_values=values
  )
  flags.DEFINE_string(
    'export_size',
    None,
    'Height x width that an exported network looks at; any by default.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'overlays', True, 'Write predictions laid over images.', flag_values=values
  )
  flags.DEFINE_bool(
    'probs', False, 'Write the probability of each class.', flag_values=values
  )
  _define_flags_of_hosts(values)
  flags.DEFINE_bool('help', False, 'Show this text.', flag_values=values)
  return values


def _define_flags_of_hosts(values: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    'coordinator_port',
    None,
    'Port of process 0; by default the one of JAX_COORDINATOR_ADDRESS, or '
    'what jax takes.',
    lower_bound=1,
    upper_bound=65535,
    flag_values=values,
  )
  flags.DEFINE_float(
    'init_timeout',
    Hosts().init_timeout,
    'Seconds in which all hosts have to report in.',
    lower_bound=1.0,
    flag_values=values,
  )
  flags.DEFINE_float(
    'peer_timeout',
    Hosts().peer_timeout,
    'Seconds of silence after which a host counts as lost.',
    lower_bound=1.0,
    flag_values=values,
  )
  flags.DEFINE_float(
    'stall_timeout',
    Hosts().stall_timeout,
    'Seconds after which all end if no host has come further; 0: never.',
    lower_bound=0.0,
    flag_values=values,
  )


def _request(
  values: flags.FlagValues,
) -> predict.Request | export.Request | None:
  """What to predict or to export, if that was asked for."""
  if values.export_size and values.stage != ['export']:
    raise errors.UserError('--export_size is for --stage=export')
  if 'export' in values.stage:
    return _export(values)
  if 'predict' not in values.stage:
    if values.images or values.out:
      raise errors.UserError('--images and --out are for --stage=predict')
    return None
  if values.stage != ['predict']:
    raise errors.UserError(
      f'--stage: found {",".join(values.stage)}, expected predict alone'
    )
  if values.dry_run or values.dry_run_xla:
    raise errors.UserError('--dry_run is of training, not of --stage=predict')
  for name in ('images', 'out'):
    if not values[name].value:
      raise errors.UserError(
        f'--{name} is missing: expected a folder, for --stage=predict'
      )
  return predict.Request(
    pathlib.Path(values.images).expanduser(),
    pathlib.Path(values.out).expanduser(),
    values.overlays,
    values.probs,
  )


def _export(values: flags.FlagValues) -> export.Request:
  """What to export."""
  if values.stage != ['export']:
    raise errors.UserError(
      f'--stage: found {",".join(values.stage)}, expected export alone'
    )
  if values.dry_run or values.dry_run_xla:
    raise errors.UserError('--dry_run is of training, not of --stage=export')
  if values.export_size is None:
    return export.Request()
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', values.export_size)
  if not match:
    raise errors.UserError(
      f'--export_size: found {values.export_size}, expected such as 512x512'
    )
  return export.Request((int(match[1]), int(match[2])))


def _topology(values: flags.FlagValues) -> topology_lib.Topology | None:
  """The devices of a dry run, if they are not those at hand."""
  if values.topology is None:
    return None
  if not values.dry_run and not values.dry_run_xla:
    raise errors.UserError('--topology is for --dry_run')
  return topology_lib.parse(values.topology)


def _rehearse_elsewhere(build: BuildStages, command: Command) -> None:
  """A dry run for devices that are not here; joins no other hosts."""
  # Only stages that are asked for have to fit the devices: what is built on is
  # the smallest mesh that the experiment allows.
  fsdp = command.config.operation.fsdp
  devices = command.topology.start_simulated_devices(fsdp)[:fsdp]
  stages = build(command.config, devices)
  stage.dry_run_stages(stages, command.stages, topology=command.topology)


def program_of(config: ml_collections.ConfigDict) -> str:
  """The module whose command line runs an experiment: 'ddep.main'.

  Raises:
    UserError: the config does not say.
  """
  program = config.program if 'program' in config else ''
  try:
    known = bool(program) and importlib.util.find_spec(program) is not None
  except ModuleNotFoundError:  # Of its package.
    known = False
  if not known:
    raise errors.UserError(
      f'config.program: found {program!r}, expected a module such as ddep.main'
    )
  return program


def _told(error: errors.UserError, command: Command | None) -> str:
  """The line; where files are missing, with what the config says to that."""
  advice = ''
  missing = isinstance(error, errors.MissingInput)
  if missing and command and 'without_files' in command.config:
    advice = command.config.without_files
  return f'{error}; {advice}' if advice else str(error)


def default_workdir(config: str) -> str:
  """runs/<name of the config file>-<its options>.

  >>> default_workdir('configs/ddep_shapes.py:init=dep,labels=50')
  'runs/ddep_shapes-init=dep,labels=50'
  """
  path, _, arguments = config.partition(':')
  name = pathlib.Path(path).stem + (f'-{arguments}' if arguments else '')
  return str(pathlib.Path('runs') / re.sub(r'[^\w.,=-]', '_', name))


@contextlib.contextmanager
def _hosts(command: Command) -> Iterator[None]:
  """Joins the other hosts, if there are any; none goes on without another.

  If this process fails, the others are told why, and end too.

  Raises:
    UserError: a host does not come, or differs from the others.
  """
  wanted = command.hosts
  if jax.distributed.is_initialized():
    yield
    return
  group = rendezvous.discover(wanted.coordinator_port, wanted.init_timeout)
  if group is None:
    _start_alone()
    yield
    return
  known = host_settings.shared_settings(
    command.config,
    workdir=str(command.workdir),
    stages=','.join(command.stages) or 'all',
  )
  links = rendezvous.connect(group, known, wanted.init_timeout)
  watching = heartbeat.HeartbeatMonitor(
    links, wanted.peer_timeout, wanted.stall_timeout
  )
  try:
    _start_among(group, wanted)
    yield
  except workspace_lib.Preempted:
    watching.close()
    raise
  except errors.UserError as error:
    told = _told(error, command)
    _complain(told)
    watching.abort(told, EXIT_USER_ERROR, immediately=True)
  except KeyboardInterrupt:
    watching.abort('interrupted', EXIT_INTERRUPTED, immediately=True)
  except BaseException as error:
    traceback.print_exc()
    told = errors.one_line(f'{type(error).__name__}: {error}')
    watching.abort(
      told[:_MOST_TOLD], heartbeat.EXIT_PEER_LOST, immediately=False
    )
  else:
    watching.close()


def _start_alone() -> None:
  """Makes a group of this process.

  So a request to stop (SIGTERM) is noticed by one mechanism on a laptop and on
  a pod.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    num_processes=1,
    process_id=0,
    cluster_detection_method='deactivate',
    heartbeat_timeout_seconds=_NEVER_SECONDS,
  )


def _start_among(group: rendezvous.ProcessGroup, wanted: Hosts) -> None:
  """Lets jax join the hosts that have met."""
  jax.distributed.initialize(
    group.address,
    num_processes=group.count,
    process_id=group.index,
    local_device_ids=group.local_device_ids,
    # Or jax would choose one device, under SLURM.
    cluster_detection_method='deactivate',
    initialization_timeout=math.ceil(wanted.init_timeout),
    # Later than `watch`, which says who is lost.
    heartbeat_timeout_seconds=math.ceil(2 * wanted.peer_timeout) + 60,
  )


def _complain(text: str) -> None:
  print(f'error: {text}', file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
  refused = _REFUSED_BY_CONFIG.fullmatch(str(error))
  if refused:
    return f'{refused["flag"]}{" ".join(refused["text"].split())}'
  # The text of an AttributeError may be quoted, with its line breaks escaped.
  text = ' '.join(str(error).strip('\'"').replace('\\n', ' ').split())
  known = (flags.Error, ValueError, OSError, errors.UserError)
  return text if isinstance(error, known) else f'{type(error).__name__}: {text}'


@contextlib.contextmanager
def _disk_full(workdir: files.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise errors.UserError(
      f'the disk of {workdir} is full: nothing is lost; free some space and '
      'run the same command again'
    ) from error
