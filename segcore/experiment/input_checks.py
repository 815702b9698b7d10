"""Checks of the files that stages read, before the first stage runs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import datasets
from runtime import errors, files
from segcore.distributed import collectives
from segcore.experiment import stage


def check_stage_inputs(stages: Sequence[Any], workdir: files.Path) -> None:
  """Checks the inputs of all unfinished stages, so that none fails hours later.

  Args:
    stages: all stages of the experiment, `ExperimentStage`s.
    workdir: folder of the experiment.

  Raises:
    UserError: a data set, a split, a kind of label or a weight file is missing,
      or the content of one does not fit. The message names all missing files.
  """
  left = require_stage_files(stages, workdir)
  for each in left:
    for split in each.inputs().splits:
      each.context.open(split.data, split.split, split.kind, each.name)
  for each in left:
    each.check_data()


def require_stage_files(
  stages: Sequence[Any], workdir: files.Path
) -> Sequence[Any]:
  """Checks that the files exist that unfinished stages read; opens none.

  Args:
    stages: all stages of the experiment, `ExperimentStage`s.
    workdir: folder of the experiment.

  Returns:
    The stages that are not finished.

  Raises:
    MissingInput: a data set or a weight file is missing on host 0. The message
      names all of them.
  """
  finished = np.array(
    [stage.is_stage_finished(workdir / s.name) for s in stages]
  )
  # Host 0 decides: another host may see its files later.
  finished = collectives.broadcast_from_host_0(finished)
  left = [s for s, done in zip(stages, finished, strict=True) if not done]
  missing: dict[str, None] = {}  # A dict keeps the order and drops repetitions.

  def collect(require: Any, *arguments: Any) -> None:
    try:
      require(*arguments)
    except errors.MissingInput as error:
      missing[str(error)] = None

  for each in left if jax.process_index() == 0 else ():
    inputs, context = each.inputs(), each.context
    collect(inputs.start.require, context.stages, f'{each.path}.start')
    for split in inputs.splits:
      collect(datasets.check_dataset_available, split.data, context.data_dir)
  if collectives.broadcast_from_host_0(bool(missing)):
    raise errors.MissingInput(
      errors.format_problem_lines([*missing]) or 'host 0 misses files'
    )
  return left
