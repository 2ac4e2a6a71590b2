"""A status in which every field is there."""

from __future__ import annotations

FULL_STATUS = {
    "observedGeneration": 3,
    "phase": "Running",
    "stage": "train",
    "backend": "Job",
    "attempt": 2,
    "reason": "PodsReady",
    "message": "train a2: step 1330 of 3168",
    "startTime": "2026-11-20T08:00:03Z",
    "frozenTime": "2026-11-20T08:21:40Z",
    "activeSeconds": 31220,
    "fingerprint": "sha256:6f0c",
    "resolved": {
        "targetCommit": "6f6073b4", "dataRevision": "sha256:91ab", "chatTemplate": "tokenizer",
        "auxLayers": [2, 40, 77], "conversations": "77aa", "prepared": "5f1d",
        "image": "registry.example/trainer@sha256:00",
    },
    "plan": {
        "basis": "Counted", "samples": 91200, "droppedSamples": {"empty": 12, "noLoss": 40}, "truncatedSamples": 1210,
        "tokens": 104857600, "lossTokens": 61865984, "shards": 24, "regenerateShards": 12, "steps": 3168,
        "vocabCoverage": "0.984", "onPolicyShare": "0.6312",
        "bytes": {
            "conversations": 482344960,
            "prepare": 436207616, "hiddenStates": 2820334097006, "checkpoints": 84000000000, "export": 2800000000,
            "needed": 2907570304622, "free": 4398046511104, "capacity": 4398046511104,
            "hiddenStatesByCodec": {"none": 6131161080450, "balanced": 2820334097006},
        },
        "gpuHours": {"regenerate": "21.0", "generate": "10.1", "train": "10.2", "evaluate": "0.6", "total": "41.9"},
        "assumes": "H100; 40 % of peak in generate, 30 % in train",
    },
    "stages": [
        {
            "name": "generate", "state": "Succeeded", "attempt": 1, "child": "Job/llama33-70b-r2-generate-a1",
            "completedShards": "0-23", "failedShards": "", "counted": 0, "uncounted": 1,
            "startTime": "2026-11-20T08:22:00Z", "completionTime": "2026-11-20T11:02:00Z",
        },
        {
            "name": "train", "state": "Running", "attempt": 2, "child": "Job/llama33-70b-r2-train-a2",
            "resumedFromStep": 1104, "counted": 0, "uncounted": 1, "startTime": "2026-11-20T11:02:30Z",
        },
    ],
    "history": [
        {
            "stage": "train", "attempt": 1, "reason": "Disrupted",
            "message": "node gpu-7 was drained; saved at step 1104",
            "startTime": "2026-11-20T11:02:30Z", "completionTime": "2026-11-20T13:00:00Z",
        }
    ],
    "progress": {
        "percent": 42, "percentage": "42%", "step": 1330, "totalSteps": 3168, "epoch": "0.84", "loss": "1.873",
        "tokensPerSecond": "5598", "eta": "5h58m", "estimatedRemainingSeconds": 21517, "heartbeat": 1795614000,
        "lastUpdatedTime": "2026-11-20T13:40:00Z",
    },
    "checkpoint": {"lastStep": 1104, "bestStep": 1000},
    "acceptance": {
        "length": "2.71", "perPosition": ["0.78", "0.55", "0.38"], "draftTokens": 3, "prompts": 256,
        "source": "Simulated",
    },
    "hiddenStates": {"key": "9a3c", "bytes": 2790112000000, "argmaxAgreement": "0.994", "reclaimed": False},
    "export": {
        "published": True, "uri": "pvc://scratch/export/r2", "manifestSHA256": "ab",
        "serve": {"vllm": "vllm serve ...", "sglang": "python -m sglang.launch_server ..."},
    },
    "conditions": [
        {
            "type": "Running", "status": "True", "reason": "PodsReady", "message": "train a2: step 1330 of 3168",
            "lastTransitionTime": "2026-11-20T11:03:00Z", "observedGeneration": 3,
        }
    ],
}  # fmt: skip
"""A status in which every field is there that one can have."""
