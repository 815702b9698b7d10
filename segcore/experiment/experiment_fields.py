"""The fields that the configs of all methods share."""

import dataclasses

from segcore.models import network_options
from segcore.train import operation_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Holds the fields of every experiment; a method adds blocks of its stages.

  Attributes:
    program: name of the module whose command line runs the experiment.
    stages: names of the stages to run, in order.
    data_dir: folder of the records; '' for the default of TFDS.
    network: options of the network of all stages.
    operation: options of speed and intervals, which change no result.
    without_files: advice in the message about missing data or weights; or ''.
    notes: what the config chose for the user, printed at the start; one line
      each.
  """

  program: str
  stages: tuple[str, ...]
  data_dir: str = ''
  network: network_options.NetworkOptions
  operation: operation_options.OperationOptions = (
    operation_options.OperationOptions()
  )
  without_files: str = ''
  notes: tuple[str, ...] = ()
