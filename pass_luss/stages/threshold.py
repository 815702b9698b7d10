"""The attention threshold of a stage: given, or chosen on images with masks."""

from collections.abc import Iterator

from input_pipeline import datasets
from pass_luss.pseudo_labels import labeler as labeler_lib
from pass_luss.pseudo_labels import threshold_sweep
from runtime import console, json_files
from segcore.distributed import collectives
from segcore.train import workspace as workspace_lib

FILE = 'threshold.json'


def choose_attention_threshold(
  workspace: workspace_lib.Workspace,
  labeler: labeler_lib.Labeler,
  num_categories: int,
  given: float,
  choose_on: datasets.Split | None,
  foreground: labeler_lib.ForegroundFunction | None = None,
  by_name: bool = False,
  advice: str = '',
) -> labeler_lib.ForegroundThreshold:
  """Returns the threshold that attention must reach; writes it to a file.

  Args:
    workspace: workspace of the stage; a threshold that its folder already
      contains is returned.
    labeler: labeler that computes the attention.
    num_categories: number of categories without the background.
    given: threshold to return unless one is chosen; a negative one counts as 0.
    choose_on: images with masks, on which the best threshold is chosen; None
      takes the given one.
    foreground: supplied foreground, if any.
    by_name: whether categories are the classes of the masks.
    advice: what to do if labels are best without any foreground.
  """
  path = workspace.directory / FILE
  # Host 0 decides: another host may see its files later.
  if collectives.broadcast_from_host_0(path.exists()):
    return labeler_lib.ForegroundThreshold(**json_files.read_json(path))
  threshold = labeler_lib.ForegroundThreshold(max(given, 0.0))
  if choose_on is not None:
    num_classes = len(choose_on.classes) - 1
    sweep = labeler.sweep_thresholds(
      choose_on, num_categories, num_classes, foreground
    )
    threshold = labeler_lib.ForegroundThreshold(
      *sweep.best(by_name), choose_on.name, sweep.foreground_auc()
    )
    for line in _describe_choice(threshold, sweep, advice):
      console.print_line(line)
  json_files.write_json(path, threshold._asdict())
  return threshold


def _describe_choice(
  chosen: labeler_lib.ForegroundThreshold,
  sweep: threshold_sweep.ThresholdSweep,
  advice: str,
) -> Iterator[str]:
  """Yields lines on a chosen threshold, and a warning where all is 'other'."""
  yield (
    f'threshold {chosen.threshold:.2f}: mIoU {chosen.miou:.4f} on '
    f'{chosen.chosen_on}, the best of those tried'
  )
  auc = chosen.foreground_auc
  if auc is None:
    return
  yield (
    '  a pixel of an object has more foreground than one of the background in '
    f'{auc:.0%} of all pairs (50%: chance)'
  )
  if not sweep.count_foreground(chosen.threshold):
    yield (
      f'warning: no labeled pixel of {chosen.chosen_on} reaches this '
      'threshold, as labels are better without any foreground: all are '
      'background. '
      f'threshold=NUMBER sets another one{advice}'
    )
