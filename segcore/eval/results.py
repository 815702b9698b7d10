"""What a stage that evaluates leaves: numbers, curves, pictures."""

from typing import Any

import jax
import numpy as np

from input_pipeline import datasets
from runtime import files, json_files
from segcore.eval import evaluator, metrics, panels
from segcore.train import tensorboard
from segcore.train import workspace as workspace_lib


class Results:
  """What a stage reports of splits: results.json, TensorBoard, pictures.

    results = Results(place, step)
    results.add('val', values, split, panel)
    return results.write(protocol='one view')

  Host 0 writes; the others may call all the same.
  """

  def __init__(self, place: workspace_lib.Workspace, step: int = 0):
    self._place = place
    self._step = step
    self._pictures = place.directory / 'pictures'
    self._pictures.mkdir(parents=True, exist_ok=True)
    self._writer = tensorboard.open_writer(place.directory / 'tensorboard')
    self._splits: dict[str, Any] = {}

  def add(
    self,
    name: str,
    values: metrics.Values,
    split: datasets.Split,
    panel: np.ndarray | None = None,
  ) -> None:
    """Takes what was found of a split, under this name."""
    self._splits[name] = found = evaluator.to_json(values, split)
    known = {k: v for k, v in found['metrics'].items() if v is not None}
    self._writer.write_scalars(
      self._step, {f'{name}/{k}': v for k, v in known.items()}
    )
    if panel is not None:
      self.write_panel(name, panel)

  def write_panel(self, name: str, panel: np.ndarray) -> None:
    """Writes a picture."""
    self._writer.write_images(self._step, {f'{name}/panels': panel[None]})
    if jax.process_index() == 0:
      panels.write_png(self._pictures / f'{name}.png', panel)

  def write(self, **said: Any) -> list[files.Path]:
    """Writes results.json, with what else is to be said; returns all files."""
    self._writer.close()
    path = self._place.directory / 'results.json'
    json_files.write(
      path, {**said, 'digest': self._place.digest, 'splits': self._splits}
    )
    return [path, self._pictures]
