"""The operator: kopf watches and says "look again", our own queue says when, and a pass decides what to do.

Nothing here imports the trainer or torch.
"""
