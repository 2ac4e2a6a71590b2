"""Curves of a training in TensorBoard, Weights & Biases, SwanLab and MLflow.

A tracker follows the journal: a process of its own reads `metrics.jsonl` in the workspace and sends what is new, while
the training goes on and knows nothing of it. A library that hangs, forks, prints or dies takes nothing with it, and
what could not be sent is sent later, out of the same file, by `draftyard track sync`.
"""
