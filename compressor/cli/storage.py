"""Commands on the store and on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compressor.cli.group import FOLDER, WIDTH, cli, command, common, show


@cli.group(context_settings=WIDTH)
def cache() -> None:
    """The content-addressed store."""


def _store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--store", type=FOLDER, help="Default: .compressor")(common(function))


def _must_be(store: Path | None) -> None:
    """A store that was named and is not there is a slip; the default may still be to come."""
    from compressor.core.errors import ConfigError

    if store is not None and not store.is_dir():
        raise ConfigError(f"--store {store}: no such folder")


@cache.command("ls", context_settings=WIDTH)
@_store_option
def cache_ls(store: Path | None) -> None:
    """List what is stored."""
    from compressor.pipeline import present

    _must_be(store)
    rows, text = present.store_listing(store)
    show(rows, text)


@cache.command("verify", context_settings=WIDTH)
@_store_option
def cache_verify(store: Path | None) -> None:
    """Hash every stored object."""
    from compressor import api
    from compressor.core.errors import IntegrityError
    from compressor.core.store import Store

    _must_be(store)
    damaged = Store(api.store_path(store)).damaged()
    if damaged:
        many = f"{len(damaged)} damaged object{'s' * (len(damaged) > 1)}"
        raise IntegrityError(
            f"{many}: {', '.join(d[:12] for d in damaged[:5])}; what is damaged counts as missing "
            "and is computed again"
        )
    show({"damaged": []}, "every stored object matches its digest")


@cache.command("gc", context_settings=WIDTH)
@click.option("--all", "everything", is_flag=True, help="Empty the store.")
@_store_option
def cache_gc(store: Path | None, everything: bool) -> None:
    """Drop results that no pipeline's last run refers to."""
    from compressor.pipeline import present

    _must_be(store)
    removed, freed = present.collect(store, everything)
    show({"removed": removed, "bytes": freed}, f"removed {removed} objects, {freed:,} bytes")


@command()
def doctor() -> None:
    """Versions, providers, CPU features, threads and quota."""
    from compressor.pipeline import present

    rows, text, code = present.doctor()
    show(rows, text)
    sys.exit(code)
