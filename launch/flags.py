"""The command-line flags of the launcher."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from runtime import errors

_PROVISIONING = ('on_demand', 'spot', 'reserved')


def parse_launch_flags(
  argv: Sequence[str], usage: str, names: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Parses a command line; returns its flags and the command after `--`.

  Args:
    argv: words of the command line without the program.
    usage: text shown by --help.
    names: names of the backends.

  Raises:
    UserError: a flag is unknown or has a wrong value.
  """
  own = list(argv)
  command: list[str] = []
  if '--' in own:
    i = own.index('--')
    own, command = own[:i], own[i + 1 :]
  return _build_parser(usage, names).parse_args(own), command


class _Parser(argparse.ArgumentParser):
  """Parses flags; raises a UserError of one line instead of exiting."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(message.removeprefix('argument '))


def _at_least(
  minimum: float, kind: type = float
) -> Callable[[str], int | float]:
  """Returns a parser of numbers that refuses those below a minimum."""

  def parse_number(text: str) -> int | float:
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not minimum <= value < math.inf:
      noun = 'a whole number' if kind is int else 'a number'
      raise argparse.ArgumentTypeError(
        f'expected {noun} >= {minimum:g}, got {text}'
      )
    return value

  return parse_number


def _port(text: str) -> int:
  if not text.isdigit() or not 1 <= int(text) <= 65535:
    raise argparse.ArgumentTypeError(f'expected 1 to 65535, got {text}')
  return int(text)


def _build_parser(usage: str, names: Sequence[str]) -> argparse.ArgumentParser:
  parser = _Parser(
    'python -m launch',
    usage='%(prog)s --backend=… --workdir=… [flags] -- -m MODULE [its flags]',
    description=usage,
    allow_abbrev=False,
  )
  parser.add_argument('--backend', required=True, choices=list(names))
  _add_job_flags(parser)
  _add_limit_flags(parser)
  _add_tpu_flags(parser.add_argument_group('TPUs'))
  _add_gke_flags(parser.add_argument_group('GKE'))
  _add_host_flags(parser.add_argument_group('SLURM and local'))
  parser.add_argument(
    '--also',
    action='append',
    metavar='FLAG',
    help='one more flag of gcloud create, or of sbatch; repeatable',
  )
  return parser


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--workdir', default='', help='work folder of the run, passed on to it')
  add('--name', help='of job and machines; by default derived from the command')
  add('--commit', default='', help='code to ship; by default HEAD, if clean')
  add(
    '--env',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='an environment variable of the job; repeatable',
  )
  add('--dry_run', action='store_true', help='print the steps, run nothing')
  add('--delete', action='store_true', help='delete the job and exit')
  add('--keep', action='store_true', help='delete nothing at the end')


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  seconds = _at_least(0.0)
  add(
    '--wait',
    type=seconds,
    help='seconds until the job can start; 0: no limit',
  )
  add(
    '--retries',
    type=_at_least(0.0, int),
    default=50,
    help='number of restarts after status 75 and preemption',
  )
  add(
    '--backoff',
    type=seconds,
    default=30.0,
    help='seconds before the first restart; doubled for each further one',
  )
  add(
    '--backoff_max',
    type=seconds,
    default=600.0,
    help='most seconds before a restart',
  )
  add(
    '--poll',
    type=_at_least(0.1),
    default=15.0,
    help='seconds between two polls',
  )
  add('--grace', type=seconds, default=120.0, help='seconds for saving')


def _add_tpu_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  add('--accelerator', help='v5e-64, v4-8, …')
  add('--zone')
  add('--project')
  add('--provisioning', choices=_PROVISIONING)
  add('--runtime', help='software version of TPU VMs, if not the default')
  add(
    '--mounted',
    action='store_const',
    const=True,
    help='--workdir is a folder that all TPU VMs mount',
  )


def _add_gke_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  add('--reservation', help='name of the reservation')
  add('--context', help='context of kubectl')
  add('--namespace')
  add('--image', help='of the pods; with Python 3.11 and bash')
  add('--fetch_image', help='of the container that fetches the code; gcloud')
  add('--service_account', help='of Kubernetes, with access to the bucket')


def _add_host_flags(group: argparse._ArgumentGroup) -> None:
  add = group.add_argument
  add(
    '--hosts',
    type=_at_least(1.0, int),
    help='number of nodes, or of processes on this machine',
  )
  add('--port', type=_port, help='local: port of the coordinator')
  add('--gres', help='generic resources of each node: gpu:8')
  add('--partition')
  add('--account')
  add('--time', help='limit after which the job is requeued: 24:00:00')
  add('--python', help='Python 3.11 on the nodes')
  add('--extra', choices=['cuda', 'tpu'], help='extra of setup.py to install')
