"""The registry that Kubernetes is."""
