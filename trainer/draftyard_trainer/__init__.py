"""The stages of a run, one page each (`prepare`, `generate`, `train`, `evaluate`), and the parts that they call.

Every stage reads one task file and a workspace, and writes only to the workspace. It may be killed at any time
and started again: work that is done and verified is not done twice.
"""
