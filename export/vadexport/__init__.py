"""Export VadCLIP checkpoints to bundles, and check bundles: the ``vadexport`` command."""

import vadrun.silence  # noqa: F401  # before any library that would report
