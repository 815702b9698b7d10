"""Options of XLA with which the tests compile."""

# Tests compile much and compute little. Without optimization compiling takes a
# third of the time, and half of that with the older code generator, which
# emits LLVM code for a fusion directly instead of lowering it by MLIR.
FAST_COMPILATION = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
)

# Simulated devices share two cores with other tests. By default XLA aborts the
# process when one of them is 40 seconds late.
PATIENT_COLLECTIVES = '--xla_cpu_collective_call_terminate_timeout_seconds=600'


def xla_flags(devices: int) -> str:
  """Returns the value of XLA_FLAGS for fast compilation.

  Args:
    devices: number of simulated devices of a process.
  """
  count = f'--xla_force_host_platform_device_count={devices}'
  return f'{count} {PATIENT_COLLECTIVES} {FAST_COMPILATION}'
