"""The whole operator: real kopf, the real client, and a fake cluster over HTTP."""

from __future__ import annotations

from live import play
from world import NAMESPACE, OFFLINE, spec

from draftyard_api.status import Phase


def test_an_online_run_trains_in_a_pytorch_job(tmp_path):
    async def story(scene):
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "online", spec())
            status = await scene.until_over("online")
        assert (status.phase, status.backend) == (Phase.SUCCEEDED, "PyTorchJob")
        print(scene.children(), scene.calls(), scene.fake.server.record.counts())

    play(story, tmp_path, pytorch_jobs=True)
