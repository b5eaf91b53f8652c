"""DeepSpeed ZeRO engines: settings, ranks, engines of policy and critic, checkpoints.

Runs in the ranks of learner, reference and critic; `settings` and `schedules` in the driver too.
"""
