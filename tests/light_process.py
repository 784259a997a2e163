"""Imported before the engine by processes that tests start: they begin sooner and trace faster.

tensorboardX imports PyTorch wherever it is, for seconds and for nothing here. Python's collector of garbage looks at
the many objects of a trace again and again, see `conftest.py`.
"""

import gc
import sys

gc.set_threshold(20_000, 20, 20)
sys.modules["torch"] = None  # type: ignore[assignment]  # what is None here cannot be imported
import tensorboardX  # noqa: E402, F401

del sys.modules["torch"]  # others may ask whether there is one
