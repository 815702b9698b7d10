"""Images of many sizes, and an evaluator of one metric."""

from segcore.eval import evaluator as evaluator_lib

# Of 30 to 70 pixels; padded to multiples of 4, five canvases of 1 to 5 images.
SIZES = [
  *[(30, 70), (31, 69), (29, 72), (32, 70), (30, 71)],
  *[(45, 33), (48, 36), (46, 35)],
  *[(64, 41), (70, 30), (57, 57)],
]


def evaluator(split, predictor, metric, mesh):
  """Builds an evaluator that compares predictions with masks."""
  predictions = evaluator_lib.Predictions(
    split=split,
    predictor=predictor,
    batch_size=8,
    mesh=mesh,
    keep=('label',),
  )
  return evaluator_lib.Evaluator(predictions, (metric,), 'label')
