"""A run without engines, ranks or a model: the driver's own code, in simulated time.

    real                                          simulated
    trainer, producer, ledger, plan of updates    engines, rewards (`engines.py`, `decoding.py`)
    rollout pool, metadata through pickle         lengths and rewards (`workload.py`)
    prompts in Parquet, driver's checkpoints      learner, reference, critic, publication
                                                  (`learner.py`), and time itself (`timeline.py`)

What is found out: samples an hour and idle roles of a schedule on a division of GPUs, and what the
driver takes of a core and of memory for it. What is not: how Ray's own threads, the network or a
full KV cache slow a run down.
"""
