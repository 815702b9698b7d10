"""The code to ship: a commit, never uncommitted files of the checkout."""

import pathlib

from launch import shell
from runtime import errors

CACHE = pathlib.Path('~/.cache/label_efficient_segmentation/launch')


def resolve_code_commit(run: shell.Shell, commit: str = '') -> str:
  """Returns the full hash of the commit to ship.

  Args:
    run: shell that runs git in the current folder.
    commit: name of the commit, in any form of git; '' for HEAD, which is
      refused if files of the checkout differ from it.

  Raises:
    UserError: there is no such commit, or '' and the checkout is not clean.
  """
  if not commit:
    # Otherwise `status` may lock the index and rewrite it.
    status = run(['git', '--no-optional-locks', 'status', '--porcelain'])
    if status.code:
      raise errors.UserError(
        f'cannot determine the commit to ship: {status.error_line}; run this '
        'in a git checkout of the code'
      )
    changed = status.out.splitlines()
    if changed:
      others = f' and {len(changed) - 1} more' if len(changed) > 1 else ''
      raise errors.UserError(
        f'not committed: {changed[0][3:]}{others}; commit first, or choose '
        'what to ship, as in --commit=HEAD'
      )
  name = f'{commit or "HEAD"}^{{commit}}'
  parsed = run(['git', 'rev-parse', '--verify', '--quiet', name])
  if parsed.code:
    raise errors.UserError(f'--commit: expected a commit, got {commit!r}')
  return parsed.out.strip()


def code_archive_path(name: str, commit: str) -> pathlib.Path:
  """Returns the local path of the code archive of a job.

  Args:
    name: name of the job.
    commit: full hash of the commit.
  """
  return CACHE.expanduser() / f'{name}-{commit[:12]}.tar.gz'


def code_archive_command(commit: str, path: pathlib.Path) -> list[str]:
  """Returns the command that writes the files of a commit into an archive."""
  return ['git', 'archive', '--format=tar.gz', f'--output={path}', commit]
