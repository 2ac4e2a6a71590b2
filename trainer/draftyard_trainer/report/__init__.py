"""What a run came to, for people: one HTML file that needs no network, and runs side by side.

`record` reads what a run left in its workspace, in whatever state it is; the other parts only look at a record.
"""
