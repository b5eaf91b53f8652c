"""Rehearse a run without engines, ranks or a model: the driver's own code, in simulated time.

    real                                          simulated
    trainer, producer, ledger, plan of updates    engines, rewards (`engines.py`, `decoding.py`)
    rollout pool, metadata through pickle         lengths and rewards (`workload.py`)
    prompts in Parquet, driver's checkpoints      learner, reference, critic, publication
                                                  (`learner.py`), and time itself (`timeline.py`)

A rehearsal measures samples an hour and idle roles of a schedule on a division of GPUs, and the
driver's use of a core and of memory. The time that Ray's own threads, the network or a full KV
cache cost is not measured. All of a rehearsal runs in one process, the driver's.
"""
