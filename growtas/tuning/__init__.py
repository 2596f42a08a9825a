"""Which backend is fastest here: ``growtas tune`` measures it, ``auto`` follows (docs/tuning.md).

- ``cases``: what is raced; ``calls``: the tensors and operations of one job.
- ``worker``: a process that checks (``checks``) and times (``clock``) one backend; ``children`` its parent's
  side; ``compiling`` fills Triton's cache before.
- ``decide``: from measurements to choices; ``driver``: all of it, into a record of growtas.ops.records.
- ``before_training``: a run on a GPU without a record tunes first.
"""

from growtas.tuning.before_training import tune_before_training
from growtas.tuning.driver import tune

__all__ = ["tune", "tune_before_training"]
