"""The planner: which assets to keep and which to rebuild from others, under limits (the retention problem of R2D2,
P03, for any asset)."""

from nett.core.retention.group import Group
from nett.core.retention.planner import Retention, plan_retention
from nett.core.retention.problem import Limits, Solver

__all__ = ["Group", "Limits", "Retention", "Solver", "plan_retention"]
