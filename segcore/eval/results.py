"""The results of a stage that evaluates: results.json, curves and pictures."""

from typing import Any

import jax
import numpy as np

from input_pipeline import datasets
from runtime import files, json_files
from segcore.eval import (
  class_report,
  confusion_picture,
  evaluator,
  metrics,
  panels,
)
from segcore.train import tensorboard
from segcore.train import workspace as workspace_lib


class Results:
  """Collects the results of splits and writes them into a stage's folder.

    results = Results(workspace, step)
    results.add('val', values, split, panel)
    return results.write(protocol='whole image, single scale')

  Host 0 writes; the other hosts may call all methods, too.
  """

  def __init__(self, workspace: workspace_lib.Workspace, step: int = 0):
    self._workspace = workspace
    self._step = step
    self._pictures = workspace.directory / 'pictures'
    self._pictures.mkdir(parents=True, exist_ok=True)
    self._writer = tensorboard.open_training_tensorboard(
      workspace.directory / 'tensorboard'
    )
    self._splits: dict[str, Any] = {}

  def add(
    self,
    name: str,
    values: metrics.Values,
    split: datasets.Split,
    panel: np.ndarray | None = None,
  ) -> None:
    """Adds the metrics, and optionally a picture, of a split.

    Args:
      name: key in results.json, and prefix of the tags in TensorBoard.
      values: the metrics; NaN becomes null in results.json, and is left out of
        TensorBoard.
      split: the evaluated images.
      panel: picture of images, labels and predictions, uint8 [H, W, 3].
    """
    self._splits[name] = entry = evaluator.evaluation_to_json(values, split)
    known = {k: v for k, v in entry['metrics'].items() if v is not None}
    self._writer.write_scalars(
      self._step,
      {
        **{f'{name}/{k}': v for k, v in known.items()},
        **class_report.class_curves(name, split.classes, values),
      },
    )
    if panel is not None:
      self.write_panel(name, panel)
    if 'confusion' in values:
      picture = confusion_picture.draw_confusion(
        values['confusion'], split.classes
      )
      self._write_picture(f'{name}_confusion', f'{name}/confusion', picture)

  def write_panel(self, name: str, panel: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3], as a PNG and to TensorBoard."""
    self._write_picture(name, f'{name}/panels', panel)

  def _write_picture(self, file: str, tag: str, picture: np.ndarray) -> None:
    self._writer.write_images(self._step, {tag: picture[None]})
    if jax.process_index() == 0:
      panels.write_picture_png(self._pictures / f'{file}.png', picture)

  def write(self, **fields: Any) -> list[files.Path]:
    """Writes results.json; returns the paths of all outputs.

    Args:
      **fields: further entries of results.json, such as the protocol.
    """
    self._writer.close()
    path = self._workspace.directory / 'results.json'
    json_files.write_json(
      path,
      {**fields, 'digest': self._workspace.digest, 'splits': self._splits},
    )
    return [path, self._pictures]
