"""The CNI plugin `flannel`: it gives a pod's interface to another plugin (`bridge`), with this host's subnet and MTU.

The runtime starts it for every pod that comes and goes, so it imports the standard library and a few small modules of
ours, nothing else. plugin.py does what the runtime asks for; request.py is what the runtime said, delegate.py the
other plugin's configuration, invoke.py how that one is run, state.py what was given to it until the pod goes.
"""
