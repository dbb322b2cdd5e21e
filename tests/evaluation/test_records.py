"""Records: nothing is measured twice, nothing is lost, and the order never depends on who measured what."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whitebox_crate.errors import InputError, OutputError, ProcessError
from whitebox_crate.evaluation.records import Records, content_of

SETTINGS = {"size": 96, "rules": ["mass", "mean"]}
ITEMS = [(f"image {index}", index) for index in range(12)]
EXPECTED = [(name, {"value": index / 7}) for name, index in ITEMS]


def score(index: int) -> dict[str, float]:
    return {"value": index / 7}


def refuse(index: int) -> Any:
    raise AssertionError(f"{index} was measured before")


def quiet(text: str) -> None:
    pass


def measured(folder: Path, items: Any = ITEMS, by: Callable[[int], Any] = score, **options: Any) -> Records:
    records = Records(folder, SETTINGS)
    records.measure(items, by, **{"report": quiet, **options})
    return records


def names_in(folder: Path) -> list[str]:
    """Every item that has a line, from all processes."""
    lines = [line for path in folder.glob("records-*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    return sorted(json.loads(line)["item"] for line in lines if line.endswith(b"\n"))


def processes(count: int, run: Callable[[], None]) -> list[Any]:
    """Forks what torchrun would start: `run` in each, with the environment of its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run()

    started = [multiprocessing.get_context("fork").Process(target=child, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    return started


def exit_codes(started: list[Any]) -> list[int]:
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


class TestOneProcess:
    def test_records_come_in_the_order_of_items(self, tmp_path: Path) -> None:
        backwards = measured(tmp_path, ITEMS[::-1])
        assert backwards.is_main
        assert list(backwards.items()) == EXPECTED[::-1]
        assert list(measured(tmp_path, by=refuse).items()) == EXPECTED

    def test_new_items_are_measured_and_old_ones_are_not(self, tmp_path: Path) -> None:
        measured(tmp_path, ITEMS[::2])
        seen: list[int] = []
        records = measured(tmp_path, by=lambda index: seen.append(index) or score(index))
        assert seen == [index for _, index in ITEMS[1::2]]
        assert list(records.items()) == EXPECTED

    def test_a_line_cut_anywhere_is_measured_again(self, tmp_path: Path) -> None:
        measured(tmp_path, ITEMS[:3])
        path = tmp_path / "records-0.jsonl"
        whole = path.read_bytes()
        for length in range(len(whole) + 1):
            path.write_bytes(whole[:length])
            assert list(measured(tmp_path, ITEMS[:3]).items()) == EXPECTED[:3]
            assert path.read_bytes() == whole

    def test_what_a_power_cut_leaves_is_measured_again(self, tmp_path: Path) -> None:
        measured(tmp_path, ITEMS[:2])
        path = tmp_path / "records-0.jsonl"
        first, second = path.read_bytes().splitlines(keepends=True)
        long = b"\0" * 200_000  # more than is looked at in one piece
        path.write_bytes(b"\0" * len(first) + b"\n" + b"[1]\n" + second + long)
        assert list(measured(tmp_path, ITEMS[:2]).items()) == EXPECTED[:2]
        assert path.read_bytes().endswith(b"[1]\n" + second + first)

    def test_names_repeat(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="'image 0' comes twice"):
            measured(tmp_path, ITEMS + ITEMS[:1])

    def test_items_come_after_measuring(self, tmp_path: Path) -> None:
        measured(tmp_path)
        with pytest.raises(InputError, match="call measure first"):
            list(Records(tmp_path, SETTINGS).items())

    def test_an_item_that_was_not_measured_is_no_gap(self, tmp_path: Path) -> None:
        records = measured(tmp_path)
        records._order = (*records._order, "another")
        with pytest.raises(InputError, match="another has not been measured"):
            list(records.items())

    @pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}])
    def test_what_json_does_not_hold_is_refused(self, value: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="image 0 is not finite or not JSON"):
            measured(tmp_path, by=lambda _: {"value": value})

    def test_progress_has_rate_and_time_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("whitebox_crate.evaluation.progress.REPORT_EVERY", 0)
        measured(tmp_path, ITEMS[:2])
        lines: list[str] = []
        measured(tmp_path, report=lines.append)
        assert lines[0] == "2 measured before"
        assert lines[5].startswith("5 of 10 (50%), ")
        assert "a second, 0:00:00 left" in lines[5]
        assert lines[-1].startswith("10 measured in")

    def test_progress_goes_to_stderr(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        measured(tmp_path, report=None)
        shown = capsys.readouterr()
        assert not shown.out
        assert "12 measured in" in shown.err


class TestFolder:
    def test_other_settings_are_refused_and_named(self, tmp_path: Path) -> None:
        measured(tmp_path)
        other = {"size": 144, "rules": ("mass", "mean"), "keep": 0.6}
        with pytest.raises(InputError, match=r"size is 96 there, 144 here; keep is missing there, 0.6 here"):
            Records(tmp_path, other)
        assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS

    def test_settings_are_compared_as_json(self, tmp_path: Path) -> None:
        Records(tmp_path, {"rules": ("mass", "mean"), "size": 96})
        Records(tmp_path, SETTINGS)

    def test_records_without_settings_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "records-3.jsonl").touch()
        with pytest.raises(InputError, match=r"no settings\.json"):
            Records(tmp_path, SETTINGS)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_damaged_settings_are_refused(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(InputError, match="choose another folder"):
            Records(tmp_path, SETTINGS)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot make the folder"):
            Records(tmp_path / "file" / "folder", SETTINGS)

    def test_two_runs_at_once_are_refused(self, tmp_path: Path) -> None:
        def intrude(index: int) -> Any:
            with pytest.raises(OutputError, match="another run is writing"):
                measured(tmp_path)
            return score(index)

        assert list(measured(tmp_path, by=intrude).items()) == EXPECTED

    def test_a_file_system_without_locks_will_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_locks)
        assert list(measured(tmp_path).items()) == EXPECTED

    def test_a_disk_that_fills_up_loses_nothing(self, tmp_path: Path) -> None:
        """The system takes a part of a line and refuses the rest, as it does when a disk is full."""
        line = len(json.dumps({"item": "image 0", "record": score(0)})) + 1
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        Records(tmp_path, SETTINGS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (line + 10, hard))
        try:
            with pytest.raises(OutputError, match=r"finished measurements are kept\. Make room"):
                measured(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "records-0.jsonl").stat().st_size == line + 10
        seen: list[int] = []
        records = measured(tmp_path, by=lambda index: seen.append(index) or score(index))
        assert seen == list(range(1, len(ITEMS)))
        assert list(records.items()) == EXPECTED


class TestContent:
    @staticmethod
    def content(index: int) -> str:
        return f"of {index}"

    def test_the_same_content_goes_on_and_other_is_refused(self, tmp_path: Path) -> None:
        measured(tmp_path, ITEMS[:5], content=self.content)
        assert list(measured(tmp_path, content=self.content).items()) == EXPECTED
        changed = [*ITEMS[:4], ("image 4", 40), *ITEMS[5:]]
        with pytest.raises(InputError, match="image 4 has changed since it was measured"):
            measured(tmp_path, changed, content=self.content)
        assert list(measured(tmp_path, by=refuse, content=self.content).items()) == EXPECTED

    def test_records_that_do_not_say_of_what_are_refused(self, tmp_path: Path) -> None:
        measured(tmp_path)
        with pytest.raises(InputError, match="image 0 has changed since"):
            measured(tmp_path, content=self.content)

    def test_a_broken_item_may_be_repaired(self, tmp_path: Path) -> None:
        def damaged(index: int) -> Any:
            if index == 3:
                raise InputError("cut short")
            return score(index)

        measured(tmp_path, by=damaged, content=self.content, skip_broken=True)
        records = measured(tmp_path, content=lambda index: "new" if index == 3 else self.content(index))
        assert list(records.items()) == EXPECTED and records.broken == []

    def test_processes_share_the_look_at_what_was_measured(self, tmp_path: Path) -> None:
        measured(tmp_path, content=self.content)

        def run() -> None:
            seen: list[int] = []
            records = measured(
                tmp_path,
                by=refuse,
                content=lambda index: seen.append(index) or self.content(index),  # type: ignore[func-returns-value]
            )
            assert seen == list(range(12))[int(os.environ["RANK"]) :: 2]
            assert list(records.items()) == EXPECTED

        assert exit_codes(processes(2, run)) == [0, 0]

    def test_files_are_told_apart_by_every_byte_and_by_where_one_ends(self, tmp_path: Path) -> None:
        for name, content in {"a": b"xy", "b": b"z", "c": b"x", "d": b"yz", "long": b"0" * (3 << 20)}.items():
            (tmp_path / name).write_bytes(content)
        a, b, c, d, long = (tmp_path / name for name in ("a", "b", "c", "d", "long"))
        before = content_of(long)
        assert content_of(a, b) != content_of(c, d)
        assert len({content_of(a), content_of(b), content_of(a, b), content_of(b, a), before}) == 5
        long.write_bytes(b"0" * ((3 << 20) - 1) + b"1")
        assert content_of(long) != before


class TestBroken:
    def damaged(self, index: int) -> Any:
        if index in (3, 7):
            raise InputError(f"file {index} is cut short")
        return score(index)

    def test_a_broken_item_stops_the_run_and_what_was_measured_stays(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"image 3: file 3 is cut short. Finished measurements are kept"):
            measured(tmp_path, by=self.damaged)
        assert names_in(tmp_path) == ["image 0", "image 1", "image 2"]
        with pytest.raises(InputError, match=r"; call the photographer$"):
            measured(tmp_path, by=self.damaged, advice="call the photographer")

    def test_skipped_items_are_reported_and_named(self, tmp_path: Path) -> None:
        lines: list[str] = []
        records = measured(tmp_path, by=self.damaged, skip_broken=True, report=lines.append)
        assert records.broken == [("image 3", "file 3 is cut short"), ("image 7", "file 7 is cut short")]
        assert [name for name, _ in records.items()] == [name for name, index in ITEMS if index not in (3, 7)]
        assert lines[0] == "skipped, broken: image 3: file 3 is cut short"
        assert lines[-1].startswith("10 measured in")  # of 12
        assert [line.startswith("skipped") for line in lines].count(True) == 2

    def test_a_later_run_tries_them_again(self, tmp_path: Path) -> None:
        measured(tmp_path, by=self.damaged, skip_broken=True)
        with pytest.raises(InputError, match="file 3"):
            measured(tmp_path, by=self.damaged)
        records = measured(tmp_path)
        assert records.broken == []
        assert list(records.items()) == EXPECTED

    def test_other_errors_are_no_fault_of_the_item(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):
            measured(tmp_path, by=lambda index: 1 / index, skip_broken=True)


@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    shuffle=st.randoms(use_true_random=False),
    cuts=st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
def test_any_distribution_over_files_merges_to_the_same(owners: list[int], shuffle: Any, cuts: list[int]) -> None:
    """Whatever processes an earlier run had, and in whatever order they wrote."""
    items = ITEMS[: len(owners)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Records(folder, SETTINGS)
        lines = [
            (owner, json.dumps({"item": item, "record": score(i)}))
            for owner, (item, i) in zip(owners, items, strict=True)
        ]
        lines += [(shuffle.randrange(4), json.dumps({"item": item, "broken": "then"})) for item, _ in items[::3]]
        shuffle.shuffle(lines)
        for owner, cut in enumerate(cuts):
            text = "".join(f"{line}\n" for of, line in lines if of == owner)
            (folder / f"records-{owner}.jsonl").write_text(text + json.dumps({"item": "image 0", "record": 1})[:cut])
        records = measured(folder, items, by=refuse)
        assert list(records.items()) == EXPECTED[: len(items)]
        assert records.broken == []


class TestSeveralProcesses:
    @pytest.mark.parametrize("count", [2, 5])
    def test_shares_are_disjoint_and_complete(self, count: int, tmp_path: Path) -> None:
        items = ITEMS[:4]  # fewer than processes, too

        def run() -> None:
            for folder in (tmp_path / "a", tmp_path / "b"):  # one measurement after another
                records = measured(folder, items)
                assert list(records.items()) == EXPECTED[:4]
                assert records.is_main == (os.environ["RANK"] == "0")

        assert exit_codes(processes(count, run)) == [0] * count
        for folder in (tmp_path / "a", tmp_path / "b"):
            assert names_in(folder) == [name for name, _ in items]
            assert (folder / f"records-{count - 1}.jsonl").stat().st_size > 0 or count > 4

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
    def test_many_measurements_open_no_more_files_than_one(self, tmp_path: Path) -> None:
        def run() -> None:
            opened = []
            for number in range(8):
                measured(tmp_path / str(number))
                opened.append(len(os.listdir("/proc/self/fd")))
            assert opened == opened[:1] * 8

        assert exit_codes(processes(2, run)) == [0, 0]

    def test_killed_at_any_moment_and_resumed_by_any_number(self, tmp_path: Path) -> None:
        def slow(index: int) -> Any:
            time.sleep(0.02)
            return score(index)

        for kills, count in enumerate((3, 1, 2), start=1):
            started = processes(count, lambda: measured(tmp_path, by=slow) and None)
            until = time.monotonic() + 30
            while len(names_in(tmp_path)) < 3 * kills and time.monotonic() < until:
                time.sleep(0.002)
            for process in started:
                os.kill(process.pid, signal.SIGKILL)
            assert set(exit_codes(started)) <= {-signal.SIGKILL, 0}
        before = names_in(tmp_path)
        assert len(before) == len(set(before))
        assert len(before) >= 9
        assert list(measured(tmp_path).items()) == EXPECTED
        assert names_in(tmp_path) == sorted(name for name, _ in ITEMS)

    def test_a_process_that_fails_does_not_leave_the_others_waiting(self, tmp_path: Path) -> None:
        def run() -> None:
            def damaged(index: int) -> Any:
                if index == 5:  # of the share of rank 1
                    raise InputError("cut short")
                return score(index)

            error = InputError if os.environ["RANK"] == "1" else ProcessError
            with pytest.raises(error, match="Finished measurements are kept"):
                measured(tmp_path, by=damaged)

        assert exit_codes(processes(2, run)) == [0, 0]
        assert list(measured(tmp_path).items()) == EXPECTED

    def test_each_process_reports_what_it_skips(self, tmp_path: Path) -> None:
        def run() -> None:
            lines: list[str] = []

            def damaged(index: int) -> Any:
                if index in (5, 7, 8):
                    raise InputError("cut short")
                return score(index)

            records = measured(tmp_path / "records", by=damaged, skip_broken=True, report=lines.append)
            assert records.broken == [(f"image {index}", "cut short") for index in (5, 7, 8)]
            (tmp_path / os.environ["RANK"]).write_text("\n".join(lines))

        assert exit_codes(processes(2, run)) == [0, 0]
        main, other = ((tmp_path / rank).read_text() for rank in "01")
        assert "image 8" in main
        assert "measured in" in main
        assert other == "skipped, broken: image 5: cut short\nskipped, broken: image 7: cut short"

    def test_processes_that_do_not_find_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(ProcessError, match="start them by torchrun"):
            measured(tmp_path)
        monkeypatch.setenv("RANK", "first")
        with pytest.raises(InputError, match="RANK must be a whole number, not 'first'"):
            measured(tmp_path)

    @pytest.mark.parametrize(("rank", "count"), [("1", None), ("2", "2"), ("-1", "2"), ("0", "0")])
    def test_a_rank_that_would_leave_items_out_is_refused(
        self, rank: str, count: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if count is not None:
            monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(InputError, match="RANK must be below WORLD_SIZE"):
            measured(tmp_path)


def test_what_nests_without_end_is_no_record_and_no_settings(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    measured(tmp_path)
    with (tmp_path / "records-0.jsonl").open("ab") as file:
        file.write(deep + b"\n")
    assert len(list(measured(tmp_path).items())) == len(ITEMS)
    (tmp_path / "settings.json").write_bytes(deep)
    with pytest.raises(InputError, match=r"settings.json cannot be read"):
        measured(tmp_path)
