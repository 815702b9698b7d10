"""States of a tiny U2PL+ at several steps, shared by the tests."""

import jax
import jax.numpy as jnp
import pytest

from tests.u2pl.semi import tiny


@pytest.fixture(scope='session')
def trained():
  return tiny.make_method()


@pytest.fixture(scope='session')
def jitted(trained):
  return jax.jit(trained.train_step)


@pytest.fixture(scope='session')
def warm(trained, jitted):
  """Returns state and scalars after the warm-up."""
  return tiny.run_steps(trained, tiny.init_state(trained), 4, jitted=jitted)


@pytest.fixture(scope='session')
def late(trained, warm, jitted):
  """Returns a state in which labels are denoised, with an empty bank."""
  state, _ = tiny.run_steps(trained, warm[0], 4, first=4, jitted=jitted)
  empty = jnp.zeros_like(state.bank.count)
  return state.replace(
    bank=state.bank.replace(
      rows=0 * state.bank.rows, pointer=empty, count=empty
    )
  )
