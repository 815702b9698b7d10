"""The command line of training: every flag, and what they parse to."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
from absl import flags
from etils import epy
from ml_collections import config_flags

from runtime import errors, files
from segcore.experiment import config_file, placement

with epy.lazy_imports():
  from segcore.cost import topology as topology_lib
  from segcore.eval import export, predict

# Exceptions for flags that are unknown or do not parse.
_REFUSED = (
  flags.Error,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
  errors.UserError,
)


class HostOptions(NamedTuple):
  """Options of the rendezvous and the heartbeat of several hosts.

  Attributes:
    coordinator_port: port of process 0; None for that of the environment.
    init_timeout: seconds in which all hosts have to join.
    peer_timeout: seconds without a heartbeat after which a host is lost.
    stall_timeout: seconds without progress on any host after which the run
      ends; 0 for no limit.
  """

  coordinator_port: int | None = None
  init_timeout: float = 600.0
  peer_timeout: float = 60.0
  stall_timeout: float = 1800.0


class Command(NamedTuple):
  """Holds a parsed command line of training.

  Attributes:
    config: config of the experiment, locked.
    workdir: folder of the run: an absolute path, or an address (gs://…).
    stages: names of the stages to run; all stages if empty.
    request: prediction or export to run instead of the stages.
    dry_run: whether only the cost of the stages is reported.
    compiles: whether the figures of the compiler are reported, too.
    topology: devices of the dry run; None for those of this process.
    hosts: options of the rendezvous and the heartbeat.
  """

  config: ml_collections.ConfigDict
  workdir: files.Path
  stages: tuple[str, ...]
  request: 'predict.Request | export.Request | None' = None
  dry_run: bool = False
  compiles: bool = False
  topology: 'topology_lib.Topology | None' = None
  hosts: HostOptions = HostOptions()


def parse_command(argv: Sequence[str]) -> Command | None:
  """Parses the command line of training; returns None after --help.

  Raises:
    UserError: a flag is unknown, or the config does not load.
  """
  argv = _with_saved_config(argv)
  values = _flags(argv)
  try:
    rest = values(list(argv))[1:]
  except _REFUSED as error:
    raise errors.UserError(_one_line(error)) from error
  # Grain's worker processes ask for absl's own flags.
  flags.FLAGS.mark_as_parsed()
  if values.help:
    print(values.main_module_help() or values.get_help())
    return None
  if rest:
    raise errors.UserError(f'expected --name=value, got {rest[0]!r}')
  config = values.config
  if config is None:
    raise errors.UserError(
      '--config: expected a file such as configs/ddep_shapes.py, got nothing'
    )
  config.lock()
  workdir = values.workdir or default_workdir(
    config_flags.get_config_filename(values['config'])
  )
  workdir = files.absolute_path(files.parse_file_path(workdir, '--workdir'))
  return Command(
    config,
    workdir,
    tuple(values.stage),
    _request(values, workdir),
    values.dry_run or values.dry_run_xla,
    values.dry_run_xla,
    _topology(values),
    HostOptions(
      values.coordinator_port,
      values.init_timeout,
      values.peer_timeout,
      values.stall_timeout,
    ),
  )


def _with_saved_config(argv: Sequence[str]) -> list[str]:
  """Adds the config that the work folder holds where none is given.

  Raises:
    UserError: the work folder has none.
  """
  given = {'config': None, 'workdir': None}
  for argument, following in zip(argv, [*argv[1:], None], strict=True):
    match = re.fullmatch(r'--?(config|workdir)(?:=(.*))?', argument)
    if match:
      given[match[1]] = following if match[2] is None else match[2]
  if given['config'] or not given['workdir'] or '--help' in argv:
    return list(argv)
  workdir = files.parse_file_path(given['workdir'], '--workdir')
  saved = workdir / placement.CONFIG_FILE
  if not saved.is_file():
    raise errors.UserError(
      '--config: expected a file such as configs/ddep_shapes.py, got nothing, '
      f'and {workdir} has no {saved.name} of an earlier run'
    )
  return [*argv[:1], f'--config={saved}', *argv[1:]]


def _flags(argv: Sequence[str]) -> flags.FlagValues:
  """Defines all flags, unparsed."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Experiment: a file, and options after a colon; by default the one that '
    '--workdir was made with.',
    # Fields of blocks whose class is chosen by a name, such as an encoder, are
    # not completed; they are checked where the class is built.
    lock_config=False,
    accept_new_attributes=True,
    flag_values=values,
    sys_argv=list(argv),
  )
  values['config'].parser = config_file.Parser(argv)
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
    'Stages to run; all of them by default. Or predict, or export.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Report what the stages would compute and cost, and time three steps '
    'here; read no image, write nothing.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'dry_run_xla',
    False,
    'The same with the operations and memory of the compiled programs.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'topology',
    None,
    'Devices that --dry_run compiles for: v4:2x2x1, v5e:16x16, cpu:256.',
    flag_values=values,
  )
  _define_prediction_flags(values)
  _define_host_flags(values)
  flags.DEFINE_bool('help', False, 'Show this text.', flag_values=values)
  return values


def _define_prediction_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'images', None, 'Folder of images to predict.', flag_values=values
  )
  flags.DEFINE_string(
    'out',
    None,
    'Folder of the predictions; predictions/<images> of --workdir by default.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'export_size',
    None,
    'Height x width of the images of an exported network; any by default.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'overlays',
    True,
    'Write overlays of predictions on images.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'probs', False, 'Write the probability of each class.', flag_values=values
  )
  flags.DEFINE_integer(
    'max_megapixels',
    0,
    'Skip larger images; 0: by the limit of the training data.',
    lower_bound=0,
    flag_values=values,
  )


def _define_host_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    'coordinator_port',
    None,
    'Port of process 0; by default the one of JAX_COORDINATOR_ADDRESS, or '
    'the default of jax.',
    lower_bound=1,
    upper_bound=65535,
    flag_values=values,
  )
  flags.DEFINE_float(
    'init_timeout',
    HostOptions().init_timeout,
    'Seconds in which all hosts have to join.',
    lower_bound=1.0,
    flag_values=values,
  )
  flags.DEFINE_float(
    'peer_timeout',
    HostOptions().peer_timeout,
    'Seconds without a heartbeat after which a host counts as lost.',
    lower_bound=1.0,
    flag_values=values,
  )
  flags.DEFINE_float(
    'stall_timeout',
    HostOptions().stall_timeout,
    'Seconds without progress on any host after which all end; 0: never.',
    lower_bound=0.0,
    flag_values=values,
  )


def _request(
  values: flags.FlagValues, workdir: files.Path
) -> 'predict.Request | export.Request | None':
  """Returns the prediction or export that was requested, if any."""
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
      f'--stage: expected predict alone, got {",".join(values.stage)}'
    )
  if values.dry_run or values.dry_run_xla:
    raise errors.UserError('--dry_run is for training, not for --stage=predict')
  if not values.images:
    raise errors.UserError('--images: --stage=predict needs a folder, got none')
  images = pathlib.Path(values.images).expanduser()
  out = values.out or workdir / 'predictions' / images.resolve().name
  if not values.out and not files.is_local_path(workdir):
    raise errors.UserError(
      f'--out: expected a folder of this machine, as {workdir} is a bucket, '
      'got none'
    )
  return predict.Request(
    images,
    pathlib.Path(out).expanduser(),
    values.overlays,
    values.probs,
    values.max_megapixels,
  )


def _export(values: flags.FlagValues) -> 'export.Request':
  """Returns the export that was requested."""
  if values.stage != ['export']:
    raise errors.UserError(
      f'--stage: expected export alone, got {",".join(values.stage)}'
    )
  if values.dry_run or values.dry_run_xla:
    raise errors.UserError('--dry_run is for training, not for --stage=export')
  if values.export_size is None:
    return export.Request()
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', values.export_size)
  if not match:
    raise errors.UserError(
      f'--export_size: expected HEIGHTxWIDTH such as 512x512, got '
      f'{values.export_size}'
    )
  return export.Request((int(match[1]), int(match[2])))


def _topology(values: flags.FlagValues) -> 'topology_lib.Topology | None':
  """Returns the devices of --topology, if it is given."""
  if values.topology is None:
    return None
  if not values.dry_run and not values.dry_run_xla:
    raise errors.UserError('--topology is for --dry_run')
  return topology_lib.parse_topology(values.topology)


def default_workdir(config: str) -> str:
  """Returns the default work folder, runs/<config file>-<options>.

  The config that a run has left belongs to its own folder.

  >>> default_workdir('configs/ddep_shapes.py:init=dep,labels=50')
  'runs/ddep_shapes-init=dep,labels=50'
  """
  path, _, arguments = config.partition(':')
  if config.endswith(placement.CONFIG_FILE):
    return config.removesuffix(placement.CONFIG_FILE).rstrip('/') or '.'
  name = pathlib.Path(path).stem + (f'-{arguments}' if arguments else '')
  return str(pathlib.Path('runs') / re.sub(r'[^\w.,=-]', '_', name))


def _one_line(error: Exception) -> str:
  # The text of an AttributeError may be quoted, with its line breaks escaped.
  text = str(error)
  if text[:1] in ('"', "'") and text[-1:] == text[:1]:
    text = text[1:-1]
  text = ' '.join(text.replace('\\n', ' ').split())
  known = (flags.Error, ValueError, errors.UserError)
  if isinstance(error, known):
    return text
  return f'the flags --config.FIELD=VALUE do not fit the config: {text}'
