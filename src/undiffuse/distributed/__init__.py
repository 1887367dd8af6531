"""Several processes: joining, watching and sharing work. The only room that imports `torch.distributed`.

Processes that torchrun or srun started read who they are from the environment (`util.launch`). `join` connects them,
`session` also opens a process group for collective operations on tensors. Alone, both do nothing. Processes exchange
tensors and JSON text, never pickled objects.
"""

from undiffuse.distributed.collectives import DistContext, resolve_device, session
from undiffuse.distributed.job import Job, join
from undiffuse.distributed.watch import RankLostError

__all__ = ["DistContext", "Job", "RankLostError", "join", "resolve_device", "session"]
