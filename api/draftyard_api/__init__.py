"""The contract between a person, the operator and the trainer.

Values only: pydantic models, enums and pure functions over them. Nothing here talks to Kubernetes,
opens a model or writes to a workspace, so that every other package may import it.
"""

__version__ = "0.1.0"
