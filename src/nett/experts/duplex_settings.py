"""The settings of a simulation: what a YAML file may say, its units and its defaults.

Defaults of the hardware: peak rates of an NVIDIA H100 (989.4 TFLOP/s in half precision, 3.352 TB/s, 80 GiB) and P42's
section VI for Logic-PIM (4 times the bandwidth of the same stacks, 8 operations a byte of it). The energy of a byte is that of
P42's reference [37] (O'Connor et al., MICRO 2017): cell, column path, TSV and interposer for the xPU (3.48 pJ/bit), a shorter
path and no interposer for Logic-PIM (1.81 pJ/bit), activation of the row 0.11 pJ/bit for both. 0.23 pJ/FLOP and the latencies of
links are those of the simulator that P42's authors published. Ours, and not the paper's: efficiencies of 1, no static
power, 10.4 pJ a byte on a link (1.3 pJ/bit, as for NVLink), a tenth of the memory left free.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nett.experts.duplex_dimensions import Count, Dimensions, Some
from nett.experts.duplex_units import Quantity, quantity

OWN = "nett"  # type of the errors whose message is already ours
Scheme = Literal["gpu", "pim", "best", "experts", "attention", "duplex"]
SCHEMES: tuple[Scheme, ...] = ("gpu", "pim", "best", "experts", "attention", "duplex")
Part = Literal["fc", "attention", "experts"]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def wrong(what: str) -> PydanticCustomError:
    return PydanticCustomError(OWN, "{what}", {"what": what})


def _of(kind: str) -> BeforeValidator:
    def read(value: Any) -> Quantity:
        try:
            return quantity(value, kind)
        except ValueError as error:
            raise wrong(f" = {value!r} {error}") from None

    return BeforeValidator(read)


Compute = Annotated[Quantity, _of("rate of operations")]
Bandwidth = Annotated[Quantity, _of("bandwidth")]
PimBandwidth = Annotated[Quantity, _of("bandwidth of PIM")]
Memory = Annotated[Quantity, _of("memory")]
OperationEnergy = Annotated[Quantity, _of("energy of an operation")]
ByteEnergy = Annotated[Quantity, _of("energy of a byte")]
Seconds = Annotated[Quantity, _of("time")]
Rate = Annotated[Quantity, _of("rate of requests")]
Power = Annotated[Quantity, _of("power")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Xpu(_Strict):
    """The processor for high Op/B, of one device."""

    flops: Compute = Quantity(989.4e12)
    bandwidth: Bandwidth = Quantity(3.352e12)
    energy_per_flop: OperationEnergy = Quantity(0.23e-12)
    energy_per_byte: ByteEnergy = Quantity((3.48 + 0.11) * 8e-12)
    compute_efficiency: Share = 1.0
    bandwidth_efficiency: Share = 1.0


class Pim(_Strict):
    """Logic-PIM in the same device, on the same memory. ``layers``: those that it can compute."""

    flops: Compute = Quantity(8.0, "FLOP/B")
    bandwidth: PimBandwidth = Quantity(4.0, "x")
    energy_per_flop: OperationEnergy = Quantity(0.23e-12)
    energy_per_byte: ByteEnergy = Quantity((1.81 + 0.11) * 8e-12)
    compute_efficiency: Share = 1.0
    bandwidth_efficiency: Share = 1.0
    layers: tuple[Part, ...] = ("fc", "attention", "experts")


class Link(_Strict):
    """Between devices: bytes a device sends in one direction."""

    bandwidth: Bandwidth = Quantity(450e9)
    latency: Seconds = Quantity(0.8e-6)
    energy_per_byte: ByteEnergy = Quantity(10.4e-12)


class Hardware(_Strict):
    """``devices`` of a node, each an xPU and a Logic-PIM on one memory."""

    devices: Count = 1
    nodes: Count = 1
    memory: Memory = Quantity(80 * 2.0**30)
    static_power: Power = Quantity(0.0)
    xpu: Xpu = Xpu()
    pim: Pim = Pim()
    link: Link = Link()
    node_link: Link = Link(bandwidth=Quantity(50e9), latency=Quantity(0.13e-6))


class Bytes(_Strict):
    """Of a number."""

    weights: Positive = 2.0
    cache: Positive = 2.0
    activations: Positive = 2.0


class Routing(_Strict):
    """How tokens are spread over experts: evenly likely, by Zipf's law, or by counts from a file (a list for each layer)."""

    by: Literal["uniform", "zipf", "file"] = "uniform"
    exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    counts: str | None = None
    seed: Some = 0

    @model_validator(mode="after")
    def _complete(self) -> Routing:
        if (self.by == "file") != (self.counts is not None):
            raise wrong(": 'by: file' and 'counts: FILE.json' go together")
        return self


class Lengths(_Strict):
    """Of prompts or answers, in tokens: always ``mean``, or normal with ``std`` (cut at one token), or evenly from ``low`` to
    ``high``."""

    mean: Positive | None = None
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    low: Some = 0
    high: Some = 0

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        even = self.low > 0 and self.high > 0
        if (self.mean is None) != even or (self.mean is not None and (self.low or self.high)):
            raise wrong(": give 'mean' (and 'std'), or 'low' and 'high'")
        if even and self.low > self.high:
            raise wrong(f": low = {self.low} is above high = {self.high}")
        return self

    @property
    def middle(self) -> float:
        return self.mean if self.mean is not None else (self.low + self.high) / 2


def _lengths(value: Any) -> Any:
    return {"mean": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


LengthsOf = Annotated[Lengths, BeforeValidator(_lengths)]


class Requests(_Strict):
    """``closed``: the next request comes when one is done, so that the batch stays full. ``file``: CSV with the columns
    arrival (seconds), input, output, in place of all that is drawn."""

    count: Count = 1000
    arrivals: Literal["closed", "poisson", "even"] = "closed"
    rate: Rate | None = None
    input: LengthsOf = Lengths(mean=1024)
    output: LengthsOf = Lengths(mean=1024)
    file: str | None = None
    seed: Some = 0

    @model_validator(mode="after")
    def _complete(self) -> Requests:
        if (self.arrivals != "closed") != (self.rate is not None):
            raise wrong(": 'rate: 8/s' goes with 'arrivals: poisson' or 'even', and with no other")
        if self.rate is not None and not self.rate.value:
            raise wrong(".rate = 0: no request would ever come")
        return self


class Serving(_Strict):
    """``batch``: requests at a time at most. ``experts``: each whole on one device (expert) or cut over those of a node
    (tensor). ``spaces``: the paper's parts of the memory; all experts of a part are on one processor at a time, so that both never
    read the same banks (4 there); 0 where any expert can be on either. ``chunk``: prompt tokens of a stage at most; 0 for whole prompts. ``memory_share``: what may be filled."""

    batch: Count = 64
    experts: Literal["tensor", "expert"] = "tensor"
    spaces: Annotated[int, Field(ge=0, le=8)] = 0
    chunk: Some = 0
    memory_share: Share = 0.9


class Sweep(_Strict):
    """Values that are tried with ``--sweep``, one thing at a time; the experts' total size stays when their number changes."""

    batch: tuple[Count, ...] = (8, 16, 32, 64, 128)
    input: tuple[Count, ...] = (256, 1024, 4096)
    output: tuple[Count, ...] = (256, 1024, 4096)
    experts: tuple[Count, ...] = (8, 16, 32, 64)
    pim_bandwidth: tuple[PimBandwidth, ...] = tuple(Quantity(v, "x") for v in (1.0, 2.0, 4.0, 8.0))
    pim_flops: tuple[Compute, ...] = tuple(Quantity(v, "FLOP/B") for v in (1.0, 4.0, 8.0, 16.0, 32.0))
    requests: Count = 300


class Settings(_Strict):
    """All of it. ``model``: the path of a transformers config.json (or its folder), or the dimensions."""

    model: str | Dimensions
    bytes: Bytes = Bytes()
    hardware: Hardware = Hardware()
    routing: Routing = Routing()
    requests: Requests = Requests()
    serving: Serving = Serving()
    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)] = SCHEMES
    sweep: Sweep = Sweep()
