"""A file is read as a whole: everything that is wrong is said at once, once, in words."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftyard_api import document, storage_uri
from draftyard_api.document import SpecErrors

ROOT = Path(__file__).parents[2]
HEAD = """
apiVersion: draftyard.dev/v1alpha1
kind: DraftTraining
metadata: {name: r1}
spec:
"""
GOOD = """
  mode: Offline
  target: {model: file://target}
  data: {source: {file: {uri: file://chat.jsonl}}}
  workspace: {pvc: {claimTemplate: {size: 5Gi}}}
  hiddenStates: {}
"""
LONGEST = "accepted: at least data.maxLength (9000), since a row must hold the longest sample"
TRACKERS = '"tensorboard", "wandb", "swanlab" or "mlflow"'
ONLINE_WITH_STATES = (
    "given mode Online with hiddenStates; accepted: only with mode Offline, which stores hidden states: remove the block, "
    "or set mode: Offline"
)
ENV = (
    "accepted: DRAFTYARD_CACHE, DRAFTYARD_DATASETS, DRAFTYARD_PEER_SECONDS, and any name but PET_*, DRAFTYARD_*, RANK, "
    "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which the operator sets"
)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, local: bool = True) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        document.load(write(folder, text), local)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def of_spec(folder: Path, more: str, without: str = "") -> list[str]:
    """Mistakes of the good spec with more lines, and without the lines of some blocks."""
    lines = [line for line in GOOD.splitlines() if line.strip().partition(":")[0] not in without.split()]
    return mistakes(folder, HEAD + "\n".join(lines) + "\n" + textwrap.indent(textwrap.dedent(more), "  "))


def test_a_good_file(tmp_path):
    training = document.load(write(tmp_path, HEAD + GOOD))
    assert training.metadata.name == "r1"
    assert training.spec.target.model == "file://target"
    assert training.spec.train.learning_rate == 0.0001


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        ("smollm2-demo", "Offline"),
        ("smollm2-own-answers", "Online"),
        ("e2e-offline", "Offline"),
        ("e2e-online", "Online"),
    ],
)
def test_examples_are_good(file, mode):
    assert document.load(ROOT / f"examples/{file}.yaml").spec.mode == mode


def test_five_mistakes_are_five_lines(tmp_path):
    text = """
      mode: Both
      target: {model: file://target, tensorParallel: 0}
      data: {source: {file: {uri: file://chat.jsonl}}, maxLength: 9000}
      workspace: {pvc: {claimTemplate: {size: 5Gi}}}
      hiddenStates: {codec: fp8}
      train: {learningRate: 1e-4}
    """
    assert mistakes(tmp_path, HEAD + text) == [
        'spec.mode: given "Both"; accepted: "Online" or "Offline"',
        "spec.target.tensorParallel: given 0; accepted: at least 1",
        'spec.hiddenStates.codec: given "fp8"; accepted: "none", "lossless", "balanced" or "compact"',
        'spec.train.learningRate: given "1e-4" (a text); accepted: a number, write 0.0001',
        f"spec.train.rowTokens: given rowTokens 8192; {LONGEST}",
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(
            "train: {lr: 1}",
            "spec.train.lr: given an unknown field; accepted: learningRate (did you mean that?)",
            id="initials",
        ),
        pytest.param(
            "train: {epoch: 1}",
            "spec.train.epoch: given an unknown field; accepted: epochs (did you mean that?)",
            id="a letter too few",
        ),
        pytest.param(
            "train: {learning_rate: 0.1}",
            "spec.train.learning_rate: given an unknown field; accepted: learningRate (did you mean that?)",
            id="snake case",
        ),
        pytest.param("export: {x: 1}", "spec.export.x: given an unknown field; accepted: ifExists", id="nothing alike"),
        pytest.param(
            "pod: {env: [{name: A, valu: b, value: c}]}",
            "spec.pod.env[0].valu: given an unknown field; accepted: value (did you mean that?)",
            id="in a list",
        ),
        pytest.param(
            "train: {epochs: two}",
            'spec.train.epochs: given "two" (a text); accepted: a whole number',
            id="a word for a number",
        ),
        pytest.param(
            'train: {epochs: "2"}',
            'spec.train.epochs: given "2" (a text); accepted: a whole number, write 2',
            id="a number in quotes",
        ),
        pytest.param(
            "train: {epochs: 2.5}", "spec.train.epochs: given 2.5; accepted: a whole number", id="half an epoch"
        ),
        pytest.param(
            "train: {epochs: true}", "spec.train.epochs: given true; accepted: a whole number", id="yes for a number"
        ),
        pytest.param("suspend: 1", "spec.suspend: given 1; accepted: true or false", id="a number for yes"),
        pytest.param("train: {gradClip: 0}", "spec.train.gradClip: given 0; accepted: above 0", id="an open bound"),
        pytest.param(
            "train: {gradClip: .inf}", "spec.train.gradClip: given Infinity; accepted: a number", id="infinity"
        ),
        pytest.param(
            "evaluate: {draftTokens: 17}",
            "spec.evaluate.draftTokens: given 17; accepted: at most 16",
            id="an upper bound",
        ),
        pytest.param("train: 7", "spec.train: given 7; accepted: a block of fields", id="a number for a block"),
        pytest.param(
            "draft: {auxLayers: 2}", "spec.draft.auxLayers: given 2; accepted: a list", id="a number for a list"
        ),
        pytest.param(
            "draft: {auxLayers: []}", "spec.draft.auxLayers: given []; accepted: at least 1 entries", id="an empty list"
        ),
        pytest.param(
            "draft: {profile: 3}",
            'spec.draft.profile: given 3; accepted: "eagle3" or "eagle3.1"',
            id="a number for a word",
        ),
        pytest.param(
            "pod: {shmSize: 64 Gi}",
            'spec.pod.shmSize: given "64 Gi"; accepted: a quantity such as 8, 500m or 32Gi',
            id="a quantity with a blank",
        ),
        pytest.param(
            "pod: {resources: {limits: {memory: 32GB}}}",
            'spec.pod.resources.limits.memory: given "32GB"; accepted: a quantity such as 8, 500m or 32Gi',
            id="gigabytes",
        ),
        pytest.param(
            "scheduling: {queueName: GPU}",
            'spec.scheduling.queueName: given "GPU"; accepted: a name of a-z, 0-9, "-" and "."',
            id="a name in capitals",
        ),
        pytest.param(
            "draft: {initFrom: x}",
            f'spec.draft.initFrom: given "x"; accepted: {storage_uri.ACCEPTED}',
            id="a rule",
        ),
    ],
)
def test_one_mistake_is_one_line(tmp_path, lines, expected):
    assert of_spec(tmp_path, lines) == [expected]


@pytest.mark.parametrize(
    ("lines", "without", "expected"),
    [
        pytest.param(
            "workspce: {pvc: {existingClaim: a}}",
            "workspace",
            ["spec.workspce: given an unknown field; accepted: workspace (did you mean that?)"],
            id="a misspelled block is not missing too",
        ),
        pytest.param(
            "data: {source: {preset: {name: a}}, maxLength: long}\ntrain: {rowTokens: 64, tokensPerBatch: 64}",
            "data",
            ['spec.data.maxLength: given "long" (a text); accepted: a whole number'],
            id="a rule about a wrong number is not asked",
        ),
        pytest.param(
            "tracking: {reportTo: [wandb, wanb, tb], wandb: {project: p}}",
            "",
            [
                f"spec.tracking.reportTo[{entry}; accepted: {TRACKERS}"
                for entry in ('1]: given "wanb"', '2]: given "tb"')
            ],
            id="two wrong entries of a list",
        ),
        pytest.param(
            "hiddenStates: {codec: fp8}\nmode: Online",
            "mode hiddenStates",
            [
                'spec.hiddenStates.codec: given "fp8"; accepted: "none", "lossless", "balanced" or "compact"',
                f"spec.hiddenStates: {ONLINE_WITH_STATES}",
            ],
            id="a rule about a block with a wrong field is asked",
        ),
        pytest.param(
            "pod: {env: [{name: RANK, value: 3}, {name: 1A, value: x}]}",
            "",
            [
                "spec.pod.env[0].value: given 3; accepted: a text",
                'spec.pod.env[1].name: given "1A"; accepted: letters, digits and "_", no digit first',
                f"spec.pod.env[0].name: given RANK; {ENV}",
            ],
            id="schema and rules of one list",
        ),
        pytest.param(
            "workspace: {s3: {}}\ntracking: {reportTo: [mlflow], mlflow: {}}",
            "workspace",
            [
                f"spec.{path}: given nothing; accepted: a value, since it is required"
                for path in ("workspace.s3.uri", "tracking.mlflow.uri", "tracking.mlflow.experiment")
            ],
            id="fields that are missing",
        ),
    ],
)
def test_mistakes_do_not_lead_to_others(tmp_path, lines, without, expected):
    assert of_spec(tmp_path, lines, without) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "given 0 documents; accepted: one DraftTraining", id="empty"),
        pytest.param("# nothing\n", "given 0 documents; accepted: one DraftTraining", id="a comment"),
        pytest.param(
            HEAD + GOOD + "---" + HEAD + GOOD, "given 2 documents; accepted: one DraftTraining", id="two documents"
        ),
        pytest.param("- a\n- b\n", 'given ["a", "b"]; accepted: a DraftTraining, a block of fields', id="a list"),
        pytest.param("a: [", "while parsing a flow node", id="no YAML"),
        pytest.param("a: !!python/object:os.system x", "could not determine a constructor", id="a Python object"),
        pytest.param(HEAD + GOOD + "  mode: Online\n", "given mode twice in", id="a field twice"),
    ],
)
def test_what_is_no_document(tmp_path, text, words):
    (error,) = mistakes(tmp_path, text)
    assert error.startswith(f"{tmp_path / 'run.yaml'}: ")
    assert words in error


def test_a_missing_file(tmp_path):
    with pytest.raises(
        SpecErrors, match=r"none.yaml: No such file or directory; accepted: a file with one DraftTraining"
    ):
        document.load(tmp_path / "none.yaml")


def test_one_separator_is_no_second_document(tmp_path):
    assert document.load(write(tmp_path, f"---{HEAD}{GOOD}---\n")).metadata.name == "r1"


def test_another_kind(tmp_path):
    assert mistakes(tmp_path, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n")[:2] == [
        'apiVersion: given "v1"; accepted: "draftyard.dev/v1alpha1"',
        'kind: given "Pod"; accepted: "DraftTraining"',
    ]


def test_files_are_for_local_runs(tmp_path):
    errors = mistakes(tmp_path, HEAD + GOOD, local=False)
    assert [error.partition(":")[0] for error in errors] == ["spec.target.model", "spec.data.source.file.uri"]
    assert all('given "file://' in error for error in errors)


@pytest.mark.parametrize("place", ["target: {model: ./target}", "target: {model: /abs/target}"])
def test_a_path_is_a_file(tmp_path, place):
    text = GOOD.replace("target: {model: file://target}", place)
    assert document.load(write(tmp_path, HEAD + text)).spec.target.model in place


def test_a_bucket_is_no_file_even_here(tmp_path):
    text = GOOD.replace("{file: {uri: file://chat.jsonl}}", "{s3: {uri: file://chat.jsonl}}")
    assert mistakes(tmp_path, HEAD + text) == [
        'spec.data.source.s3.uri: given "file://chat.jsonl"; accepted: s3://bucket/prefix'
    ]


@pytest.mark.parametrize("block", ["train:", "evaluate:", "train: {pod: {env: }, epochs: }"])
def test_an_empty_block_is_absent(tmp_path, block):
    training = document.load(write(tmp_path, f"{HEAD}{GOOD}  {block}\n"))
    assert training == document.load(write(tmp_path, HEAD + GOOD))


def test_what_is_empty_for_a_template_is_passed_on(tmp_path):
    text = GOOD.replace("data: {", "data: {templateKwargs: {tools: null}, ")
    assert document.load(write(tmp_path, HEAD + text)).spec.data.template_kwargs == {"tools": None}


def test_a_date_is_a_text(tmp_path):
    text = GOOD.replace("file://target}", "file://target, revision: 2026-11-20}")
    assert document.load(write(tmp_path, HEAD + text)).spec.target.revision == "2026-11-20"


def test_an_object_from_a_cluster_can_be_run_here(tmp_path):
    """`kubectl get -o yaml` writes more than a person does."""
    given: dict[str, Any] = yaml.safe_load(HEAD + GOOD)
    given["metadata"] |= {"uid": "4c1e", "resourceVersion": "7", "managedFields": [{"manager": "kubectl"}]}
    given["status"] = {"phase": "Running"}
    assert document.check(given).metadata.name == "r1"


@pytest.mark.parametrize("name", ["Tiny", "a_b", "-a", "a" * 41])
def test_names(tmp_path, name):
    (error,) = mistakes(tmp_path, HEAD.replace("r1", name) + GOOD)
    assert error.startswith(f'metadata.name: given "{name}"; accepted: at most 40 of a-z')


def test_what_is_long_is_cut(tmp_path):
    (error,) = of_spec(tmp_path, f"draft: {{keepTokens: {'x' * 500}}}")
    assert len(error) < 160
    assert "... (a text); accepted: a list" in error


@pytest.mark.parametrize("depth", ["spec", "metadata", "apiVersion"])
def test_a_document_without_its_parts(depth):
    given = yaml.safe_load(HEAD + GOOD)
    del given[depth]
    with pytest.raises(SpecErrors) as caught:
        document.check(given)
    assert caught.value.errors == [f"{depth}: given nothing; accepted: a value, since it is required"]
