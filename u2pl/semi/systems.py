"""Semi-supervised methods by the class of their options.

A system of a config is a block of options; the class of the block selects the
method. A new one is a file with its class, a line here, and its options in
`system_options`.
"""

from collections.abc import Mapping

from u2pl.semi import (
  ael,
  cct,
  cct_options,
  cps,
  equalization_options,
  gct,
  mean_teacher,
  mse_teacher,
  pc2seg,
  pseudoseg,
  pseudoseg_options,
  two_network_options,
  u2pl_ael,
  unimatch,
  unimatch_options,
  unimatch_v2,
)
from u2pl.semi import method as method_lib
from u2pl.semi import options as options_lib

METHODS: Mapping[
  type[options_lib.SystemOptions], type[method_lib.SemiSupervised]
] = {
  options_lib.LearnOptions: mean_teacher.MeanTeacher,
  options_lib.MseTeacherOptions: mse_teacher.MseTeacher,
  two_network_options.CpsOptions: cps.Cps,
  cct_options.CctOptions: cct.Cct,
  two_network_options.GctOptions: gct.Gct,
  pseudoseg_options.PseudoSegOptions: pseudoseg.PseudoSeg,
  pseudoseg_options.Pc2SegOptions: pc2seg.Pc2Seg,
  unimatch_options.UniMatchOptions: unimatch.UniMatch,
  unimatch_options.UniMatchV2Options: unimatch_v2.UniMatchV2,
  equalization_options.AelOptions: ael.Ael,
  equalization_options.U2plAelOptions: u2pl_ael.U2plAel,
}
