"""The registry in etcd (v3 API)."""
