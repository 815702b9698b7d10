"""MoCo v2 against slow numpy transcriptions (spec §2.3)."""

import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import moco
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_query_of_view_1_and_key_of_view_2():
  maps = arrays.normal(2, 2, 2, 3, 5)
  objective = moco.Moco(comparator_options.MocoOptions(queue=6, size=4))
  net, params = support.bind_head(objective, maps)
  weights = params['projector']
  assert weights['w1'].shape == (5, 5)  # as wide as the encoder
  ring = queue_lib.Ring(arrays.normalized(6, 4), np.int32(4))

  result = support.evaluate(objective, net, maps, memory=ring)
  q, k = (
    pass_pretraining.normalize(
      luss_comparators.moco_head(pass_pretraining.gap(maps[:, v]), weights)
    )
    for v in (0, 1)
  )
  # Against the ring as it was before the step.
  expected = luss_comparators.info_nce(q, k, ring.rows.T, 0.2)
  arrays.assert_close(result.terms['loss_moco'], expected)
  rows, position = luss_comparators.ring_push(ring.rows.T, 4, k)
  arrays.assert_close(result.memory.rows, rows.T)
  assert result.memory.position == position == 0


def test_momentum_encoder_and_views():
  objective = moco.Moco(comparator_options.MocoOptions(decay=0.99))
  spec = objective.needs_momentum
  assert (spec.decay(jnp.asarray(3), 10), spec.after_update) == (0.99, False)
  assert spec.head_modules == {'moco': ('projector',)}
  assert (objective.views, objective.momentum_views) == ((0,), (1,))
  with pytest.raises(ValueError, match='queue: expected a multiple of .* 96'):
    objective.options.check_batch_size(96, 'moco')
