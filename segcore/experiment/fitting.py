"""Crops that are chosen from the data, before the stages of a run are built."""

import dataclasses
import functools
from typing import Any

import ml_collections

from input_pipeline import crop_scale, datasets
from runtime import console, files, json_files, options
from segcore.experiment import data as data_lib

_FITTED = 'fitted'


def fit_config_crops(
  config: ml_collections.ConfigDict, workdir: files.Path
) -> ml_collections.ConfigDict:
  """Returns a config whose crops named 'fitted' have their sizes and areas.

  A stage that was started keeps the crop of its settings, without its data.
  Data sets of other stages are prepared if they are not. The choice is printed.

  Args:
    config: the experiment, with the blocks of its stages.
    workdir: folder of the run.

  Raises:
    UserError: a data set cannot be prepared.
  """
  stages = config.stages if 'stages' in config else ()
  names = [name for name in stages if _has_fitted_crop(config, name)]
  if not names:
    return config
  fitted = ml_collections.ConfigDict(config.to_dict())
  choose = functools.cache(
    lambda crop, data, split: _choose_crop(crop, data, split, config.data_dir)
  )
  stages_by_line: dict[str, list[str]] = {}
  for name in names:
    block = config[name]
    crop = options.build_named_options(
      data_lib.CROPS, block.crop.to_dict(), f'config.{name}.crop'
    )
    chosen = _read_started_crop(workdir / name, name)
    if chosen is None:
      data = options.build_options(
        datasets.DataOptions, block.data, f'config.{name}.data'
      )
      inception, source = choose(crop, data, block.split)
      chosen = {'name': 'inception', **dataclasses.asdict(inception)}
      if not crop.is_complete:
        line = f'{crop_scale.describe_crop(inception)}, chosen for {source}'
        stages_by_line.setdefault(line, []).append(name)
    given = {
      field: tuple(getattr(crop, field))
      for field in ('size', 'area')
      if any(getattr(crop, field))
    }
    fitted[name].crop = ml_collections.ConfigDict({**chosen, **given})
  for line, stages in stages_by_line.items():
    console.print_line(
      f'crops of {", ".join(stages)}: {line}\n'
      '  (other ones: size=HEIGHTxWIDTH, crop=LEAST-LARGEST in the options)'
    )
  fitted.lock()
  return fitted


def is_fitted_crop(crop: Any) -> bool:
  """Returns whether a config block is the crop 'fitted', chosen from data."""
  # The crops of PASS are objects, not blocks.
  return hasattr(crop, 'items') and dict(crop.items()).get('name') == _FITTED


def describe_fitted_crop(block: Any, size: tuple[int, int]) -> list[str]:
  """Returns a line about a crop that only the data decide, if it is one.

  Args:
    block: options of a stage.
    size: height and width that are assumed, in pixels.
  """
  if not is_fitted_crop(getattr(block, 'crop', {})):
    return []
  height, width = size
  return [f'the data decide the size of crops: {height}x{width} is assumed']


def _has_fitted_crop(config: ml_collections.ConfigDict, name: str) -> bool:
  return (
    name in config
    and 'crop' in config[name]
    and is_fitted_crop(config[name].crop)
  )


def _read_started_crop(
  directory: files.Path, name: str
) -> dict[str, Any] | None:
  """Returns the crop that a stage was started with; None if it was not."""
  path = directory / 'settings.json'
  if not path.exists():
    return None
  settings = json_files.read_json(path)['settings']
  crop = settings.get(name, {}).get('crop', {})
  if 'size' not in crop or is_fitted_crop(crop):
    return None
  return {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in crop.items()
  }


def _choose_crop(
  crop: crop_scale.FittedInceptionCrop,
  data: datasets.DataOptions,
  split: str,
  data_dir: str,
) -> crop_scale.FittedScale:
  """Fits a crop to the images and objects of a split."""
  if crop.is_complete:
    return crop.fit([])
  sizes = datasets.open_dataset_split(data, split, data_dir).sizes()
  counts = datasets.read_split_counts(data, split, data_dir)
  return crop.fit(sizes, counts.objects)
