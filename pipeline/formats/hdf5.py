"""One array out of an HDF5 file. The only module that imports h5py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MOST_BYTES = 1 << 28  # of an array


def array(path: Path, name: str) -> np.ndarray:
    """Numbers of the data set `name` in the root group.

    Raises ValueError if the file is damaged or no HDF5, or if the data set is not there, holds no numbers, is absurdly large, or
    keeps them in another file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):  # others may lead to other files
                raise ValueError(f"no data set {name}")
            found = file[name]
            if (
                not isinstance(found, h5py.Dataset)
                or found.external
                or found.is_virtual
                or found.dtype.kind not in "iuf"
            ):
                raise ValueError(f"{name} is no data set of numbers in this file")
            if found.nbytes > MOST_BYTES:
                raise ValueError(f"{name} of {found.nbytes} bytes")
            return np.asarray(found[()])
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"a damaged HDF5 file: {error}") from None
