"""What a disk full of models holds: `nett scan` without a path, and `nett scan --disk DIR…`.

places -> survey -> layouts -> samples -> alike, families -> measured (or exact) -> findings. Headers and sampled pages
give an estimate with its error; `--exact` reads every byte. Nothing is imported that the base install lacks.
"""
