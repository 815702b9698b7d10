"""Options of a run that change no result."""

import dataclasses

from input_pipeline import loader as loader_lib
from runtime.option_ranges import AtLeastOne, CheckedOptions


@dataclasses.dataclass(frozen=True)
class OperationOptions(CheckedOptions):
  """Options of logging, saving and hardware, which do not change any result.

  Attributes:
    log_every: steps between progress lines, lines of metrics.jsonl and
      TensorBoard points.
    save_every: steps between checkpoints.
    save_minutes: minutes after which a checkpoint is saved earlier; 0: never.
    fsdp: devices over which large leaves of the state are sharded.
    extend: continue a finished training whose `num_steps` has grown, where the
      steps before are those of the longer one.
    record_ids: whether to write the ids of each step's images (host 0's rows)
      to `ids.jsonl`.
    reading: threads and worker processes of the input pipeline.
  """

  log_every: AtLeastOne = 50
  save_every: AtLeastOne = 500
  save_minutes: float = 2.0
  fsdp: AtLeastOne = 1
  extend: bool = False
  record_ids: bool = False
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()

  def __post_init__(self):
    super().__post_init__()
    if not self.save_minutes >= 0:
      raise ValueError(f'save_minutes: expected >= 0, got {self.save_minutes}')
