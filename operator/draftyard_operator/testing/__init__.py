"""A Kubernetes API server in the test's own process, exact where operators get hurt, and small elsewhere.

It has what ready-made emulators lack: resourceVersion with conflicts, generation, a status apart, watches with a window
and bookmarks, deletion by owner references, namespaces that terminate, controllers that turn Jobs into pods, and faults
on demand. `fake_cluster.FakeCluster` is the whole; `server` speaks HTTP; the rest is
plain values and functions.
"""
