"""From the files of a data set to samples: reading, checking, counting."""
