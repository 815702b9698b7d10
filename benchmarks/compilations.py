"""Compilations of programs, as the benchmarks that count them hear of them."""

from collections.abc import Callable

import jax

_COMPILED = '/jax/core/compile/backend_compile_duration'


def listen_to_compilations(function: Callable[[float], None]) -> None:
  """Calls a function with the seconds of every compilation from now on."""

  def listen(event: str, duration: float, **_) -> None:
    if event == _COMPILED:
      function(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
