"""Evaluators of whole splits, during training and for the report."""

from collections.abc import Mapping, Sequence

from input_pipeline import datasets, transforms
from runtime import errors, options
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics, protocols
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.train import loop, method

# Rows of a panel.
NUM_PANEL_ROWS = 6


def build_stage_evaluator(
  context: context_lib.Context,
  split: datasets.Split,
  predictor: inference.Predictor,
  metric: metrics.Metric,
  target: str,
  batch_size: int,
  log_progress: bool = False,
  padding: transforms.CenterCrop | None = None,
  class_subsets: Mapping[str, tuple[int, ...]] | None = None,
) -> evaluator_lib.Evaluator:
  """Builds the comparison of predictions with the labels of a split.

  Args:
    context: network options, data and devices of the experiment.
    split: images with labels.
    predictor: function from images to predictions.
    metric: empty metric, to which predictions and labels are added.
    target: kind of label: 'label' or 'tags'.
    batch_size: global number of images of a batch.
    log_progress: whether progress is logged.
    padding: crop and padding of the images before the network, if any.
    class_subsets: classes of further means of IoU, by the name of the value.
  """
  predictions = evaluator_lib.Predictions(
    split=split,
    predictor=predictor,
    batch_size=batch_size,
    mesh=context.mesh,
    keep=(target,),
    reading=context.operation.reading,
    log_progress=log_progress,
    padding=padding,
  )
  num_rows = NUM_PANEL_ROWS if target == 'label' else 0
  return evaluator_lib.Evaluator(
    predictions, (metric,), target, num_rows, class_subsets or {}
  )


def class_subsets_without(
  classes: Sequence[str], left_out: Mapping[str, Sequence[str]], path: str
) -> dict[str, tuple[int, ...]]:
  """Returns the ids of the classes that means of IoU keep.

  Args:
    classes: names of all classes.
    left_out: names of the classes that each mean leaves out.
    path: path of the block in the config, for messages.

  Raises:
    UserError: a class is unknown, or none is left.
  """
  subsets = {}
  for name, without in left_out.items():
    for each in without:
      if each not in classes:
        raise errors.UserError(
          f'{path}.{name}: {each!r}: '
          f'{options.describe_unknown_name(each, list(classes))}'
        )
    subsets[name] = tuple(
      i for i, each in enumerate(classes) if each not in without
    )
    if not subsets[name]:
      raise errors.UserError(
        f'{path}.{name}: expected to leave out some of the {len(classes)} '
        'classes, got all of them'
      )
  return subsets


def build_stage_predictor(
  context: context_lib.Context,
  scores: method.ScoreModel,
  num_classes: int,
  protocol: protocols.ProtocolOptions,
) -> inference.LabelMaps:
  """Builds the predictor of label maps by a protocol.

  Args:
    context: network options, data and devices of the experiment.
    scores: network with a score per class and pixel.
    num_classes: number of classes.
    protocol: inference protocol.
  """
  return inference.LabelMaps(
    scores, num_classes, protocol, context.size_multiple
  )


def build_stage_segmentation_evaluator(
  context: context_lib.Context,
  scores: method.ScoreModel,
  split: datasets.Split,
  batch_size: int,
  protocol: protocols.ProtocolOptions,
  log_progress: bool = False,
  padding: transforms.CenterCrop | None = None,
  class_subsets: Mapping[str, tuple[int, ...]] | None = None,
) -> evaluator_lib.Evaluator:
  """Builds the evaluator of the confusion matrix of a split.

  Args:
    context: network options, data and devices of the experiment.
    scores: network with a score per class and pixel.
    split: images with masks.
    batch_size: global number of images of a batch.
    protocol: inference protocol.
    log_progress: whether progress is logged.
    padding: crop and padding of the images before the network, if any.
    class_subsets: classes of further means of IoU, by the name of the value.
  """
  num_classes = len(split.classes)
  return build_stage_evaluator(
    context,
    split,
    build_stage_predictor(context, scores, num_classes, protocol),
    metrics.ConfusionMatrix.empty(num_classes),
    'label',
    batch_size,
    log_progress,
    padding,
    class_subsets,
  )


def build_training_stage_evaluation(
  stage: experiment_stage.TrainingStage,
  scores: method.ScoreModel,
  block: data_lib.LabeledData,
) -> loop.EvaluateFn:
  """Builds the evaluation of `val_split` and `follow` during training.

  The protocol is the one-view variant of that of the report.

  Args:
    stage: stage that trains.
    scores: network with a score per class and pixel.
    block: data whose splits are evaluated.
  """
  crop, _ = stage.augmentations()
  protocol = stage.experiment.evaluate.protocol_after(crop).single_view()
  return evaluator_lib.combine_evaluators(
    {
      name: build_stage_segmentation_evaluator(
        stage.context,
        scores,
        stage.context.evaluated(block, name, stage.name),
        stage.options.recipe.batch_size,
        protocol,
      )
      for name in (block.val_split, *block.follow)
    }
  )
