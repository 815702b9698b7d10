"""The supervised objective against slow numpy transcriptions (spec §2.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain.objectives import supervised
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')

CLASSES = np.array([2, 0, 1, 1])


def tags_of(classes, first=0):
  return np.eye(3 + first, dtype=bool)[classes + first]


def test_loss():
  scores = arrays.normal(4, 3, scale=2)

  def loss(scores):
    tags = jnp.asarray(tags_of(CLASSES))
    return supervised.classification_loss(scores, tags)

  def reference(scores):
    return luss_comparators.classification_loss(scores, CLASSES)

  arrays.assert_close(jax.jit(loss)(scores), reference(scores))
  arrays.assert_gradient(loss, reference, scores)


def test_objective_classifies_the_first_view():
  maps = arrays.normal(4, 2, 2, 3, 5)
  objective = supervised.Supervised(comparator_options.SupervisedOptions(3, 1))
  net, params = support.bind_head(objective, maps)
  weights = params['projector']
  # Class 0 of the data set is 'other'.
  tags = {'tags': tags_of(CLASSES, first=1)}
  outputs, terms, logged, _ = support.evaluate(objective, net, maps, batch=tags)
  pooled = pass_pretraining.gap(maps[:, 0])
  expected = luss_comparators.dense(pooled, weights['w1'], weights['b1'])
  arrays.assert_close(outputs['scores'], expected)
  arrays.assert_close(
    terms['loss_supervised'],
    luss_comparators.classification_loss(expected, CLASSES),
  )
  share = np.mean(expected.argmax(axis=1) == CLASSES)
  arrays.assert_close(logged['train_accuracy'], share)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_classes': 1}, 'num_classes: expected 2 or more, got 1'),
    (
      {'num_classes': 3, 'first_class': 2},
      'first_class: expected 0 or 1, got 2',
    ),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    comparator_options.SupervisedOptions(**fields)
