"""What the programs of a node read: each function makes one file's text."""

from __future__ import annotations

import json
from pathlib import Path

import layout
import yaml


def containerd(folder: Path, plugins: Path, runc: Path) -> str:
    """Own folders and socket, runc without systemd, and nothing that asks for CAP_SYS_RESOURCE."""
    return f"""version = 3
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{layout.socket()}"
[plugins.'io.containerd.internal.v1.opt']
path = "{folder}/opt"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{layout.PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{folder}/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"""


def network() -> str:
    """Pods hang on one bridge, whose address is their gateway."""
    ranges = [[{"subnet": layout.POD_RANGE, "gateway": layout.BRIDGE_ADDRESS}]]
    bridge = {
        "type": "bridge", "bridge": layout.BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }  # fmt: skip
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]})


def kubelet(folder: Path, authority: Path, certificate: Path, key: Path) -> str:
    """Images that were imported stay, however full the disk is; resolv.conf of this machine is not used."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{layout.socket()}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [layout.DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "volumePluginDir": str(folder / "plugins"),
            "maxPods": 110,
        }
    )


def proxy(kubeconfig: Path) -> str:
    """Services through nftables; the limits of connections belong to the machine and stay as they are."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": layout.POD_RANGE,
            "hostnameOverride": layout.NODE,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
    )
