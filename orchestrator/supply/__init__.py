"""Supply the groups that train: from the ledger by way of engines, or from a record."""
