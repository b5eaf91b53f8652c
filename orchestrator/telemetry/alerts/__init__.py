"""Alerts: signs in a run's metrics that it stopped learning, or soon will."""
