"""Let programs of their own play rollouts over HTTP: the endpoint, and the processes of agents."""
