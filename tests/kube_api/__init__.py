"""A Kubernetes API server for tests: nodes and pods as the agent meets them, made from Kubernetes' own documentation.

It shares no code with the agent. What it keeps to: "Kubernetes API Concepts" (lists in parts, watches, bookmarks,
resource versions, 410 Gone), "Strategic Merge Patch", and the Status objects of refusals.
"""
