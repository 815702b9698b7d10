"""The command line of training.

  PROGRAM = program.Program(lambda: program.Parts(…))
  if __name__ == '__main__':
    cli.run_program(PROGRAM)

Exit status: 0 when the last stage is done; 75 when the run was asked to stop
and everything needed to resume is saved, or another host does not answer (run
the same command again); 2 for user errors; 130 when Ctrl-C quit at once; 141
when the reader of the output has closed the pipe.
"""

import contextlib
import errno
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, Protocol, runtime_checkable

import ml_collections
from absl import logging
from etils import epy

from runtime import console, errors, exit_status, files, memory
from segcore.experiment import command, config_file

with epy.lazy_imports():
  from segcore.eval import export, predict
  from segcore.experiment import fitting, hosts, stage
  from segcore.train import workspace

# Lines of XLA's advice to file a bug where compiling takes minutes, and of jax
# about the signal that Ctrl-C becomes.
_HIDDEN_LINES = (
  r'slow_operation_alarm\.cc|^\*{20,}$|Very slow compile\?|'
  r'^The operation took |preemption_notifier\.cc'
)


@runtime_checkable
class Program(Protocol):
  """Builds the stages of an experiment; see `segcore.experiment.program`."""

  def build_stages(
    self,
    config: ml_collections.ConfigDict,
    devices: list | None = None,
    workdir: files.Path | None = None,
  ) -> 'Sequence[stage.Stage]':
    """Builds the stages without opening data.

    Args:
      config: the experiment.
      devices: devices of the mesh; all if None.
      workdir: folder of a run, whose files must exist; None if nothing is run.
    """
    ...

  def load_model(
    self, config: ml_collections.ConfigDict, workdir: files.Path
  ) -> 'predict.Model':
    """Returns the trained network of a finished run."""
    ...


def run_program(program: Program) -> NoReturn:
  """Runs the command line of this process and exits with its status."""
  console.hide_stderr_lines(_HIDDEN_LINES)
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  # Orbax's threads log with a traceback what they raise as well.
  logging.get_absl_logger().addFilter(
    lambda record: 'orbax' not in record.pathname
  )
  exit_status.exit_with_status(lambda: run_command_line(program, sys.argv))


def run_command_line(program: Program, argv: Sequence[str]) -> int:
  """Runs a command line of training; returns the exit status.

  Args:
    program: builder of the stages.
    argv: words of the command line, with the name of the program.
  """
  parsed = None
  try:
    with memory.without_garbage_collection():
      parsed = command.parse_command(argv)
    if parsed is None:
      return 0
    if parsed.topology:
      _dry_run_elsewhere(program, parsed)
      return 0
    with hosts.joined_hosts(parsed), _explaining_full_disk(parsed.workdir):
      execute_command(program, parsed)
      if parsed.dry_run:
        return 0
  except errors.UserError as error:
    advised = hosts.describe_user_error(error, parsed) if parsed else error
    errors.print_user_error(advised)
    return exit_status.USER_ERROR
  except workspace.Preempted as stopped:
    console.print_line(
      f'stopped: {stopped}; run the same command again to go on'
    )
    return exit_status.PREEMPTED
  except KeyboardInterrupt:
    console.print_line('interrupted; run the same command again to go on')
    return exit_status.INTERRUPTED
  console.print_line(f'done: {parsed.workdir}')
  return 0


def execute_command(program: Program, parsed: command.Command) -> None:
  """Runs what a command line asks for: stages, dry run, prediction or export.

  Raises:
    UserError: a setting or an input is wrong.
    Preempted: the run was asked to stop; its state is saved.
  """
  if parsed.request is None:
    for note in parsed.config.get('notes', ()):
      console.print_line(note)
  if parsed.dry_run:
    stages = program.build_stages(parsed.config)
    stage.dry_run_stages(stages, parsed.stages, parsed.compiles)
    return
  config = fitting.fit_config_crops(parsed.config, parsed.workdir)
  if parsed.request is None:
    stages = program.build_stages(config, workdir=parsed.workdir)
    stage.run_stages(
      stages,
      parsed.workdir,
      parsed.stages,
      functools.partial(config_file.save_config, config),
    )
  else:
    stages = program.build_stages(config)
    # No data is read: it need not be where it was.
    stage.place_stages(stages, parsed.workdir, compares_content=False)
    model = program.load_model(config, parsed.workdir)
    if isinstance(parsed.request, export.Request):
      export.export_network(model, parsed.workdir / 'export', parsed.request)
    else:
      predict.predict_images(model, parsed.request)


def _dry_run_elsewhere(program: Program, parsed: command.Command) -> None:
  """Reports the cost on devices that are not here; joins no other hosts."""
  # The stages are built on the smallest mesh that the experiment allows, since
  # only those that --stage names have to fit the devices of the topology.
  fsdp = parsed.config.operation.fsdp
  devices = parsed.topology.start_simulated_devices(fsdp)[:fsdp]
  stages = program.build_stages(parsed.config, devices)
  stage.dry_run_stages(stages, parsed.stages, topology=parsed.topology)


@contextlib.contextmanager
def _explaining_full_disk(workdir: files.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise errors.UserError(
      f'the disk of {workdir} is full: nothing is lost; free some space and '
      'run the same command again'
    ) from error
