"""Settings that must be equal on all hosts of a run, and their differences.

settings = host_settings.shared_settings(config, stages='all')
host_settings.describe_differences({'a': settings, 'b': other_settings})
"""

import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from runtime import options

# What has to be the same on all hosts.
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
LIBRARIES += ('numpy',)

_ROOT = pathlib.Path(__file__).parents[2]
_PROJECT = 'label-efficient-segmentation'
_MOST_NAMED = 6


def shared_settings(config: Any, **more: Any) -> dict[str, Any]:
  """What all hosts have to have in common, by name.

  Args:
    config: of the experiment.
    **more: further values.
  """
  return {
    'config': options.to_dict(config),
    **more,
    'code': _code(),
    **{name: _version(name) for name in LIBRARIES},
  }


def _code() -> str:
  """The commit, or the version; and a digest of the files as they are."""
  try:
    git = subprocess.run(
      ['git', 'rev-parse', '--short=12', 'HEAD'],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    commit = git.stdout.strip() if (_ROOT / '.git').exists() else ''
  except OSError:  # There is no git.
    commit = ''
  digest = hashlib.sha256()
  for package in sorted(p.parent for p in _ROOT.glob('*/__init__.py')):
    for path in sorted(package.rglob('*.py')):
      digest.update(f'{path.relative_to(_ROOT)}\n'.encode())
      digest.update(path.read_bytes())
  return f'{commit or _version(_PROJECT)}, files {digest.hexdigest()[:12]}'


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def describe_differences(told: Mapping[str, Mapping[str, Any]]) -> str:
  """What hosts do not have in common, in a line; '' if there is nothing.

  Args:
    told: by host, what it has, by name.
  """
  lines = []
  names = list(dict.fromkeys(name for facts in told.values() for name in facts))
  for name in names:
    holders: dict[str, list[str]] = {}
    values = {}
    for host, facts in told.items():
      key = json.dumps(facts.get(name), sort_keys=True)
      holders.setdefault(key, []).append(host)
      values[key] = facts.get(name)
    if len(holders) == 1:
      continue
    first, *others = sorted(holders, key=lambda key: -len(holders[key]))
    if isinstance(values[first], Mapping):
      lines += [
        f'{name}.{line} on {shorten(holders[other])}'
        for other in others
        for line in options.differences(values[first], values[other])
      ]
    else:
      lines.append(
        f'{name} is '
        + ', '.join(
          f'{values[key]} on {shorten(holders[key])}'
          for key in (first, *others)
        )
      )
  if not lines:
    return ''
  more = len(lines) - _MOST_NAMED
  return (
    f'the hosts differ: {"; ".join(lines[:_MOST_NAMED])}'
    + (f'; and {more} more' if more > 0 else '')
    + ': make them equal'
  )


def shorten(texts: Sequence[str]) -> str:
  """Returns the first texts, separated by commas; counts the others."""
  more = len(texts) - _MOST_NAMED
  return ', '.join(texts[:_MOST_NAMED]) + (
    f' and {more} more' if more > 0 else ''
  )
