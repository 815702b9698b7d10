"""Reads the commands of a page of docs/methods/*_tables.md."""

import dataclasses
import functools
import pathlib
import re
import shlex
from typing import Any, NamedTuple

from segcore.experiment import command as command_lib
from segcore.study import cli as study_cli

ROOT = pathlib.Path(__file__).parents[2]


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    table: title of the table.
    name: of the row.
    command: that runs it.
    num_values: how many numbers of the paper it has.
  """

  table: str
  name: str
  command: str
  num_values: int


def path_of(page: str) -> pathlib.Path:
  """Returns the path of a page."""
  return ROOT / 'docs' / 'methods' / page


def read(page: str) -> list[Row]:
  """Returns the rows that have a command, in order."""
  rows, title = [], ''
  for line in path_of(page).read_text().splitlines():
    if line.startswith('## '):
      title = re.split(r': | \(', line[3:])[0]
    elif '`python -m segcore.study' in line:
      _, name, command, paper, _, _ = (x.strip() for x in line.split('|'))
      num_values = len(paper.split(' / '))
      rows.append(Row(title, name, command.strip('`'), num_values))
  return rows


def read_plain(page: str, config: str) -> list[tuple[str, str, str]]:
  """Returns name, options of the config, and work folder of each row.

  Args:
    page: page whose rows run `pass_luss.main` itself, not a study.
    config: name of the config.
  """
  return re.findall(
    r'^\| ([^|]+) \| `python -m pass_luss.main '
    rf'--config=configs/{config}.py:(\S+) --workdir=(\S+)` \|',
    path_of(page).read_text(),
    re.MULTILINE,
  )


def cells(command: str) -> tuple[Any, Any]:
  """Returns the study of a command, and its cells of the first seed."""
  arguments = shlex.split(command)
  assert arguments[:3] == ['python', '-m', 'segcore.study']
  study = study_cli.parse_study_command(arguments[3:]).study
  if study.sweep:
    return study, study.sweep_cells()
  first = dataclasses.replace(study, seeds=(0,))
  return study, first.final_cells({})


@functools.cache
def config_of(command: str, column: int) -> Any:
  """Returns the config of the first cell, or of the last one for -1."""
  study, first_cells = cells(command)
  arguments = first_cells[column].arguments(study)
  return command_lib.parse_command(['study', *arguments]).config
