"""The types of arrays that are passed from module to module: a name for numpy's long one."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
