"""A command of leadspan as one of several ranks whose student and teacher accelerate shards with FSDP2, on CPUs.

accelerate shards where a group of GPUs trains; here it is told that the group is one.
"""

import os
from typing import Any

from accelerate import PartialState
from accelerate.state import DistributedType

from leadspan.cli import main as run_command

_VARIABLES = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
_VARIABLES |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def main(*arguments: str) -> int:
    os.environ.update(_VARIABLES)
    begin = PartialState.__init__

    def begin_as_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_as_gpus
    return run_command(arguments)
