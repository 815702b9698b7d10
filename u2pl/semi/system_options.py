"""Options of all semi-supervised systems, of which a config selects one.

They are apart from the systems, so that a config is checked without importing
the networks and losses of any.
"""

from u2pl.semi import (
  cct_options,
  equalization_options,
  pseudoseg_options,
  two_network_options,
  unimatch_options,
)
from u2pl.semi import options as options_lib

# Blocks that a config may have; the first one is that without a name.
Options = (
  options_lib.LearnOptions
  | options_lib.MseTeacherOptions
  | two_network_options.CpsOptions
  | cct_options.CctOptions
  | two_network_options.GctOptions
  | pseudoseg_options.PseudoSegOptions
  | pseudoseg_options.Pc2SegOptions
  | unimatch_options.UniMatchOptions
  | unimatch_options.UniMatchV2Options
  | equalization_options.AelOptions
  | equalization_options.U2plAelOptions
)
