"""Wheels of what is installed, and their way from one host to another."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release import wheels as w
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError

SITE = "lib/python3.11/site-packages"
INFO = f"{SITE}/tiny_thing-1.0.dist-info"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release with one package, of every sort of file."""
    venv = tmp_path / "release/venv"
    files = {
        f"{SITE}/tiny.py": "WHO = 1\n",
        f"{SITE}/__pycache__/tiny.cpython-311.pyc": "x",
        f"{SITE}/späte/ä, b.txt": "x",
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: Tiny.Thing\nVersion: 1.0\n\nName: not this\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any\n",
        f"{INFO}/INSTALLER": "uv",
        f"{INFO}/direct_url.json": "{}",
        f"{INFO}/entry_points.txt": "[console_scripts]\ntinyrun = tiny:run\n\n[other]\nshown = x:y\n",
        f"{INFO}/licenses/RECORD": "a license by this name",
        "bin/tinyrun": f"#!{venv}/bin/python\n",
        "bin/tool": f"#!{venv}/bin/python3.11\nprint()\n",
        "bin/long": f"#!/bin/sh\n'''exec' '{venv}/bin/python' \"$0\" \"$@\"\n' '''\nprint()\n",
        "bin/shell": "#!/bin/sh\necho\n",
        "include/site/python3.11/tiny/tiny.h": "x",
        "share/tiny/note.txt": "x",
    }
    for name, text in files.items():
        path = venv / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o750 if name.startswith("bin/") else 0o640)
    rows = [os.path.relpath(venv / name, venv / SITE) for name in files] + [
        "tiny_thing-1.0.dist-info/RECORD",
        "gone.py",
    ]
    (venv / INFO / "RECORD").write_text("".join(f'"{row}",sha256=x,1\n' for row in rows))
    return tmp_path / "release"


def packed(release: Path, target: Path) -> w.Wheel:
    target.mkdir(exist_ok=True)
    [wheel] = w.pack_release(release, target)
    return wheel


def test_wheel_holds_what_was_in_the_wheel_that_was_installed(release: Path, tmp_path: Path) -> None:
    wheel = packed(release, tmp_path / "wheels")
    assert (wheel.name, wheel.version) == ("Tiny.Thing", "1.0")
    assert wheel.file == f"Tiny_Thing-1.0-0{wheel.sha256[:12]}-py2.py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / "wheels" / wheel.file) as archive:
        assert sorted(archive.namelist()) == [
            "späte/ä, b.txt",
            "tiny.py",
            "tiny_thing-1.0.data/data/share/tiny/note.txt",
            "tiny_thing-1.0.data/headers/tiny.h",
            "tiny_thing-1.0.data/scripts/long",
            "tiny_thing-1.0.data/scripts/shell",
            "tiny_thing-1.0.data/scripts/tool",
            "tiny_thing-1.0.dist-info/METADATA",
            "tiny_thing-1.0.dist-info/RECORD",
            "tiny_thing-1.0.dist-info/WHEEL",
            "tiny_thing-1.0.dist-info/entry_points.txt",
            "tiny_thing-1.0.dist-info/licenses/RECORD",
        ]
        scripts = {name: archive.read(f"tiny_thing-1.0.data/scripts/{name}") for name in ("tool", "long", "shell")}
        assert scripts == {
            "tool": b"#!python\nprint()\n",
            "long": b"#!python\nprint()\n",
            "shell": b"#!/bin/sh\necho\n",
        }
        record = archive.read("tiny_thing-1.0.dist-info/RECORD").decode()
    assert '"späte/ä, b.txt",sha256=' in record
    assert record.endswith("tiny_thing-1.0.dist-info/RECORD,,\n")


def test_same_content_is_the_same_wheel_and_other_content_another(release: Path, tmp_path: Path) -> None:
    first = packed(release, tmp_path / "wheels")
    os.utime(release / "venv" / SITE / "tiny.py", (1, 1))
    assert packed(release, tmp_path / "other") == first
    (release / "venv" / SITE / "tiny.py").write_text("WHO = 2\n")
    second = packed(release, tmp_path / "wheels")
    assert second.file != first.file
    assert w.Store(tmp_path / "wheels").names() == sorted([first.file, second.file])


def test_a_package_that_reaches_out_of_its_environment_is_refused(release: Path, tmp_path: Path) -> None:
    with (release / "venv" / INFO / "RECORD").open("a") as record:
        record.write("../../../../../precious,,\n")
    with pytest.raises(ReleaseError, match="outside of its environment"):
        packed(release, tmp_path / "wheels")


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        (["py3-none-any"], "py3-none-any"),
        (["cp311-cp311-linux_x86_64"], "cp311-cp311-linux_x86_64"),
        (
            ["cp39-abi3-manylinux_2_17_x86_64", "cp39-abi3-manylinux2014_x86_64"],
            "cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64",
        ),
        (["cp311-cp311-linux_x86_64", "py3-none-any"], "cp311-cp311-linux_x86_64"),  # no product: the first will do
    ],
)
def test_tags_of_the_name_are_those_of_the_wheel(tags: list[str], name: str) -> None:
    assert w.tag_of("Wheel-Version: 1.0\n" + "".join(f"Tag: {tag}\n" for tag in tags)) == name


def test_wheel_without_tags_is_refused() -> None:
    with pytest.raises(ReleaseError):
        w.tag_of("Wheel-Version: 1.0\n")


def test_platform() -> None:
    assert w.platform_of("cpython-311", "x86_64") == "cp311-x86_64"


# --- wheelhouse and store


WHEEL = w.Wheel("tiny", "1.0", "tiny-1.0-0abc-py3-none-any.whl", "0" * 64)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../tiny.whl"},
        {"file": ".tiny.whl"},
        {"file": "-tiny.whl"},
        {"file": "tiny.txt"},
        {"sha256": "0"},
        {"name": "tiny --index-url http://x"},
        {"version": "1.0\n-r /etc/shadow"},
    ],
)
def test_lists_hold_wheels_and_nothing_else(change: dict[str, str]) -> None:
    assert w.read_list(w.write_list("shop", "1234", [WHEEL])) == [WHEEL]
    with pytest.raises(ValueError, match="is no list of wheels"):
        w.read_list(w.write_list("shop", "1234", [replace(WHEEL, **change)]))


def test_requirements_are_exact() -> None:
    assert w.requirements([WHEEL]) == f"tiny==1.0 --hash=sha256:{'0' * 64}\n"


def test_wheelhouse_knows_what_is_complete(release: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    wheel = packed(release, tmp_path / "wheels")
    place = house / "cp311-x86_64"
    place.mkdir(parents=True)
    with pytest.raises(ReleaseError, match="has no list"):
        w.find_wheels(house, "cp311-x86_64/1234")
    (place / "1234.json").write_text(w.write_list("shop", "1234", [wheel]))
    (place / "5678.json").write_text("{}")
    assert w.known_lists(house) == []
    with pytest.raises(ReleaseError, match=f"lacks {wheel.file}"):
        w.find_wheels(house, "cp311-x86_64/1234")
    with pytest.raises(ReleaseError, match="is no list of wheels"):
        w.find_wheels(house, "cp311-x86_64/5678")
    (tmp_path / "wheels" / wheel.file).rename(place / wheel.file)
    assert w.known_lists(house) == ["cp311-x86_64/1234"]
    assert w.find_wheels(house, "cp311-x86_64/1234") == [wheel]


def test_wheels_arrive_as_they_were_sent(release: Path, tmp_path: Path) -> None:
    wheel = packed(release, tmp_path / "wheels")
    w.write_archive({wheel.file: tmp_path / "wheels" / wheel.file}, tmp_path / "archive")
    store = tmp_path / "store"
    store.mkdir()
    assert w.read_archive(tmp_path / "archive", [wheel], store, gid=os.getgid()) == [wheel.file]
    assert (store / wheel.file).read_bytes() == (tmp_path / "wheels" / wheel.file).read_bytes()
    assert (store / wheel.file).stat().st_mode & 0o777 == 0o640
    w.Store(store).link([wheel], tmp_path / "links")
    assert (tmp_path / "links" / wheel.file).read_bytes() == (store / wheel.file).read_bytes()


def test_what_was_not_asked_for_or_is_something_else_is_not_taken(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for name in ("../evil.whl", WHEEL.file):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    store = tmp_path / "store"
    store.mkdir()
    assert w.read_archive(tmp_path / "archive", [], store) == []
    with pytest.raises(ReleaseError, match="is not what its list says"):
        w.read_archive(tmp_path / "archive", [WHEEL], store)
    assert list(store.iterdir()) == []
    assert json.loads(w.write_list("a", "b", []))["wheels"] == []
