"""Export VadCLIP checkpoints to bundles, and check bundles: the ``vadexport`` command."""
