"""The code that is shipped: a commit, never what merely lies in the folder."""

import pathlib

from launch import shell
from runtime import errors

CACHE = pathlib.Path('~/.cache/label_efficient_segmentation/launch')


def resolve(run: shell.Shell, commit: str = '') -> str:
  """The commit to ship, whole.

  Args:
    run: runs git in the current folder.
    commit: as it was named; '' is the one that is checked out.

  Raises:
    UserError: there is none, or nobody named one and files differ from it.
  """
  if not commit:
    # Without locks it does not write its index.
    status = run(['git', '--no-optional-locks', 'status', '--porcelain'])
    if status.code:
      raise errors.UserError(
        f'cannot tell which code to ship: {status.last_line}; run this in the '
        "code's own git checkout"
      )
    changed = status.out.splitlines()
    if changed:
      raise errors.UserError(
        f'{changed[0][3:]} is not committed'
        + (f', nor are {len(changed) - 1} more' if len(changed) > 1 else '')
        + ': commit, or name what to ship, as in --commit=HEAD'
      )
  name = f'{commit or "HEAD"}^{{commit}}'
  found = run(['git', 'rev-parse', '--verify', '--quiet', name])
  if found.code:
    raise errors.UserError(f'--commit: found {commit!r}, which is no commit')
  return found.out.strip()


def archive_path(name: str, commit: str) -> pathlib.Path:
  """Where the archive of a job lies while it is needed."""
  return CACHE.expanduser() / f'{name}-{commit[:12]}.tar.gz'


def archive_command(commit: str, path: pathlib.Path) -> list[str]:
  """Writes a commit's files into an archive."""
  return ['git', 'archive', '--format=tar.gz', f'--output={path}', commit]
