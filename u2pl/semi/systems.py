"""Semi-supervised methods by the class of their options.

A system of a config is a block of options; the class of the block selects the
method. A new one is a file with a class of each kind, and a line here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from u2pl import panels as panels_lib
from u2pl.semi import cps, mean_teacher, unimatch, unimatch_v2
from u2pl.semi import method as method_lib
from u2pl.semi import options as options_lib


class System(NamedTuple):
  """A method, and the pictures of its training.

  Attributes:
    method: builds the method from the fields of `SemiSupervised`.
    panels: builds the panels of unlabeled images, as `TeacherPanels`; None for
      none.
  """

  method: Callable[..., method_lib.SemiSupervised]
  panels: Callable[..., Any] | None = None


SYSTEMS: Mapping[type[options_lib.SystemOptions], System] = {
  options_lib.LearnOptions: System(
    mean_teacher.MeanTeacher, panels_lib.TeacherPanels
  ),
  cps.CpsOptions: System(cps.Cps),
  unimatch.UniMatchOptions: System(unimatch.UniMatch),
  unimatch_v2.UniMatchV2Options: System(unimatch_v2.UniMatchV2),
}

# Blocks that a config may have; the first one is that without a name.
Options = (
  options_lib.LearnOptions
  | cps.CpsOptions
  | unimatch.UniMatchOptions
  | unimatch_v2.UniMatchV2Options
)
