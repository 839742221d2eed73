"""A short version of `python -m torture.hostile`: damaged input of every kind, row by row accounted for."""

from pathlib import Path

from boring_assets.engine.model.encoder import Encoder
from tests.engine.accounting import account_for_files, account_for_images


def test_damaged_images_are_embedded_or_have_a_reason(tmp_path: Path, encoder: Encoder) -> None:
    account = account_for_images(300, seed=1, folder=tmp_path, encoder=encoder, each=50)
    assert account.wrong == []
    assert account.embedded + sum(account.reasons.values()) == 300
    assert account.embedded > 20
    assert set(account.reasons) <= {"decode_error", "too_large"}


def test_damaged_parquet_files_and_tars_fail_alone(tmp_path: Path, encoder: Encoder) -> None:
    account = account_for_files(60, seed=1, folder=tmp_path, encoder=encoder)
    assert account.wrong == []
    assert account.reasons["shard_error"] > 10
    assert account.embedded > 40
