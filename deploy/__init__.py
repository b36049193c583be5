"""How vqserve runs on more than one machine: the Helm chart, Ray Serve and Ray Data."""
