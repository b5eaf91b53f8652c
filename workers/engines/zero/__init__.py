"""Wrap DeepSpeed ZeRO: settings, ranks, engines of policy and critic, checkpoints."""
