"""`ballast submit | jobs | logs | stop | scale`: training as a Ray job on other machines."""
