"""A net for host synchronisation: which operations of a block wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class DeviceReads(TorchDispatchMode):
    """Lists the operations that wait for the device; indexing by a boolean mask is a `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        is_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None
            and index.dtype.is_floating_point is False
            and str(index.dtype) in ("torch.bool", "torch.uint8")
            for index in args[1]
        )
        if name in WAITS or is_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
