"""The one shape of this room's methods, and its laws.

Every method is a command: ``method(paths, *, parameters) -> {"say": [lines], ...}``. What it says stands in ``say``,
one line each; everything else is for programs. Nothing is lost at any moment: what is written appears whole, what is
removed can be brought back for a while or is proved to lie elsewhere, and one writer works at a time.

Laws (run by the conformance suite): what was given stays as it was, byte for byte; the same call twice changes nothing
the second time; ``dry_run``, or no ``apply``, changes nothing; what the method freed comes back bit for bit.
"""
