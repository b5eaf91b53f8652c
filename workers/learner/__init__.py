"""Train and score with a ZeRO engine: the processes of learner, reference and critic."""
