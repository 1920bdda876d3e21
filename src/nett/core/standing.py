"""placeholder until the standing lands"""


def standings() -> dict[str, str]:
    return {}
