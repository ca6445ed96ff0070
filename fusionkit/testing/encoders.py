"""What must hold of every encoder: its input spec, what it loads, precision and memory format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.errors import DataError, one_line
from fusionkit.interfaces import Cells, Cut
from fusionkit.model import check_given_tokens, state_digest, token_sizes
from fusionkit.specs import EncoderSpec, may_say
from fusionkit.testing.case import NEIGHBOURS, BreachError, Case, DoesNotApplyError, check, is_same, require
from fusionkit.tokens import has_same_tokens, pack_tokens
from fusionkit.training.checks import is_close
from fusionkit.training.device import Device
from fusionkit.training.pretrain import pretraining_features

METHODS = ("identity", "views", "is_random", "content_key", "load", "collate")
BF16 = Device("cpu", "bf16", 1, "the kit")
SEEDS = (1, 2)


@check("encoder")
def check_input_spec(case: Case) -> None:
    """`input_spec` has all its members, reads columns that `build` got, and takes at least one draw."""
    spec = case.build().input_spec
    absent = [name for name in ("columns", "draws", *METHODS) if not hasattr(spec, name)]
    require(case, not absent, f"its `input_spec` lacks {', '.join(absent)}.")
    known = case.columns
    is_known = isinstance(spec.columns, tuple) and bool(spec.columns) and set(spec.columns) <= set(known)
    require(case, is_known, f"its `columns` are not a tuple of those that `build` got ({spec.columns}).")
    is_count = isinstance(spec.draws, int) and spec.draws >= 1
    require(case, is_count, f"its `draws` are no number from 1 on ({spec.draws!r}).")


@check("encoder")
def check_views(case: Case) -> None:
    """`views` are names, at least one, each once; those of evaluation are not random."""
    for training in (False, True):
        views = case.input_spec.views(training=training)
        is_right = isinstance(views, tuple) and bool(views) and all(isinstance(view, str) for view in views)
        require(case, is_right, f"its `views` are not a tuple of names ({views!r}).")
        require(case, len(set(views)) == len(views), f"its `views` name one twice ({', '.join(views)}).")
    require(case, case.input_spec.is_random(training=False) is False, "its views of evaluation are random.")


@check("encoder")
def check_identity(case: Case) -> None:
    """`identity()` is a mapping of JSON values, and the same for every copy with these options."""
    found = [case.build(seed).input_spec.identity() for seed in SEEDS]
    try:
        texts = [json.dumps(identity, sort_keys=True, allow_nan=False) for identity in found]
    except (TypeError, ValueError) as error:
        raise BreachError(f"{case.id}: its `identity()` is no JSON ({one_line(error)}).") from None
    require(
        case, isinstance(found[0], Mapping) and bool(found[0]), "its `identity()` is no mapping, or empty."
    )
    require(case, texts[0] == texts[1], "its `identity()` differs from copy to copy.")


@check("encoder")
def check_content_key(case: Case) -> None:
    """`content_key` is 32 bytes, which equal contents share and others do not; None for a row without any."""
    spec, cells = case.input_spec, case.cells
    keys = [spec.content_key(row) for row in cells]
    is_key = all(isinstance(key, bytes) and len(key) == 32 for key in keys)
    require(case, is_key, f"its `content_key` is not 32 bytes ({keys[0]!r:.60}).")
    n_different = len({tuple(map(str, row.values())) for row in cells})
    require(case, len(set(keys)) == n_different, "its `content_key` is one for rows that differ.")
    again = spec.content_key(_elsewhere(cells[0], case.folder))
    require(case, again == keys[0], "its `content_key` differs for a copy of the same contents.")
    nothing = spec.content_key(dict.fromkeys(cells[0]))
    require(case, nothing is None, "its `content_key` is not None for a row without any cell.")


def _elsewhere(cells: Cells, folder: Path) -> Cells:
    """Returns a row's cells with their files under other names."""
    (folder / "elsewhere").mkdir()
    return {
        name: Path(shutil.copyfile(cell, folder / "elsewhere" / f"copy_of_{cell.name}"))
        if isinstance(cell, Path) and cell.is_file()
        else cell
        for name, cell in cells.items()
    }


@check("encoder")
def check_load(case: Case) -> None:
    """`load` gives one item per cut, in order; it depends on cells, view and seed, not on what else is asked.

    A view that is not random gives the same item whatever was drawn before.
    """
    spec, cells = case.input_spec, case.cells[0]
    for training in (False, True):
        seeds: Sequence[int | None] = SEEDS if spec.is_random(training=training) else (None,)
        cuts = [Cut(view, seed) for view in spec.views(training=training) for seed in seeds]
        items = spec.load(cells, cuts)
        is_one_each = isinstance(items, list) and len(items) == len(cuts)
        require(case, is_one_each, f"`load` gives {len(items)} items for {len(cuts)} cuts.")
        for index, cut in enumerate(cuts[:4]):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(index)
                alone = spec.load(cells, [cut])
            is_kept = _equal(spec.collate([items[index]]), spec.collate(alone))
            require(case, is_kept, f"`load` gives another item for the same cut ({cut}).")
    require(case, spec.load(cells, []) == [], "`load` gives items for no cuts.")


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and is_same(first, second)
    if isinstance(first, Mapping):
        return set(first) == set(second) and all(_equal(first[name], second[name]) for name in first)
    return len(first) == len(second) and all(map(_equal, first, second))


@check("encoder")
def check_broken_files(case: Case) -> None:
    """`load` raises `DataError`, and nothing else, for a file that cannot be read; an empty file is one."""
    files = {name: cell for name, cell in case.cells[0].items() if isinstance(cell, Path)}
    if not files:
        raise DoesNotApplyError("it reads no files")
    cut = Cut(case.input_spec.views(training=False)[0])
    for name, path in files.items():
        data = path.read_bytes() if path.is_file() else b"no file"
        for number, broken in enumerate((b"", data[: len(data) // 2], b"\0" * 64)):
            spoiled = case.folder / f"broken{number}{path.suffix}"
            spoiled.write_bytes(broken)
            try:
                case.input_spec.load({**case.cells[0], name: spoiled}, [cut])
            except DataError:
                continue
            except Exception as error:
                reason = one_line(error)
                raise BreachError(f"{case.id}: `load` raises {reason}, and DataError is due.") from error
            # of a longer one only its plugin knows how much there should be
            require(case, bool(broken), "`load` takes an empty file, and DataError is due.")


@check("encoder")
def check_bf16(case: Case) -> None:
    """An encoder of files gives nearly the same where matrices are multiplied in bf16."""
    if not case.is_stored:
        raise DoesNotApplyError("it reads no files, and runs in fp32")
    part, batch = case.learned(), case.batch()
    expected = case.run(part, batch)
    with BF16.autocast():
        found = case.run(part, batch)
    is_near = bool(torch.isfinite(found).all()) and is_close(expected, found, "bf16")
    require(case, is_near, "gives other values in bf16. Compute what is delicate in fp32.")


@check("encoder")
def check_channels_last(case: Case) -> None:
    """An encoder with 2-D convolutions takes channels_last, as the core hands it over."""
    part = case.learned()
    if not any(isinstance(layer, nn.Conv2d) for layer in part.modules()):
        raise DoesNotApplyError("it has no 2-D convolution")
    batch = case.batch()
    expected = case.run(part, batch)
    found = case.run(replace(BF16, precision="fp32").place(part), batch)
    require(case, is_close(expected, found), "gives other values in channels_last.")


@check("encoder")
def check_pretraining(case: Case) -> None:
    """`pretraining_features`, where there are any, are (n, `pretraining_dim`) or (n, it, height, width)."""
    part = case.learned()
    if not hasattr(part, "pretraining_features"):
        raise DoesNotApplyError("a pretrain stage classifies what `forward` gives")
    with torch.no_grad():
        found = pretraining_features(case.id, part, case.batch())
    require(case, len(found) == case.n_rows, f"`pretraining_features` gives {len(found)} rows.")


@check("encoder")
def check_tokens(case: Case) -> None:
    """`tokens`, for heads that take them, are (n, k, `token_dim`) floats and a bool mask of those there are.

    There is at least one in each row and at most `n_tokens`, all finite; a row's do not depend on its
    neighbours. The card's `gives_tokens` says whether there are any.
    """
    part = case.learned()
    if not case.gives_tokens:
        is_silent = hasattr(part, "tokens") and not may_say(case.card, "gives_tokens")
        require(case, not is_silent, "it has `tokens`, and its card never says so (gives_tokens).")
        raise DoesNotApplyError("with these options it gives no tokens")
    n_tokens, _ = token_sizes(case.id, part)

    def tokens(rows: Sequence[int]) -> Tensor:
        with torch.no_grad():
            found = check_given_tokens(case.id, part, case.tokens(part, case.batch(rows)), len(rows))
        return pack_tokens(*found, n_tokens)

    n_rows = 2 * (case.n_rows // 2)
    expected = tokens(range(n_rows))
    require(case, bool(torch.isfinite(expected).all()), "gives tokens that are not finite.")
    for row in range(n_rows // 2):
        rows = [n_rows - 1 - row, row]
        again = tokens(rows)
        is_kept = has_same_tokens(expected[rows], again, n_tokens)
        is_kept = is_kept and is_close(expected[rows], again, tolerance=NEIGHBOURS)
        require(
            case,
            is_kept,
            "gives other tokens for the same rows in another batch. Draw nothing, look at each row alone, "
            "and mask what `collate` has padded.",
        )


@check("encoder")
def check_readout(case: Case) -> None:
    """Neither state nor `pretraining_features` depend on the options that the card calls `readout`."""
    card = cast(EncoderSpec, case.card)
    if not card.readout:
        raise DoesNotApplyError("its card names no `readout`")
    rest = case.config.model_dump(exclude=set(card.readout))
    others = [
        example
        for example in card.examples
        if example != case.config and example.model_dump(exclude=set(card.readout)) == rest
    ]
    if not others:
        raise DoesNotApplyError("no two examples differ in `readout` alone")
    part, batch = case.build(), case.batch()
    for example in others:
        other = case.build(config=example)
        require(case, state_digest(part) == state_digest(other), "its state depends on `readout`.")
        with torch.no_grad():
            features = [pretraining_features(case.id, each, batch) for each in (part, other)]
        require(case, is_same(*features), "its pretraining features depend on `readout`.")
