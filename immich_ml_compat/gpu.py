"""How much of a GPU's memory is in use, where NVIDIA's driver tells."""

from typing import Any


class GpuMemory:
    """The memory of one NVIDIA GPU. Untested: nobody here had one."""

    def __init__(self, device_id: int) -> None:
        """`device_id` is CUDA's number; the driver's is taken for the same (`CUDA_DEVICE_ORDER=PCI_BUS_ID`)."""
        self._device_id = device_id
        self._handle: Any = None

    def used_bytes(self) -> int | None:
        """Return what is in use, by whichever processes; None where the driver or its library does not tell."""
        try:
            import pynvml
        except ImportError:  # it comes with the `cuda` extra
            return None
        try:
            if self._handle is None:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(self._device_id)
            return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except pynvml.NVMLError:
            return None
