"""Settings: where they come from, which source wins, and what a wrong one is answered with."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from boring_assets.errors import SettingsError
from boring_assets.settings import PREFIX, Settings, load_settings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `BORING_CONFIG` names."""
    file = tmp_path / "settings.toml"
    file.write_text("")
    monkeypatch.setenv("BORING_CONFIG", str(file))
    return file


def test_without_settings_the_defaults_apply() -> None:
    settings = load_settings()
    assert (settings.input_dir, settings.model, settings.batch_size) == ("", "ViT-B-32", "auto")
    assert settings.allowed_url_prefixes == ()


def test_arguments_win_over_the_environment_and_that_over_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(
        'model = "from-file"\nbatch_size = 16\nquiet_seconds = 1.5\nallowed_url_prefixes = ["https://a.example/"]\n'
    )
    monkeypatch.setenv("BORING_MODEL", "from-environment")
    monkeypatch.setenv("BORING_BATCH_SIZE", "32")
    settings = Settings(batch_size=64)
    assert (settings.batch_size, settings.model, settings.quiet_seconds) == (64, "from-environment", 1.5)
    assert settings.allowed_url_prefixes == ("https://a.example/",)
    monkeypatch.setenv("BORING_ALLOWED_URL_PREFIXES", " https://b.example/x, s3://bucket/ ,")
    assert load_settings().allowed_url_prefixes == ("https://b.example/x", "s3://bucket/")
    assert load_settings().batch_size == 32


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BATCH_SIZE", "0", "default: 'auto'"),
        ("BATCH_SIZE", "many", "'auto'"),
        ("PRECISION", "int4", "'fp32'"),
        ("OUTPUT_DTYPE", "float64", "'float16'"),
        ("NUM_WORKERS", "0", "expected a number of at least 1"),
        ("MAX_SAMPLES", "-1", "expected a number of at least 0"),
        ("QUIET_SECONDS", "soon", "expected a number."),
        ("PARTITIONS_PER_RUN", "1.5", "expected a whole number"),
        ("FETCH_TIMEOUT_SECONDS", "0", "greater than 0"),
    ],
)
def test_a_wrong_value_names_its_variable_and_what_was_expected(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"BORING_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert f"BORING_{name} is {value!r}" in message
    assert says in message
    field = Settings.model_fields[name.lower()]
    assert message.count(field.description or "-") == 1, "the help stands there once"


def test_every_wrong_value_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORING_BATCH_SIZE", "x")
    monkeypatch.setenv("BORING_NUM_WORKERS", "y")
    with pytest.raises(SettingsError, match=r"(?s)BORING_BATCH_SIZE.*BORING_NUM_WORKERS"):
        load_settings()


def test_an_unreadable_settings_file_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("modle = 'ViT-B-32'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"{config}: There is no setting `modle`; the nearest is `model`."

    config.write_text("batch_size = [1]\n")
    with pytest.raises(SettingsError, match="BORING_BATCH_SIZE"):
        load_settings()

    config.write_text("model ViT-B-32\n")
    with pytest.raises(SettingsError, match=f"{config} is not TOML"):
        load_settings()

    config.write_bytes(b"model = '\xff'\n")
    with pytest.raises(SettingsError, match=f"{config} is not TOML"):
        load_settings()

    for missing in (config.with_name("nothing.toml"), config.parent):
        monkeypatch.setenv("BORING_CONFIG", str(missing))
        with pytest.raises(SettingsError, match=f"BORING_CONFIG names {missing}"):
            load_settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BORING_BATCHSIZE", "BORING_BATCH_SIZE"),
        ("BORING_MODEL_NAME", "BORING_MODEL"),
        ("boring_percision", "BORING_PRECISION"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "planted-secret")
    with pytest.raises(SettingsError, match=f"{name} is set .* the nearest is {meant}\\.") as caught:
        load_settings()
    assert "planted-secret" not in str(caught.value)


def test_variables_of_a_kubernetes_service_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_80_TCP",
        "PORT_80_TCP_ADDR",
    ):
        monkeypatch.setenv(f"BORING_ASSETS_{name}", "tcp://10.0.0.1:80")
    assert load_settings().model == "ViT-B-32"


def test_the_value_of_an_unknown_line_is_not_printed(config: Path) -> None:
    config.write_text("aws_secret_access_key = 'planted-secret'\n")
    with pytest.raises(SettingsError, match="There is no setting `aws_secret_access_key`") as caught:
        load_settings()
    assert "planted-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["https://me:planted-secret@host/x", "https://host/x?X-Amz-Signature=planted-secret"]
)
@pytest.mark.parametrize("name", ["ALLOWED_URL_PREFIXES", "INPUT_DIR", "MODEL", "PRETRAINED"])
def test_a_secret_in_any_uri_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"BORING_{name}", value)
    with pytest.raises(SettingsError, match=f"BORING_{name} holds credentials") as caught:
        load_settings()
    assert "planted-secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["INPUT_DIR", "OUTPUT_DIR"])
def test_a_password_in_a_uri_is_refused_before_dagster_stores_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"BORING_{name}", "s3://AKIAEXAMPLE:topsecret@bucket/x")
    with pytest.raises(SettingsError, match=f"BORING_{name} holds credentials") as caught:
        load_settings()
    assert "topsecret" not in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)


def test_what_changes_the_numbers_changes_the_version() -> None:
    base = Settings(model="/models/v1/clip").embedding_version()
    for other in (
        {"model": "/models/v2/clip"},
        {"model": "hf-hub:other/clip"},
        {"model": "/models/v1/clip", "pretrained": "/checkpoints/a/x.pt"},
        {"model": "/models/v1/clip", "pretrained": "/checkpoints/b/x.pt"},
        {"model": "/models/v1/clip", "precision": "bf16"},
        {"model": "/models/v1/clip", "output_dtype": "float16"},
    ):
        assert Settings(**other).embedding_version() != base
    a, b = (
        Settings(model="ViT-B-32", pretrained=f"/checkpoints/{name}/x.pt").embedding_version()
        for name in ("a", "b")
    )
    assert a != b
    same = Settings(model="/models/v1/clip", batch_size=7, input_dir="/in", quiet_seconds=3)
    assert same.embedding_version() == base


def markdown_table() -> str:
    """All settings as the table of `docs/settings.md`."""
    lines = ["| Variable | Default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", (), {}, SecretStr("")) else f"`{field.default}`"
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_the_document_lists_the_settings_as_they_are() -> None:
    document = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    assert markdown_table() in document, (
        "run: python -c 'from tests.test_settings import *; print(markdown_table())'"
    )


def test_the_file_of_one_of_several_datasets_wins_over_what_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BORING_INPUT_DIR", "/shared")
    monkeypatch.setenv("BORING_BATCH_SIZE", "7")
    file = tmp_path / "part_1.toml"
    file.write_text('dataset = "part_1"\ninput_dir = "/part-1"\n')
    settings = load_settings(file)
    assert (settings.dataset, settings.input_dir, settings.batch_size) == ("part_1", "/part-1", 7)
    for text in ('dataset = "part-1"', "dataset = 'a'\nmodle = 'b'", "dataset ="):
        file.write_text(text)
        with pytest.raises(SettingsError, match=r"BORING_DATASET|part_1\.toml"):
            load_settings(file)
    with pytest.raises(SettingsError, match=r"no\.toml"):
        load_settings(tmp_path / "no.toml")
