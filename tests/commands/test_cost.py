"""The cost table: its numbers by hand, what a real output says, and what a wrong price file is told."""

import json
from pathlib import Path

import pytest

from tests.command_line import CommandLine

PRICES = """
currency = "EUR"

[[machine]]
name = "one"
price_per_hour = 2.0

[[machine]]
name = "eight"
price_per_hour = 10.0
gpus = 8

[storage]
price_per_gb_month = 0.02
put_per_1000 = 0.005
get_per_1000 = 0.0004
list_per_1000 = 0.005
"""


@pytest.fixture
def run(tmp_path: Path) -> CommandLine:
    (tmp_path / "prices.toml").write_text(PRICES)
    return CommandLine(tmp_path)


def cost(run: CommandLine, images: int, *options: object) -> dict:
    command = ("cost", images, "--prices", run.folder / "prices.toml", "--json", *options)
    return json.loads(run(*command).stdout)


def test_hours_cost_sizes_and_requests_match_a_calculation_by_hand(run: CommandLine) -> None:
    said = cost(run, 36_000_000, "--images-per-second", 1000, "--dim", 512, "--machines", 2)
    one, eight = said["machines"]
    assert (one["gpu_hours"], one["wall_hours"], one["cost"]) == (10, 5, 20)
    assert one["cost_per_million_images"] == pytest.approx(20 / 36)
    assert (eight["images_per_second"], eight["gpu_hours"]) == (8000, 10)
    assert (eight["wall_hours"], eight["cost"]) == (10 / 8 / 2, 12.5)
    assert said["shards"] == 3600
    assert said["output_bytes"] == {"float16": 36e6 * 1024, "float32": 36e6 * 2048}
    assert said["storage_per_month"]["float32"] == pytest.approx(36e6 * 2048 / 1e9 * 0.02)
    assert said["requests"] == {"list": 11 + 4, "get": 7 * 3600, "put": 2 * 3600}
    assert said["request_cost"] == pytest.approx(0.015 * 0.005 + 25.2 * 0.0004 + 7.2 * 0.005)


def test_the_totals_have_rate_and_size(run: CommandLine) -> None:
    output = run.folder / "output"
    run("embed", run.sample_data("input"), output)
    said = cost(run, 16_000_000, "--output", output)
    size = sum(path.stat().st_size for path in (output / "image_embeddings").glob("*.parquet"))
    assert json.loads((output / "metadata.json").read_text())["num_samples"] == 16
    assert said["output_bytes"]["float32"] == pytest.approx(size * 1e6)
    dim = said["measured"]["dim"]
    assert said["output_bytes"]["float32"] - said["output_bytes"]["float16"] == pytest.approx(16e6 * dim * 2)
    assert 0 < said["machines"][0]["images_per_second"] < 1e6
    table = run("cost", 1000, "--prices", run.folder / "prices.toml", "--output", output).stdout
    assert "boring-tiny" in table
    assert "EUR" in table


def test_the_gpu_benchmark_says_how_fast_a_model_is(run: CommandLine) -> None:
    file = run.folder / "gpu.json"
    file.write_text(json.dumps({"rows": [{"model": "ViT-L-14", "end_to_end": {"steady": 2523.0}}]}))
    said = cost(run, 1000, "--benchmark", file, "--model", "ViT-L-14")
    assert said["machines"][0]["images_per_second"] == 2523
    assert said["output_bytes"] == {}
    options = ("cost", 1000, "--prices", run.folder / "prices.toml", "--benchmark", file)
    assert "ViT-L-14" in run(*options, "--model", "ViT-B-32", code=1).output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[machine]]\nname = 'a'", ["machine.0.price_per_hour: expected a value"]),
        (PRICES.replace("10.0", "-1"), ["machine.1.price_per_hour: expected a number of at least 0"]),
        (PRICES + "discount = 1", ["storage.discount: expected no entry"]),
        ("currency = 'EUR'", ["machine: expected a value"]),
        ("[[machine]\n", ["cannot be parsed as toml", "line 1"]),
    ],
)
def test_a_wrong_price_file_is_named_with_the_error(run: CommandLine, text: str, said: list[str]) -> None:
    file = run.folder / "prices.toml"
    file.write_text(text)
    output = run("cost", 1, "--prices", file, "--images-per-second", 1, code=1).output
    assert all(part in output for part in [str(file), *said]), output


def test_a_missing_speed_is_asked_for(run: CommandLine) -> None:
    options = ("cost", 1, "--prices", run.folder / "prices.toml")
    assert "--images-per-second" in run(*options, code=1).output
    both = (*options, "--images-per-second", 1, "--benchmark", "gpu.json")
    assert "Give one." in run(*both, code=1).output
    assert "cannot be read" in run("cost", 1, "--prices", "no-such-file", code=1).output
