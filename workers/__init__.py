"""The processes that own hardware: rollout engines, ZeRO groups, reward pools and the data between them."""
