"""Supply the driver with groups that train: from the ledger through engines, or from a record."""
