"""Publication of the learner's weights into the rollout engines, and the proof of their arrival.

The sending half runs in the learner's ranks, the receiving half inside vLLM's workers; attestation
runs in the driver. Retries nothing: the driver does.
"""
