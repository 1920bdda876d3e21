"""Settings of the whole test run: hypothesis, what its processes share, the option that stores outcomes of the laws."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support import compiling, shared, typechecker, unsynced

# Before torch is imported, here and in what tests start: the models are tiny, and the threads of several processes on the
# same cores only wait for each other, up to a hundred times as long as one works.
os.environ.setdefault("OMP_NUM_THREADS", "1")

typechecker.check_types_of("nett")
unsynced.do_not_wait_for_the_disk()

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
settings.register_profile("default", deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET)
settings.register_profile("explore", deadline=None, database=None, suppress_health_check=_QUIET, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store-laws",
        action="store_true",
        help="after the run, store which laws each method keeps (nett.core.results); of a full run only",
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        compiling.one_at_a_time()
        return
    config.pluginmanager.register(_Laws(config), "nett-laws")
    folder = shared.begin_run()
    os.environ["NETT_CACHE"] = str(folder / "cache")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes whole stretches of files, so that what a file makes for its tests is made once; at the end, those
    that are done take over from the others."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A conformance test says in each of its reports which card and law it was about."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    if "card" in params and "law" in params:
        item.user_properties += [("card", params["card"].key), ("law", params["law"].__name__)]


class _Laws:
    """Gathers, in the process that sees all reports, how each (card, law) came out."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        noted: dict[str, Any] = dict(report.user_properties)
        if "card" not in noted or "law" not in noted:
            return
        word = str(report.outcome)
        if report.skipped:
            word = f"skipped: {report.longrepr[2] if isinstance(report.longrepr, tuple) else 'no reason given'}"
        laws = self.outcomes.setdefault(noted["card"], {})
        if laws.get(noted["law"], "passed") == "passed" or word == "failed":  # a law holds if every phase of it does
            laws[noted["law"]] = word

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.config.getoption("--store-laws") or hasattr(self.config, "workerinput"):
            return
        from conformance.laws import laws_of
        from nett.core.cards import all_cards
        from nett.core.results import store_law

        for card in all_cards():
            outcome = self.outcomes.get(card.key, {})
            if {law.__name__ for law in laws_of(card)} == outcome.keys():  # part of the laws proves nothing
                store_law(card, dict(sorted(outcome.items())))
