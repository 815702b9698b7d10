"""Semi-supervised methods by the class of their options.

A system of a config is a block of options; the class of the block selects the
method. A new one is a file with a class of each kind, and two lines here.
"""

from collections.abc import Mapping

from u2pl.semi import (
  ael,
  cct,
  cps,
  gct,
  mean_teacher,
  mse_teacher,
  pc2seg,
  pseudoseg,
  u2pl_ael,
  unimatch,
  unimatch_v2,
)
from u2pl.semi import method as method_lib
from u2pl.semi import options as options_lib

METHODS: Mapping[
  type[options_lib.SystemOptions], type[method_lib.SemiSupervised]
] = {
  options_lib.LearnOptions: mean_teacher.MeanTeacher,
  mse_teacher.MseTeacherOptions: mse_teacher.MseTeacher,
  cps.CpsOptions: cps.Cps,
  cct.CctOptions: cct.Cct,
  gct.GctOptions: gct.Gct,
  pseudoseg.PseudoSegOptions: pseudoseg.PseudoSeg,
  pc2seg.Pc2SegOptions: pc2seg.Pc2Seg,
  unimatch.UniMatchOptions: unimatch.UniMatch,
  unimatch_v2.UniMatchV2Options: unimatch_v2.UniMatchV2,
  ael.AelOptions: ael.Ael,
  u2pl_ael.U2plAelOptions: u2pl_ael.U2plAel,
}

# Blocks that a config may have; the first one is that without a name.
Options = (
  options_lib.LearnOptions
  | mse_teacher.MseTeacherOptions
  | cps.CpsOptions
  | cct.CctOptions
  | gct.GctOptions
  | pseudoseg.PseudoSegOptions
  | pc2seg.Pc2SegOptions
  | unimatch.UniMatchOptions
  | unimatch_v2.UniMatchV2Options
  | ael.AelOptions
  | u2pl_ael.U2plAelOptions
)
