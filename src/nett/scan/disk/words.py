"""A scan of a disk in sentences and rows, for the terminal and the page alike."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nett.core.report.words import size

if TYPE_CHECKING:
    from nett.scan.disk.account import Amount
    from nett.scan.disk.engine import DiskScan

SPARSE = 0.95  # of the size; with fewer bytes on the disk, both are said
MEANING = {
    "equal_file": "equal files",
    "equal_tensors": "tensors that another file has as well, in any format",
    "tied_twice": "tied weights, stored twice",
    "permuted_tensors": "tensors that another file has in another order of rows",
    "delta": "fine-tunes, as differences to a base",
    "byte_planes": "air in the byte planes: exponents and other regular bytes",
    "narrower_dtype": "float32 that is bfloat16 in disguise",
    "quantisation_grid": "numbers that lie on a quantisation grid",
    "training_run": "checkpoints of one training run",
    "orphaned_blob": "blobs that no model leads to",
    "partial_download": "downloads that were not finished",
    "chunk_cache": "the chunk cache of downloads",
}


def summary(scan: DiskScan) -> str:
    """The sentence that says what came out."""
    if not scan.items:
        return "No models were found."
    there = size(scan.allocated)
    if scan.allocated < SPARSE * scan.nbytes:
        there += f" ({size(scan.nbytes)} nominal)"
    said = f"{there} in {scan.models:,} model{'' if scan.models == 1 else 's'}; "
    if scan.exact:
        said += f"{size(scan.free.value)} provably free"
    else:
        said += f"about {size(scan.free.value)} free without loss"
    if scan.links:
        said += f"; {'' if scan.exact else 'about '}{size(scan.now.value)} of it now, at no risk: `{scan.links}`"
    elif scan.free.value:
        said += ": `nett store add … --into STORE`"
    return said


def basis(scan: DiskScan) -> str:
    """What the numbers rest on."""
    if not scan.items:
        return ""
    if scan.exact:
        return "Every byte was read."
    looked = "every tensor" if scan.layers >= 1 else f"{max(1, round(100 * scan.layers))} % of the layers"
    return (
        f"An estimate from headers and sampled pages of {looked}: {between(scan.free)} with 95 % confidence."
        " --exact reads every byte."
    )


def between(amount: Amount) -> str:
    """``68.1 to 73.4 GB``."""
    low, high = size(amount.low), size(amount.high)
    if low == high:
        return high
    number, _, unit = low.rpartition(" ")
    return f"{number if high.endswith(' ' + unit) else low} to {high}"


def kinds(scan: DiskScan) -> list[tuple[str, int, int]]:
    """(kind, findings, bytes), most bytes first."""
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for one in scan.found:
        sums[one.edge.kind] += one.edge.bytes_freed
        counts[one.edge.kind] += 1
    return [(kind, counts[kind], nbytes) for kind, nbytes in sums.most_common()]


def places(scan: DiskScan) -> list[tuple[str, str, str]]:
    """(kind, folder, what was found there) of every place that was looked into."""
    files: Counter[str] = Counter(i.place.path for i in scan.items)
    held: Counter[str] = Counter()
    for item in scan.items:
        held[item.place.path] += item.allocated
    rows = []
    for place in scan.survey.places:
        found = f"{files[place.path]:,} files, {size(held[place.path])}" if files[place.path] else "nothing"
        rows.append(
            (place.kind + (f" ({place.why})" if place.why else ""), place.path, found if place.exists else "not there")
        )
    return rows


def remarks(scan: DiskScan) -> list[str]:
    """What was left alone, left over and not readable."""
    said = [f"{text}: {times:,}" for text, times in scan.survey.notes.items()]
    if scan.left:
        said.append(f"Beside that, {size(scan.left)} that no model needs; they come back only by downloading.")
    if scan.survey.other:
        said.append(f"{size(scan.survey.other)} of data sets and spaces in hub caches were not looked at.")
    return said
