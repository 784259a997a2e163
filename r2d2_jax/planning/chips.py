"""The chips that a plan knows: memory, matrix rates, memory bandwidth and links, with the source of each number.

Rates are those of the makers' sheets, which no program reaches; matrix rates without sparsity. Sources:

- v5e, v6e, v5p: docs.cloud.google.com/tpu/docs/v5e, /v6e and /v5p: compute and HBM of a chip, and "bidirectional
  inter-chip interconnect bandwidth", of which one direction has half (v6e: 3,200 Gbit/s, which is one direction as
  v5e's 1,600 is). v4: /v4 likewise; its links, six of 50 GB/s each way: Jouppi et al., arXiv 2304.01433, table 4.
- A100: NVIDIA A100 data sheet (80 GB, SXM). H100, H200: their data sheets (SXM), whose matrix rates are with sparsity
  and so halved here. NVLink has half of its bandwidth in each direction.
- The network between slices of v5e and v6e: "data center network bandwidth per Pod" of the same pages (6.4 and 25.6
  Tbit/s), of which each of the 256 chips has its part; that of v4 and v5p is not there.
- Exact float32 products are six bfloat16 passes on TPUs (XLA's precision "highest"), and run beside the matrix units on
  GPUs, at the sheet's FP32 rate.
- Memory is what libtpu's compiler says that it may use of a TPU ("available HBM"), a little less than the sheet's; of a
  GPU it is the sheet's capacity, of which JAX hands out three quarters unless told otherwise.
"""

from dataclasses import dataclass
from typing import Any

from r2d2_jax.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    kinds: what JAX calls it (`device_kind`). memory: bytes. rate, exact_rate: operations a second, two for each
    multiply-add, of bfloat16 products and of exact float32 ones. bandwidth: bytes a second of its large memory. links:
    bytes a second that it sends to other chips, all links together. node: chips that these links join; 0: any number.
    network: bytes a second that it sends to other slices; None where that is not known. handed_out: share of the memory
    that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    """

    name: str
    kinds: tuple[str, ...]
    memory: float
    rate: float
    exact_rate: float
    bandwidth: float
    links: float
    node: int = 0
    network: float | None = None
    handed_out: float = 1.0


def _tpu(
    name: str,
    kinds: tuple[str, ...],
    gib: float,
    tflops: float,
    bandwidth: float,
    links: float,
    pod_network: float | None = None,
) -> Chip:
    rate = tflops * 1e12
    network = pod_network and pod_network * 1e12 / 8 / 256
    return Chip(name, kinds, gib * GIB, rate, rate / 6, bandwidth * 1e9, links * 1e9, network=network)


def _gpu(
    name: str, kinds: tuple[str, ...], gb: float, tflops: tuple[float, float], bandwidth: float, links: float
) -> Chip:
    rate, exact = (value * 1e12 for value in tflops)
    return Chip(name, kinds, gb * 1e9, rate, exact, bandwidth * 1e9, links * 1e9, node=8, handed_out=0.75)


CHIPS = (
    _tpu("v4", ("TPU v4",), 30.75, 275, 1200, 300),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 15.75, 197, 819, 200, 6.4),
    _tpu("v5p", ("TPU v5", "TPU v5p"), 95.74, 459, 2765, 600),
    _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 31.25, 918, 1600, 400, 25.6),
    _gpu("A100", ("NVIDIA A100-SXM4-80GB",), 80, (312, 19.5), 2039, 300),
    _gpu("H100", ("NVIDIA H100 80GB HBM3",), 80, (989.5, 67), 3350, 450),
    _gpu("H200", ("NVIDIA H200",), 141, (989.5, 67), 4800, 450),
)
NAMES = tuple(chip.name for chip in CHIPS)


def named_chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
        UserError: there is none in the table.
    """
    for chip in CHIPS:
        if chip.name.lower() == name.lower():
            return chip
    raise UserError(f"--chip={name}: there is no such chip in the table; it has {', '.join(NAMES)}")


def other_than(chip: Chip, device: Any) -> str:
    """What a device is, in words, where it is not such a chip; "" where it is."""
    if device.platform == "cpu":
        return "imitated CPU devices"
    return "" if device.device_kind in chip.kinds else str(device.device_kind)


def chip_of(device: Any) -> Chip | None:
    """The chip that a device is; None for a CPU.

    Raises:
        UserError: it is in no table.
    """
    if device.platform == "cpu":
        return None
    for chip in CHIPS:
        if device.device_kind in chip.kinds:
            return chip
    raise UserError(
        f"{device.device_kind} is a chip that is in no table; plan for one of {', '.join(NAMES)}, or name with --chip "
        "whose rates and memory to assume"
    )
