"""The doctor: each thing that can be wrong is found before a run, with what to do about it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.support.checkpoints import write_checkpoint
from tests.support.task_configs import UNDERSTAND, task_config
from trainer.config import Config, Sd3Config
from trainer.config.file import dump_config, load_config
from trainer.data.datasets import load_train_prompts
from trainer.data.sampler import PromptSampler
from trainer.doctor import Finding, examine, run_doctor
from trainer.doctor.findings import as_row, summary, to_json
from trainer.doctor.machine import GIB, check_device, check_memory, check_ports
from trainer.doctor.packages import check_packages
from trainer.doctor.prompts import check_base, check_names
from trainer.doctor.run_folder import check_disk
from trainer.migration import load_recipe
from trainer.policies.registry import entry_of
from trainer.rewards import RewardClient

ROOT = Path(__file__).resolve().parents[2]
NO_SERVICE = "http://127.0.0.1:9"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a config and its prompts; the service is not there."""
    monkeypatch.chdir(tmp_path)

    def write(url: str = NO_SERVICE, **changes: object) -> Path:
        (tmp_path / "train.jsonl").write_text("".join(f'{{"prompt": "red thing {i}"}}\n' for i in range(20)))
        (tmp_path / "heldout.txt").write_text("a new red thing\nanother\n")
        save_file({"weight": torch.zeros(100)}, tmp_path / "base.safetensors")
        config: dict[str, object] = {
            "run_name": "run",
            "max_steps": 10,
            "policy": {"type": "tiny", "checkpoint": "base.safetensors"},
            "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8},
            "rewards": {
                "services": {"rules": {"urls": [url]}},
                "columns": {"color": {"service": "rules", "reward": "color_match"}},
                "ready_timeout_s": 0.5,
            },
            "data": {"train": [{"path": "train.jsonl", "rewards": {"color": 1.0}}]},
            "distributed": {"num_threads": 1},
            "evaluation": {"path": "heldout.txt", "rewards": ["color"]},
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


def found(path: Path, *overrides: str) -> list[Finding]:
    return list(examine(path, overrides))


def only(findings: list[Finding], area: str, status: str) -> Finding:
    matching = [f for f in findings if (f.area, f.status) == (area, status)]
    assert len(matching) == 1, findings
    return matching[0]


def test_a_good_config_with_its_service_has_no_failure(
    small: Callable[..., Path], rules_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    path = small(rules_url)
    assert run_doctor(path) == 0
    out = capsys.readouterr().out
    assert "train: 20 prompts, 2.0 epochs, rewards color 1" in out
    assert "2 held-out prompts, none of them in the training data" in out
    assert "would start fresh in outputs/run" in out
    assert f"rules at {rules_url}: ready" in out
    assert "reward color (color_match): canary scored as it should, revision " in out
    assert out.splitlines()[-1].startswith("ready to train")
    made = {p.name for p in tmp_path.iterdir()} - {p.name for p in before}
    assert made == {"train.jsonl", "heldout.txt", "base.safetensors", "config.yaml"}, "the doctor leaves nothing behind"


def test_json_holds_the_same_findings(
    small: Callable[..., Path], rules_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(small(rules_url), ["evaluation={path: null}"], as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert {"area", "status", "message", "remedy"} == set(told["findings"][0])
    assert any(f["status"] == "WARN" and "no held-out prompts" in f["message"] for f in told["findings"])


def test_a_broken_config_ends_the_examination(small: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(small(), ["optim.lrr=1"]) == 1
    out = capsys.readouterr().out
    assert "did you mean optim.lr?" in out
    assert "1 to mend before this can run" in out


def test_a_service_that_is_not_there_fails_with_its_address(small: Callable[..., Path]) -> None:
    finding = only(found(small()), "services", "FAIL")
    assert NO_SERVICE in finding.message and "rewards.services.rules.urls" in finding.message


def test_services_are_examined_even_if_one_is_missing(small: Callable[..., Path], rules_url: str) -> None:
    path = small(rules_url)
    findings = found(
        path,
        f"rewards.services.other.urls=['{NO_SERVICE}']",
        "rewards.columns.other.service=other",
        "data.train.0.rewards.other=1",
    )
    assert "other" in only(findings, "services", "FAIL").message
    assert any(f.status == "OK" and "reward color" in f.message for f in findings)


def test_a_reward_the_service_does_not_have_fails(small: Callable[..., Path], rules_url: str) -> None:
    finding = only(found(small(rules_url), "rewards.columns.color.reward=colour"), "services", "FAIL")
    assert "'colour'" in finding.message and "color_match" in finding.message


def test_a_service_that_takes_less_than_a_micro_batch_fails(small: Callable[..., Path], rules_url: str) -> None:
    sampling = {"prompts_per_step": 32, "group_size": 64, "micro_batch_size": 2048}
    message = only(found(small(rules_url, sampling=sampling)), "services", "FAIL").message
    assert "sampling.micro_batch_size is 2048, and the service takes at most 1024 items in one request" in message


def test_a_canary_that_is_not_asked_for_is_not_called_good(small: Callable[..., Path], rules_url: str) -> None:
    findings = found(small(rules_url), "rewards.columns.color.canary=none")
    finding = only(findings, "services", "NOT CHECKED")
    assert "reward color (color_match): revision" in finding.message and "no canary" in finding.message


@contextmanager
def other_server() -> Iterator[str]:
    """An HTTP server that is no reward service."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_something_else_at_the_address_fails(small: Callable[..., Path]) -> None:
    with other_server() as url:
        finding = only(found(small(url)), "services", "FAIL")
    assert "/ready answered 404" in finding.message and url in finding.message


def test_local_services_are_started_checked_and_stopped(small: Callable[..., Path]) -> None:
    path = small(
        rewards={
            "launch": "local",
            "services": {"rules": {"module": "rules"}},
            "columns": {"color": {"service": "rules", "reward": "color_match"}},
        }
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "doctor", str(path), "--json"],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    messages = [f["message"] for f in json.loads(done.stdout)["findings"] if f["area"] == "services"]
    (at,) = [m for m in messages if m.startswith("rules at http://127.0.0.1:")]
    port = int(at.split("http://127.0.0.1:")[1].split(":")[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the service was stopped"


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "holds no prompt"), ("{}\n", "train.jsonl:1: prompt: missing"), ('{"prompt": "another"}\n', "same prompt")],
)
def test_broken_prompts_fail(small: Callable[..., Path], content: str, words: str) -> None:
    path = small()
    (path.parent / "train.jsonl").write_text(content)
    assert words in only(found(path), "data", "FAIL").message


def test_too_few_prompts_and_ranks_that_do_not_divide_fail(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small()
    assert "holds 20 prompts" in only(found(path, "sampling.prompts_per_step=24"), "data", "FAIL").message
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "multiple of 3" in only(found(path), "data", "FAIL").message


def test_unused_rewards_services_and_weights_of_nought_are_warned_about(small: Callable[..., Path]) -> None:
    findings = found(
        small(),
        f"rewards.services.idle.urls=['{NO_SERVICE}']",
        "rewards.columns.unasked.service=rules",
        "rewards.columns.silent.service=rules",
        "data.train.0.rewards.silent=0",
    )
    told = [f.message for f in findings if (f.area, f.status) == ("rewards", "WARN")]
    assert [m.split(" ")[0] for m in told] == [
        "rewards.columns.unasked",
        "rewards.services.idle",
        "data.train.0.rewards:",
    ]


def test_a_missing_base_fails_and_no_base_is_warned_about(small: Callable[..., Path]) -> None:
    path = small()
    finding = only(found(path, "policy.checkpoint=none.safetensors"), "policy", "FAIL")
    assert str(path.parent / "none.safetensors") in finding.message and "trainer sft" in finding.remedy
    assert "random weights" in only(found(path, "policy.checkpoint=null"), "policy", "WARN").message


def test_the_folders_of_large_models_are_looked_for(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QWEN2_5_VL_MODEL_NAME_OR_PATH", raising=False)
    monkeypatch.delenv("CHECKPOINT", raising=False)
    sd3 = load_config(small(policy={"type": "sd3", "pretrained": "sd3"}), Config)
    assert [(f.status, f.message) for f in check_base(sd3)] == [
        ("FAIL", f"policy.pretrained: no file at {tmp_path / 'sd3'}")
    ]
    (tmp_path / "sd3").mkdir()
    (finding,) = check_base(sd3)
    assert finding.status == "FAIL" and "no model_index.json, config.json or weights" in finding.message
    (tmp_path / "sd3/model_index.json").write_text('{"_class_name": "x", "vae": ["diffusers", "AutoencoderKL"]}')
    (finding,) = check_base(sd3)
    assert finding.status == "FAIL" and finding.message.endswith("lacks the parts vae")
    (tmp_path / "sd3/vae").mkdir()
    assert [(f.status, f.message) for f in check_base(sd3)] == [("OK", "starts from sd3")]
    (tmp_path / "sd3/vae/model.safetensors").write_bytes(b"cut off")
    (finding,) = check_base(sd3)
    assert finding.status == "FAIL" and "is no whole safetensors file" in finding.message
    (tmp_path / "sd3/vae/model.safetensors").unlink()
    deepgen = load_config(small(policy={"type": "deepgen", "sd3_path": "sd3"}), Config)
    assert [(f.status, f.message) for f in check_base(deepgen)] == [
        ("OK", "starts from sd3"),
        ("FAIL", "policy.qwen_path is null"),
        ("FAIL", "policy.checkpoint is null"),
    ]


def test_captions_of_the_supervised_loss_are_training_data_too(small: Callable[..., Path], tmp_path: Path) -> None:
    """The held-out prompts are `a new red thing` and `another`."""
    entries = [{"image_path": "0.png", "txt": "A  NEW red thing"}, {"image_path": "1.png", "txt": "a blue one"}]
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    finding = only(found(small(), "sft={path: captions.json, batch_size: 2}"), "data", "FAIL")
    assert "1 of 2 held-out prompts are also in the training data" in finding.message
    assert "data set 'sft'" in finding.message


def test_the_judge_of_an_evaluation_file_is_asked_for(small: Callable[..., Path]) -> None:
    columns = {"color": {"service": "rules"}, "judge": {"service": "rules", "reward": "unigenbench"}}
    rewards = {"services": {"rules": {"urls": [NO_SERVICE]}}, "columns": columns}
    unused = load_config(small(rewards=rewards), Config)
    assert [finding.message.split()[0] for finding in check_names(unused)] == ["rewards.columns.judge"]
    Path("eval.yaml").write_text("datasets: [{name: bench, path: bench.csv, scoring: unigenbench}]")
    asked = load_recipe(small(rewards=rewards), Config, ["evaluation.dataset_config=eval.yaml"])
    assert list(check_names(asked)) == []


def test_what_a_task_asks_for_is_asked_for() -> None:
    assert [each.message for each in check_names(task_config())] == [
        "rewards.columns.other is asked for by no task and no evaluation"
    ]
    silent = task_config({"understand": {**UNDERSTAND, "rewards": {"letter": 1.0, "hps": 1.0, "other": 0.0}}})
    assert [each.message for each in check_names(silent)] == [
        "sampling.tasks.understand.rewards: other has the weight 0: it is scored and not trained on"
    ]


def test_a_missing_or_readable_token_file_is_found(small: Callable[..., Path], rules_url: str) -> None:
    path = small(rules_url)
    finding = only(found(path, "rewards.services.rules.token_file=token"), "services", "FAIL")
    assert str(path.parent / "token") in finding.message
    (path.parent / "token").write_text("secret")
    (path.parent / "token").chmod(0o644)
    findings = found(path, "rewards.services.rules.token_file=token")
    assert "chmod 600 token" in only(findings, "services", "WARN").remedy
    assert "secret" not in to_json(findings)


def checkpoint(config: Config, step: int, **state: object) -> Path:
    sampler = PromptSampler(load_train_prompts(config.data), prompts_per_step=4, seed=config.seed, rank=0, world=1)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    saved = {"sampler": sampler.state_dict(), **state}
    return write_checkpoint(config.run_dir / "checkpoints", step, state=saved)


def run_findings(path: Path, *overrides: str) -> list[Finding]:
    return [f for f in found(path, *overrides) if f.area == "run"]


def test_it_says_where_a_run_would_go_on(small: Callable[..., Path]) -> None:
    path = small()
    checkpoint(load_config(path, Config), 6)
    (finding,) = run_findings(path)
    assert finding.status == "OK" and "would go on from step 6 of 10" in finding.message
    (finding,) = run_findings(path, "max_steps=6")
    assert finding.status == "WARN" and "step 6 and max_steps is 6" in finding.message
    (finding,) = run_findings(path, "resume=never")
    assert finding.status == "FAIL" and "resume is never" in finding.message


def test_changed_settings_and_data_are_found_before_a_resume(small: Callable[..., Path]) -> None:
    path = small()
    checkpoint(load_config(path, Config), 6)
    changed = run_findings(path, "optim.lr=0.5", "checkpoint.save_every=3")
    assert [f.status for f in changed] == ["OK", "WARN"]
    assert "optim.lr: 0.0001 -> 0.5" in changed[1].message and "save_every" not in changed[1].message
    (path.parent / "train.jsonl").write_text("".join(f'{{"prompt": "blue thing {i}"}}\n' for i in range(20)))
    assert (
        "prompts of data set 'train' have changed" in next(f for f in run_findings(path) if f.status == "FAIL").message
    )


def test_a_damaged_checkpoint_fails_unless_an_older_one_is_whole(small: Callable[..., Path]) -> None:
    path = small()
    saved = checkpoint(load_config(path, Config), 6)
    (saved / "shard_00_of_01.safetensors").write_bytes(b"torn")
    (finding,) = run_findings(path)
    assert finding.status == "FAIL" and "not a usable checkpoint" in finding.message
    checkpoint(load_config(path, Config), 4)
    damaged, usable = run_findings(path)
    assert damaged.status == "WARN" and "step_000006 is not a usable checkpoint" in damaged.message
    assert usable.status == "OK" and "would go on from step 4" in usable.message


def test_metrics_without_a_checkpoint_would_be_lost(small: Callable[..., Path]) -> None:
    path = small()
    run_dir = load_config(path, Config).run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    (finding,) = run_findings(path)
    assert finding.status == "WARN" and "written anew" in finding.message


def test_another_scorer_than_the_run_was_trained_against_is_found(small: Callable[..., Path], rules_url: str) -> None:
    path = small(rules_url)
    config = load_config(path, Config)
    with RewardClient(config.rewards, urls={"rules": (rules_url,)}) as client:
        before = client.scorers.state()
    before["color"] |= {"revision": "older"}
    checkpoint(config, 6, scorers=before)
    finding = only(found(path), "services", "FAIL")
    assert "another scorer than the one the run was trained against (revision older, now " in finding.message
    assert "run_name" in finding.remedy and "rewards.columns.color.on_change=accept" in finding.remedy
    accepted = only(found(path, "rewards.columns.color.on_change=accept"), "services", "WARN")
    assert "revision older, now " in accepted.message


def test_the_scorers_a_run_records_are_those_of_its_rewards(small: Callable[..., Path], rules_url: str) -> None:
    """The trainer saves them with each checkpoint; the doctor finds nothing to say about the same ones."""
    path = small(rules_url)
    config = load_config(path, Config)
    with RewardClient(config.rewards, urls={"rules": (rules_url,)}) as client:
        assert client.scorers.state().keys() == {"color"}
        checkpoint(config, 6, scorers=client.scorers.state())
    assert not [f for f in found(path) if f.area == "services" and f.status != "OK"]


def test_disk(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(small(), Config)

    def free(count: int) -> list[Finding]:
        usage = type("usage", (), {"free": count})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        return list(check_disk(config))

    trained = entry_of(config.policy).sizes(config.policy).trained
    # Weight, average and two moments in float32, for the two checkpoints that are kept and the one being written.
    needed = 4 * 4 * trained * 3
    assert free(needed - 1)[0].status == "FAIL"
    assert free(needed)[0].status == "WARN"
    assert free(1 << 40)[0].status == "OK"
    nowhere = Sd3Config(type="sd3", pretrained=str(config.run_dir / "nowhere"))
    unknown = config.model_copy(update={"policy": nowhere})
    assert [f.status for f in check_disk(unknown)] == ["NOT CHECKED"]
    size = sum(f.stat().st_size for f in checkpoint(config, 6).iterdir())
    assert free(3 * size - 1)[0].status == "FAIL"
    assert "the size of the newest" in free(1 << 40)[0].message


def test_a_folder_that_cannot_be_written_fails(small: Callable[..., Path]) -> None:
    path = small()
    (path.parent / "outputs").write_text("a file where the folder belongs")
    finding = only(found(path), "disk", "FAIL")
    assert "cannot be written" in finding.message and "output_dir" in finding.remedy


def test_packages(tmp_path: Path) -> None:
    pins = tmp_path / "base.txt"
    pins.write_text("# why==this\npydantic==0.0.1\nno-such-package==1.0\n")
    missing, other = check_packages(pins)
    assert missing.status == "FAIL" and "no-such-package 1.0" in missing.message and "pip install" in missing.remedy
    assert other.status == "WARN" and "(pinned: 0.0.1)" in other.message
    pins.write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    assert [f.status for f in check_packages(pins)] == ["OK"]
    assert [f.status for f in check_packages(tmp_path / "none.txt")] == ["WARN"]


def test_device_and_memory(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = small()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = check_device(load_config(path, Config))
    assert finding.status == "OK" and "1 torch threads" in finding.message
    (finding,) = check_device(load_config(path, Config, ["distributed.num_threads=100000"]))
    assert finding.status == "WARN" and "num_threads" in finding.remedy
    (finding,) = check_device(load_config(path, Config, ["distributed.device=cuda"]))
    assert finding.status == "FAIL" and "use auto or cpu" in finding.message
    local = ["rewards.launch=local", "rewards.services.rules={module: rules, args: {workers: 1000000}}"]
    (finding,) = check_memory(load_config(path, Config, local))
    assert finding.status == "FAIL" and "`workers`" in finding.remedy
    for free, status in ((0.5, "WARN"), (100, "OK"), (None, "NOT CHECKED")):
        told = (None, None) if free is None else (int(free * GIB), 100 * GIB)
        monkeypatch.setattr("trainer.doctor.machine._memory", lambda told=told: told)
        (finding,) = check_memory(load_config(path, Config))
        assert finding.status == status
    monkeypatch.setenv("NGPUS", "2")
    alone, _ = check_device(load_config(path, Config))
    assert alone.status == "WARN" and "2 processes on this node would train on the CPU" in alone.message
    assert [f.status for f in check_device(load_config(path, Config, ["distributed.device=cpu"]))] == ["OK"]
    monkeypatch.setenv("NNODES", "2")
    assert check_device(load_config(path, Config, ["distributed.device=cpu"])).__next__().status == "NOT CHECKED"


def test_ports_that_are_taken_fail(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        local = ["rewards.launch=local", f"rewards.services.rules={{module: rules, args: {{port: {port}}}}}"]
        config = load_config(small(), Config, local)
        (finding,) = check_ports(config)
        assert finding.status == "FAIL" and f"args.port = {port}" in finding.message
        monkeypatch.setenv("NNODES", "2")
        monkeypatch.setenv("MASTER_PORT", str(port))
        assert "MASTER_PORT" in list(check_ports(config))[1].message
    assert [f.status for f in check_ports(config)] == ["OK", "OK"]


def test_the_table_and_its_last_line() -> None:
    finding = Finding("disk", "FAIL", "one\ntwo", "free some space")
    assert as_row(finding, color=False).splitlines() == [
        "FAIL         disk      one",
        "                       two",
        "                       -> free some space",
    ]
    assert as_row(finding, color=True).startswith("\033[1;31mFAIL       \033[0m")
    assert summary([finding]) == "1 to mend before this can run, 0 to know about"
    assert summary([Finding("a", "OK", "fine")]) == "ready to train"
    unchecked = [Finding("a", "NOT CHECKED", "why")]
    assert summary(unchecked) == "ready to train, 1 not checked"
    assert json.loads(to_json(unchecked))["ok"] is False
    warned = summary([Finding("a", "WARN", "look", "do"), *unchecked])
    assert warned == "nothing found that stops a start, 1 to know about, 1 not checked"
