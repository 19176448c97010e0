"""Replay the kernel's decisions: each recorded call, with its arguments, on the recorded state."""

from collections.abc import Sequence
from typing import Any

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.recorded_state import FreezeError, freeze, thaw
from popkernel.proto.trace.recording import Frame, RecordingError

__all__ = ["decide"]


def decide(frames: Sequence[Frame]) -> list[tuple[int, Any, Any]]:
    """Return (frame's index, recorded effects, effects now) of each decision after the recorded state.

    Raises:
        RecordingError: the state or a call does not fit this program.
    """
    kernel: leases.Core | None = None
    deliveries: Any = None
    out: list[tuple[int, Any, Any]] = []
    for index, frame in enumerate(frames):
        try:
            if frame.name == "State":
                kernel, deliveries = thaw(frame.fields["core"]), thaw(frame.fields["deliveries"])
                if not isinstance(kernel, leases.Core) or not isinstance(deliveries, Deliveries):
                    raise RecordingError("the recorded state is not the kernel's")
                deliveries.core = kernel
            elif frame.name == "Decision" and kernel is not None:
                out.append((index, frame.fields["effects"], _decision(kernel, deliveries, frame.fields)))
        except (FreezeError, KeyError, AttributeError, TypeError) as error:
            raise RecordingError(f"the kernel's decisions have changed ({error}): record it anew") from None
    return out


def _decision(kernel: leases.Core, deliveries: Deliveries, fields: dict[str, Any]) -> Any:
    if "users" in fields:
        kernel.users = thaw(fields["users"])
    room: Any = {"Core": kernel, "Deliveries": deliveries}[fields["room"]]
    method = fields["method"]
    if method.startswith("_"):
        raise KeyError(method)
    return freeze(getattr(room, method)(*thaw(fields["arguments"])))
