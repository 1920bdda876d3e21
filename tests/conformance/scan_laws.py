"""Laws of the scan room (stated in nett.scan.protocol): what every probe's findings must keep."""

from __future__ import annotations

from pathlib import Path

import jsonschema

from conformance import measure_laws
from conformance.measure_laws import Law, assets
from nett.core.edge import SCHEMA
from nett.core.registry import Card
from support.tensors import read_tensors


def laws(card: Card) -> list[Law]:
    return [*measure_laws.LAWS, findings_keep_the_record]


def findings_keep_the_record(card: Card, folder: Path) -> None:
    """Each finding is an edge of the published schema, about given assets, frees no more than its target holds, and
    has error 0 where it says exact."""
    paths = assets(folder)
    result = card.load()(paths, **card.resolve({}))
    for finding in result.found:
        for edge in (finding.edge, *finding.parts):
            record = edge.as_json()
            jsonschema.validate(record, SCHEMA)
            for place in (record["target"], *record["sources"]):
                assert place.split("::")[0] in paths
            path, _, tensor = record["target"].partition("::")
            held = {n: a.nbytes for n, a in read_tensors(Path(path)).items()}
            assert record["bytes_freed"] <= (held[tensor] if tensor in held else sum(held.values()))
            assert edge.guarantee != "exact" or edge.error == 0
