"""End of the cluster: `make cluster-down`. Nothing of it is left."""

from __future__ import annotations

import layout
import machine


def main() -> None:
    """End the node and remove its folder, or say that there is none."""
    if not layout.FOLDER.exists():
        print("no cluster is there")
        return
    machine.leave()
    print("the cluster is gone")


if __name__ == "__main__":
    main()
