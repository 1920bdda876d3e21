"""SRP and SCH of a routing trace by brute force, in plain Python."""

from __future__ import annotations


def srp(trace: list[list[int]], length: int, experts: int) -> float:
    """For every threshold, sets of experts written out and compared with what is chosen, token by token."""
    best = 0.0
    for least in range(length + 1):
        right = said = true = 0
        for start in range(len(trace) - length + 1):
            part = trace[start : start + length]
            inside = {e for e in range(experts) if sum(e in token for token in part) >= least}
            for token in part:
                right += len(inside & set(token))
                said += len(inside)
                true += len(token)
        best = max(best, 2 * right / (said + true))
    return best


def sch(trace: list[list[int]], ahead: int, size: int) -> float:
    """One cache of one size, played step by step."""
    held: set[int] = set()
    seen: set[int] = set()
    last: dict[int, int] = {}
    clock = right = 0
    for i, token in enumerate(trace):
        for e in token:
            if e in seen:
                right += e in held
            else:
                right += len(seen) < size
                seen.add(e)
        later = [other for t in trace[i + 1 : i + ahead] for other in t]
        due = list(token) if ahead else []  # of this token, and not yet served
        for e in token:
            if e not in held and len(held) == size:
                held.remove(min(held, key=lambda x: (later.count(x) + due.count(x) if ahead else 0, last[x])))
            held.add(e)
            clock += 1
            last[e] = clock
            due = [d for d in due if d != e]
    return right / sum(map(len, trace))
