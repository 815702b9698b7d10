"""What travels between devices in a step of a whole method."""

import jax

from segcore.cost import communication
from segcore.distributed import sharding
from tests.support import fake_data
from tests.support import fake_methods as fakes
from tests.support.meshes import mesh_of


def collectives(fake):
  mesh, source = mesh_of(), fake_data.two_stream_loader()
  spec = source.element_spec()
  state = jax.eval_shape(
    lambda rng: fake.init(rng, spec, None), jax.random.PRNGKey(0)
  )
  step = jax.jit(
    fake.train_step,
    in_shardings=(
      sharding.replicated_sharding(mesh),
      sharding.batch_sharding(mesh),
    ),
    out_shardings=sharding.replicated_sharding(mesh),
  )
  return communication.count_collectives(step.lower(state, spec).compile())


def test_joined_streams_move_no_rows():
  result = collectives(fakes.two_stream(contrast=False))
  assert result.pop('all-reduce') > 0
  assert not any(result.values()), result


def test_the_bank_gathers_what_is_pushed():
  # Representations and labels of the cells, and where they go: not images.
  result = collectives(fakes.two_stream())
  assert result['all-to-all'] == 0
  assert result['collective-permute'] == 0
  assert 1 <= result['all-gather'] <= 4, result
