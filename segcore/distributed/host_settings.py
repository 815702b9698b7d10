"""Settings that must be equal on all hosts of a run, and their differences.

settings = host_settings.shared_host_settings(config, stages='all')
host_settings.describe_host_differences({'a': settings, 'b': settings_of_b})
"""

import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from runtime import options

# Libraries whose versions change programs, numbers or the order of the data.
LIBRARIES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'opencv-python-headless',
  'pillow',
)
# Extras that change values of pixels by rounding: all hosts have it, or none.
EXTRAS = ('cykooz-resizer',)

_ROOT = pathlib.Path(__file__).parents[2]
_PROJECT = 'label-efficient-segmentation'
_MAX_LISTED = 6


def shared_host_settings(config: Any, **more: Any) -> dict[str, Any]:
  """Returns the settings that must be equal on all hosts, by name.

  Hosts that differ in one of these settings trace different programs, whose
  collectives wait for each other without end, or silently read different data.

  Args:
    config: config of the experiment.
    **more: further values by name, such as the stages to run.
  """
  return {
    'config': options.options_to_dict(config),
    **more,
    # Equal configs on unequal code trace different programs all the same.
    'code': _code_version(),
    **library_versions(),
  }


def library_versions() -> dict[str, str]:
  """Returns the versions of the libraries on which values depend, by name."""
  return {name: _package_version(name) for name in (*LIBRARIES, *EXTRAS)}


def _code_version() -> str:
  """Returns the commit, or else the version, and a digest of all modules.

  The digest covers changes that are not committed, and copies without git.
  """
  try:
    git = subprocess.run(
      ['git', 'rev-parse', '--short=12', 'HEAD'],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    # An installed package may lie inside of a repository of somebody else.
    commit = git.stdout.strip() if (_ROOT / '.git').exists() else ''
  except OSError:  # git is not installed.
    commit = ''
  # Sorted, and with names: the same files in another order are the same code.
  digest = hashlib.sha256()
  for package in sorted(p.parent for p in _ROOT.glob('*/__init__.py')):
    for path in sorted(package.rglob('*.py')):
      digest.update(f'{path.relative_to(_ROOT)}\n'.encode())
      digest.update(path.read_bytes())
  version = commit or _package_version(_PROJECT)
  return f'{version}, files {digest.hexdigest()[:12]}'


def _package_version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def describe_host_differences(settings: Mapping[str, Mapping[str, Any]]) -> str:
  """Describes the settings that are not equal on all hosts, one a line.

  Args:
    settings: settings by name, of each host by its name.

  Returns:
    An error message, or '' if all are equal.
  """
  lines = []
  names = dict.fromkeys(name for each in settings.values() for name in each)
  for name in names:
    lines += _differences(
      name, {host: each.get(name) for host, each in settings.items()}
    )
  if not lines:
    return ''
  # Configs of two experiments may differ in hundreds of fields.
  omitted = len(lines) - _MAX_LISTED
  lines = lines[:_MAX_LISTED]
  if omitted > 0:
    lines.append(f'{omitted} more')
  return 'the hosts differ, make them equal:' + ''.join(
    f'\n- {line}' for line in lines
  )


def _differences(name: str, values: Mapping[str, Any]) -> list[str]:
  """Describes the differences of one setting.

  Args:
    name: name of the setting.
    values: value of each host, by the name of the host.
  """
  hosts: dict[str, list[str]] = {}
  value_of = {}
  for host, value in values.items():
    # As text, since lists and mappings cannot be keys themselves.
    key = json.dumps(value, sort_keys=True)
    hosts.setdefault(key, []).append(host)
    value_of[key] = value
  if len(hosts) == 1:
    return []
  # The value of most hosts is likely the right one: others are compared to it.
  most, *others = sorted(hosts, key=lambda key: -len(hosts[key]))
  if isinstance(value_of[most], Mapping):
    return [
      f'{name}.{line} on {shorten_host_list(hosts[other])}'
      for other in others
      for line in options.option_differences(value_of[most], value_of[other])
    ]
  each = [
    f'{value_of[key]} on {shorten_host_list(hosts[key])}'
    for key in (most, *others)
  ]
  return [f'{name} is {", ".join(each)}']


def shorten_host_list(names: Sequence[str]) -> str:
  """Joins names of hosts by commas; of many, the first and a count of the rest.

  >>> shorten_host_list(['1', '2'])
  '1, 2'
  """
  omitted = len(names) - _MAX_LISTED
  joined = ', '.join(names[:_MAX_LISTED])
  return f'{joined} and {omitted} more' if omitted > 0 else joined
