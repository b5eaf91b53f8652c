"""Train as a Ray job on other machines: `ballast submit | jobs | logs | stop | scale`."""
