"""Rules of the five `pod` blocks: what a pod may not say, because the operator says it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from draftyard_api.names import ENV_CACHE, ENV_DATASETS, ENV_PEER_SECONDS, GROUP
from draftyard_api.rule import Check, Json, Rule, Values, broken, each_once, exactly_one, optional_field

PODS = ("spec.pod", "spec.prepare.pod", "spec.generate.pod", "spec.train.pod", "spec.evaluate.pod")
RESERVED_ENV = "^(PET_.*|DRAFTYARD_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT)$"
FREE_ENV = (ENV_CACHE, ENV_DATASETS, ENV_PEER_SECONDS)
"""Settings of the trainer that only a user knows."""
RESERVED_MOUNT = "^/+(data|run/+draftyard)(/|$)"
# "x-k8s.io" ends in "k8s.io" without a dot before it, and belongs to Kubernetes' projects too.
RESERVED_KEY = "^(([^/]*[.])?draftyard[.]dev|[^/]*(kubernetes|k8s)[.]io)/"
FREE_ANNOTATION = (
    "^(cluster-autoscaler[.]kubernetes[.]io/safe-to-evict|kueue[.]x-k8s[.]io/podset-(required|preferred)-topology)$"
)
NOTHING = "^$"
NAMED = {"env": "name", "volumes": "name", "volumeMounts": "mountPath", "imagePullSecrets": "name"}
"""Lists that are maps by a field, so that two appliers can own an entry each."""
VOLUME_KINDS = ("persistentVolumeClaim", "configMap", "secret", "emptyDir")


def has_gpu(resources: Mapping[str, Json]) -> bool:
    """Whether a map of resources counts GPUs."""
    return any(name.endswith("/gpu") for name in resources)


def gpu_free(resources: Json) -> Values | None:
    """A check: GPUs are counted elsewhere."""
    return broken(not any(has_gpu(resources.get(part, {})) for part in ("limits", "requests")))


def free_of_reserved_keys(field: str, free: str) -> Check:
    """A check: a map has no keys that belong to Kubernetes or to the operator, but for the `free` ones."""

    def holds(found: Mapping[str, str]) -> bool:
        return not any(re.search(RESERVED_KEY, key) and not re.search(free, key) for key in found)

    return lambda pod: broken(holds(pod.get(field, {})))


def pod_rules(at: str) -> Iterator[Rule]:
    """The rules of one block."""
    yield Rule(
        f"{at}.resources", "",
        "(!has(self.limits) || self.limits.all(k, !k.endsWith('/gpu'))) && "
        "(!has(self.requests) || self.requests.all(k, !k.endsWith('/gpu')))",
        "given a limit on GPUs; accepted: train.gpusPerNode, generate.gpusPerPod, evaluate.gpusPerPod", (), gpu_free,
    )  # fmt: skip
    yield Rule(
        f"{at}.env[]", "name", f"self.name in {list(FREE_ENV)} || !self.name.matches('{RESERVED_ENV}')",
        f"given %s; accepted: {', '.join(FREE_ENV)}, and any name but PET_*, DRAFTYARD_*, RANK, WORLD_SIZE, "
        "LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which the operator sets", ("self.name",),
        optional_field("name", lambda name: name in FREE_ENV or not re.search(RESERVED_ENV, name)),
    )  # fmt: skip
    yield Rule(
        f"{at}.env[]", "", "has(self.value) != has(self.valueFrom)",
        "given none or both; accepted: exactly one of value, valueFrom", (), exactly_one("value", "valueFrom"),
    )  # fmt: skip
    yield Rule(
        f"{at}.env[].valueFrom", "", "has(self.secretKeyRef) != has(self.configMapKeyRef)",
        "given none or both; accepted: exactly one of secretKeyRef, configMapKeyRef", (),
        exactly_one("secretKeyRef", "configMapKeyRef"),
    )  # fmt: skip
    yield Rule(
        f"{at}.volumes[]", "", f"[{', '.join(f'has(self.{kind})' for kind in VOLUME_KINDS)}].filter(x, x).size() == 1",
        f"given none or several; accepted: exactly one of {', '.join(VOLUME_KINDS)}", (), exactly_one(*VOLUME_KINDS),
    )  # fmt: skip
    yield Rule(
        f"{at}.volumeMounts[]", "mountPath", f"!self.mountPath.matches('{RESERVED_MOUNT}')",
        "given %s; accepted: any path but /data, /run/draftyard and what is below them", ("self.mountPath",),
        optional_field("mountPath", lambda path: not re.search(RESERVED_MOUNT, path)),
    )  # fmt: skip
    for field, key in NAMED.items():
        yield each_once(at, field, key)
    for field, free in (("labels", NOTHING), ("annotations", FREE_ANNOTATION)):
        yield Rule(
            at, field,
            f"!has(self.{field}) || self.{field}.all(k, !k.matches('{RESERVED_KEY}') || k.matches('{free}'))",
            f"given a key of {GROUP}, *kubernetes.io or *k8s.io; accepted: any other key", (),
            free_of_reserved_keys(field, free),
        )  # fmt: skip


POD_RULES: tuple[Rule, ...] = tuple(rule for pod in PODS for rule in pod_rules(pod))
