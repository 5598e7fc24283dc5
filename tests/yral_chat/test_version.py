"""The version: CHANGELOG.md alone holds it, and `make release` cuts one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings as configured

from yral_chat import ENTRY, __version__, version_of

pytestmark = pytest.mark.own_database

CHANGELOG = "# Changelog\n\n## 0.2.0 – unreleased\n\n- New.\n\n## 0.1.0 – 2026-01-31\n\n- Old.\n"


def test_the_version_is_that_of_the_newest_released_entry() -> None:
    assert version_of(CHANGELOG) == "0.1.0"
    assert version_of(CHANGELOG.replace("unreleased", "2026-03-01")) == "0.2.0"
    assert version_of("## 0.1.0 – unreleased\n") == "0.1.0-dev"
    with pytest.raises(SystemExit, match="CHANGELOG.md has no entry"):
        version_of("# Changelog\n")
    assert version_of((configured.BASE_DIR / "CHANGELOG.md").read_text()) == __version__


def test_nothing_else_names_a_version() -> None:
    assert '\nversion = "0"  # CHANGELOG.md' in (configured.BASE_DIR / "pyproject.toml").read_text()
    assert f'"version": "{__version__}"' in (configured.BASE_DIR / "docs/api/openapi.json").read_text()


def test_the_headings_of_the_changelog_can_all_be_read() -> None:
    headings = re.findall(r"^## .*$", (configured.BASE_DIR / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings
    assert all(ENTRY.fullmatch(heading) for heading in headings)
    assert all("unreleased" not in heading for heading in headings[1:])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With what a release changes; its `make schema` writes the version."""
    for name in ("CHANGELOG.md", "deploy/release.sh", "yral_chat/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(configured.BASE_DIR / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    show = f"{sys.executable} -c 'import yral_chat; print(yral_chat.__version__)'"
    (tmp_path / "Makefile").write_text(f"schema:\n\t@mkdir -p docs/api\n\t@{show} > docs/api/openapi.json\n")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Begin")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=Tess", "-c", "user.email=tess@chat.example", "-c", "commit.gpgsign=false")
    run = subprocess.run(["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def release(folder: Path) -> tuple[int, str]:
    env = {"PATH": "/usr/bin:/bin"} | {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Tess"), ("EMAIL", "tess@chat.example"))
    }
    run = subprocess.run(["deploy/release.sh"], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def test_a_release_dates_the_entry_writes_the_schema_commits_and_tags(repository: Path) -> None:
    code, said = release(repository)
    assert code == 0, said
    assert version_of((repository / "CHANGELOG.md").read_text()) == "0.2.0"
    for name in ("openapi.json", "released.json"):
        assert (repository / "docs/api" / name).read_text() == "0.2.0\n"
    assert git(repository, "log", "-1", "--format=%s %D") == "Release 0.2.0 HEAD -> main, tag: v0.2.0"
    assert git(repository, "status", "--porcelain") == ""
    assert said.splitlines()[-1] == "Released 0.2.0. Publish it: git push --follow-tags"


def test_a_release_without_an_entry_or_with_other_changes_is_refused(repository: Path) -> None:
    (repository / "other").touch()
    assert release(repository) == (1, "There are changes that aren't committed.\n")
    (repository / "other").unlink()
    changelog = repository / "CHANGELOG.md"
    for text, why in (
        (CHANGELOG.replace("unreleased", "2026-03-01"), 'no top entry such as "## 1.2.3 – unreleased"'),
        (CHANGELOG.replace("- New.\n", ""), "says nothing"),
        (CHANGELOG.replace("0.2.0", "0.1.0"), "isn't above 0.1.0"),
    ):
        changelog.write_text(text)
        git(repository, "commit", "-qam", "Change")
        code, said = release(repository)
        assert code == 1
        assert why in said
        assert changelog.read_text() == text


def test_an_image_holds_the_version_and_the_commit() -> None:
    dockerfile = configured.BASE_DIR / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("There is no Dockerfile.")
    ignored = (configured.BASE_DIR / ".dockerignore").read_text().splitlines()
    assert {"!CHANGELOG.md", "!COMMIT"} <= set(ignored)
    assert "COPY CHANGELOG.md COMMI[T] ./" in dockerfile.read_text(), "COMMIT isn't there in a clone"
