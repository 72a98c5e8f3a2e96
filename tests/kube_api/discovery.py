"""What kubectl asks before it can say which objects a manifest makes: groups, versions and resources."""

from __future__ import annotations

from tests.kube_api.store import Object, Refused

RESOURCES = {
    "v1": [
        ("namespaces", "Namespace", False),
        ("serviceaccounts", "ServiceAccount", True),
        ("configmaps", "ConfigMap", True),
    ],
    "apps/v1": [("daemonsets", "DaemonSet", True)],
    "rbac.authorization.k8s.io/v1": [
        ("clusterroles", "ClusterRole", False),
        ("clusterrolebindings", "ClusterRoleBinding", False),
    ],
}


def discover(path: str) -> Object:
    """Return the document at a discovery path. Raises `Refused` for everything else: nothing of that kind exists."""
    version = path.removeprefix("/apis/").removeprefix("/api/")
    match path:
        case "/version":
            return {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}
        case "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        case "/apis":
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(name) for name in RESOURCES if "/" in name],
            }
        case _ if version in RESOURCES:
            resources = [
                {
                    "name": name,
                    "singularName": "",
                    "namespaced": namespaced,
                    "kind": kind,
                    "verbs": ["get", "create", "patch"],
                }
                for name, kind, namespaced in RESOURCES[version]
            ]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
        case _:
            raise Refused(404, "NotFound", f"the server could not find the requested resource: {path}")


def _group(group_version: str) -> Object:
    name, _, version = group_version.partition("/")
    preferred = {"groupVersion": group_version, "version": version}
    return {"name": name, "versions": [preferred], "preferredVersion": preferred}
