"""The README's session prints what the README says."""

from pathlib import Path

from readme_session import README, play, prepare, rewritten, without_moments


def test_the_session_in_the_readme_is_real(tmp_path: Path) -> None:
    prepare(tmp_path)
    text = README.read_text()
    session = dict(play(text, tmp_path))
    assert len(session) >= 12
    assert without_moments(rewritten(text, session)) == without_moments(text)
