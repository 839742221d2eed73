"""Models in object storage: fetched once on a machine, never half, and noticed when they change."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from boring_assets.commands.embedding import embed_all
from boring_assets.engine.model.load import load_model
from boring_assets.errors import ModelError, RunError, StorageError
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.storage.weights import find_model_files, sha256_of
from boring_assets.tiny import TINY_DIR, TINY_NAME
from resources.clip import ClipResource
from tests.seaweed import Seaweed
from tests.waiting import HANG_SECONDS, wait_for

NAMES = ("open_clip_config.json", "open_clip_model.safetensors")
FIND = (
    "import sys; from boring_assets.storage.weights import find_model_files as f; print(f(*sys.argv[1:]).{})"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "boring_assets" / "models"


@pytest.fixture
def uri(s3_env: Seaweed) -> str:
    """The URI of a model directory: `boring-tiny`."""
    uri = s3_env.new_prefix()
    for name in NAMES:
        s3_env.filesystem().put(str(TINY_DIR / name), f"{uri}/{name}")
    return uri


def start(attribute: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FIND.format(attribute), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def change_one_weight(s3: Seaweed, uri: str, folder: Path) -> None:
    """Replaces the weights by others of the same size."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(TINY_DIR / NAMES[1])
    name = next(name for name, value in weights.items() if name.startswith("visual.") and value.ndim == 2)
    weights[name] = weights[name] + 1
    save_file(weights, folder / "changed", metadata={"format": "pt"})
    s3.filesystem().put(str(folder / "changed"), f"{uri}/{NAMES[1]}")


def test_a_model_directory_and_a_checkpoint_are_loaded_from_a_bucket(
    s3_env: Seaweed, uri: str, tmp_path: Path
) -> None:
    import open_clip
    import torch

    from boring_assets.engine.model.text import TextEncoder

    model = find_model_files(uri).load()
    assert (model.name, model.pretrained) == (uri, "")
    assert model.digest == load_model(TINY_NAME).digest
    assert TextEncoder(model, "cpu").encode(["a red circle"]).shape == (1, 64)

    small = open_clip.create_model("ViT-S-32-alt", pretrained_text=False)
    torch.save(small.state_dict(), tmp_path / "epoch_1.pt")
    s3_env.filesystem().put(str(tmp_path / "epoch_1.pt"), f"{uri}-tuned/epoch_1.pt")
    model = find_model_files("ViT-S-32-alt", f"{uri}-tuned/epoch_1.pt").load()
    assert (model.name, model.pretrained) == ("ViT-S-32-alt", f"{uri}-tuned/epoch_1.pt")
    assert model.digest == load_model("ViT-S-32-alt", str(tmp_path / "epoch_1.pt")).digest


def test_names_and_local_paths_stay_as_they_are(tmp_path: Path) -> None:
    for name in (TINY_NAME, "ViT-B-32", "hf-hub:org/name", str(TINY_DIR), f"local-dir:{TINY_DIR}"):
        assert find_model_files(name).name == name
    assert find_model_files(TINY_DIR.as_uri()).name == str(TINY_DIR)
    assert find_model_files("ViT-B-32", "openai").pretrained == "openai"


def test_processes_that_start_at_once_fetch_once(uri: str, cache: Path, s3_calls: list[str]) -> None:
    processes = [start("name", uri) for _ in range(4)]
    answers = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    assert {out for out, _ in answers} == {f"{path}\n" for path in cache.glob("*/*/files")}, answers
    (entry,) = cache.iterdir()
    assert len([path for path in entry.iterdir() if path.name != "lock"]) == 1
    find_model_files(uri)
    assert "GetObject" not in s3_calls


def test_a_changed_file_is_noticed(s3_env: Seaweed, uri: str, cache: Path, tmp_path: Path) -> None:
    clip = ClipResource(model=uri, device="cpu")
    before = clip.encoder().model
    assert clip.encoder().model is before
    change_one_weight(s3_env, uri, tmp_path)
    after = clip.encoder().model
    assert after.digest != before.digest
    for number in range(3):
        s3_env.filesystem().pipe_file(f"{uri}/note-{number}.txt", b"")
        find_model_files(uri)
    assert len(list(cache.glob("*/*/manifest.json"))) == 2  # the present version, and the one before


def test_weights_that_changed_do_not_get_into_the_same_output(
    s3_env: Seaweed, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = Settings(
        input_dir=str(tmp_path / "input"), output_dir=str(tmp_path / "output"), model=uri, device="cpu"
    )
    write_sample_data(tmp_path / "input", 1, 2, "parquet", image_size=16)
    assert embed_all(settings).shards == 1
    change_one_weight(s3_env, uri, tmp_path)
    write_sample_data(tmp_path / "input", 1, 2, "parquet", image_size=16, first_shard=1)
    with pytest.raises(RunError, match="would hold vectors of two models: 00000 has weights_digest"):
        embed_all(settings)
    assert embed_all(settings, redo=True).shards == 2


def test_a_fetch_that_was_killed_is_not_used(uri: str, cache: Path, s3_env: Seaweed) -> None:
    big = os.urandom(50_000_000)
    s3_env.filesystem().pipe_file(f"{uri}/big.bin", big)
    process = start("name", uri)
    wait_for(lambda: list(cache.glob("*/.part-*/files/*")), "a file is being fetched", every=0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(cache.glob("*/*/manifest.json"))
    folder = Path(find_model_files(uri).name)
    assert (folder / "big.bin").read_bytes() == big
    assert [path.name for path in folder.parents[1].glob(".part-*")] == []


def test_a_damaged_copy_is_fetched_again(uri: str) -> None:
    weights = Path(find_model_files(uri).name) / NAMES[1]
    os.truncate(weights, 1000)
    find_model_files(uri)
    assert sha256_of(weights) == sha256_of(TINY_DIR / NAMES[1])


def test_a_digest_is_checked_and_then_needs_no_server(
    s3_env: Seaweed, uri: str, cache: Path, tmp_path: Path, s3_calls: list[str]
) -> None:
    script = "find . -type f -not -path '*/.*' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    for name in NAMES:
        shutil.copy(TINY_DIR / name, tmp_path)
    (tmp_path / ".hidden").touch()
    (tmp_path / "cache").mkdir(exist_ok=True)
    told = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    digest = told.stdout.split()[0]
    assert sha256_of(tmp_path) == digest
    with pytest.raises(ModelError, match=f"{uri} has the sha256 {digest}, but BORING_WEIGHTS_SHA256 is 0"):
        find_model_files(uri, sha256="0" * 64)
    assert not list(cache.glob("*/*/*"))
    files = find_model_files(uri, sha256=digest)
    change_one_weight(s3_env, uri, tmp_path)
    s3_calls.clear()
    assert find_model_files(uri, sha256=digest) == files
    assert s3_calls == []


def test_a_local_file_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert find_model_files("ViT-B-32", str(tmp_path / "a.pt"), digest).pretrained == str(tmp_path / "a.pt")
    with pytest.raises(ModelError, match=f"a.pt has the sha256 {digest}"):
        find_model_files("ViT-B-32", str(tmp_path / "a.pt"), "1" * 64)
    with pytest.raises(ModelError, match="openai is not a file"):
        find_model_files("ViT-B-32", "openai", digest)


def test_what_is_not_there_is_named(uri: str, cache: Path) -> None:
    with pytest.raises(StorageError, match=f"Cannot read {uri}/none.pt: nothing exists there"):
        find_model_files("ViT-B-32", f"{uri}/none.pt")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"")
    with pytest.raises(StorageError, match=f"Cannot write {cache}"):
        find_model_files(uri)


def test_two_machines_call_the_model_alike(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: list[str] = []
    for machine in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        model = find_model_files(uri).load()
        facts.append(json.dumps([model.name, model.pretrained, model.digest]))
    assert facts[0] == facts[1]


def test_a_name_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 accepts such names; the servers of the tests do not."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/models/open_clip_config.json", b"{}")
    names = ("/models/open_clip_config.json", f"/models/{tmp_path}/evil.json")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: {name: {"size": 2} for name in names})
    with pytest.raises(ModelError, match=f"{tmp_path}/evil.json', which would be written outside"):
        find_model_files("memory://models")
    names = ("/models/open_clip_config.json", "/models/../evil.json")  # hidden ones are left out
    folder = Path(find_model_files("memory://models").name)
    assert [path.name for path in folder.iterdir()] == ["open_clip_config.json"]
