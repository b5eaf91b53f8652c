"""Policy losses, one file per family. Each maps `LossInputs` to an unreduced loss [N]."""
