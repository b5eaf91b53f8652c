"""`ballast submit | jobs | logs | stop`: training as a Ray job on a cluster of other machines."""
