"""The loop: trainer, the windows of one batch, evaluation, checkpoints, telemetry."""
