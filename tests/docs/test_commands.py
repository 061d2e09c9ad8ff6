"""Every command of README and docs/ would be accepted, and is run for real by the test named.

The commands are run in a shell whose programs are stand-ins (rehearsal.py); what would have been
started is checked, a tool's command line with its own parser (checks.py). A new page needs nothing;
a new kind of command, tool or script needs a line in checks.py.
"""

import re
from pathlib import Path

import pytest
from benchmarks import BENCHMARKS

from tests.docs import checks
from tests.docs.documents import PAGES, ROOT, Block, anchors, blocks, links, shell_text
from tests.docs.rehearsal import Rehearsal

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, text) for block in BLOCKS if (text := shell_text(block)) is not None]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    return Rehearsal(tmp_path_factory.mktemp("rehearsal"), tuple(checks.PROGRAMS))


def wrong_with(rehearsal, text, monkeypatch):
    calls, fault = rehearsal.run(text)
    monkeypatch.chdir(rehearsal.project)
    found = [fault for call in calls for fault in checks.faults(call)]
    if "command not found" in fault:
        fault = f"{fault}; {checks.REGISTER}"
    return [*found, *([fault] if fault else [])]


@pytest.mark.parametrize(("block", "text"), COMMANDS, ids=[str(block) for block, _ in COMMANDS])
def test_commands_would_be_accepted(block, text, rehearsal, monkeypatch):
    assert wrong_with(rehearsal, text, monkeypatch) == [], f"{block}:\n{text}"


def test_the_commands_are_found():
    found = {Path(block.page).name for block, _ in COMMANDS}
    assert {"README.md", "INSTALL.md", "DATASET.md", "proposals.md"} <= found
    assert any("scripts/train_CIM.sh" in text for _, text in COMMANDS)


@pytest.mark.parametrize(("name", "test"), checks.RUN_FOR_REAL.items())
def test_what_is_said_to_run_a_tool_names_it(name, test):
    path, *command = name.split()
    assert (ROOT / path).is_file()
    assert " ".join([Path(path).stem, *command]) in (ROOT / test).read_text()


def test_every_command_is_run_for_real():
    told = {*checks.RUN_FOR_REAL, *(f"tools/benchmark.py {name}" for name in BENCHMARKS)}
    assert checks.tool_commands() == {name for name in told if name.startswith("tools/")} - {
        "tools/benchmark.py"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_on_a_page_are_there(page):
    """Files, options and configuration keys in inline code."""
    wrong = []
    for block in blocks(page):
        if block.language == "python":
            wrong += [f"{block}: {fault}" for fault in checks.code_faults(block.text)]
        elif block.language == "inline" and (fault := checks.name_fault(block.text)):
            wrong.append(f"{block}: {fault}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    wrong = []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        no_anchor = anchor and there.suffix == ".md" and anchor not in anchors(there)
        if not there.exists() or no_anchor:
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python tools/train_net.py --dataset shapes_train --nonsense", "unrecognized arguments"),
        ("python tools/train_net.py --dataset shapes", "no data set is called shapes"),
        ("python tools/train_net.py --set solver.max_itr 3", "did you mean solver.max_iter"),
        ("python tools/train_net.py --cfg configs/none.yaml", "there is no configs/none.yaml"),
        ("python tools/no_such.py", "there is no tools/no_such.py"),
        ("bash scripts/train_CIM.sh solver.max_itr 3", "did you mean solver.max_iter"),
        ("max_iter=3 bash scripts/train_CIM.sh", "does not read the variable max_iter"),
        ("cfg_file=configs/none.yaml bash scripts/train_CIM.sh", "there is no configs/none.yaml"),
        ("bash scripts/none.sh", "there is no scripts/none.sh"),
        ("frobnicate --all", "frobnicate: command not found; if it should be there, register it"),
        ("python -m nonsense", "unknown module nonsense; if it should be there, register it"),
        ("python -c 'from lib.config import Nothing'", "lib.config has no Nothing"),
        ("python - <<'X'\nfor\nX", "not Python"),
        ("pip install -r none.txt", "there is no none.txt"),
        ("pip install -e .[none]", "no extra none"),
        ("pytest tests/none", "there is no tests/none"),
        ("pytest tests/parity --none x", "pytest has no --none"),
        ("torchrun --nproc-per-node=2 tools/none.py", "there is no tools/none.py"),
        ("if true; then", "syntax error"),
    ],
)
def test_what_is_wrong_is_found(text, message, rehearsal, monkeypatch):
    assert message in "\n".join(wrong_with(rehearsal, text, monkeypatch))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tools/none.py", "there is no tools/none.py"),
        ("configs/none*.yaml", "there is no"),
        ("--nonsense N", "no tool has an option --nonsense; if it should be there, register it"),
        ("--nonsense-...", "no tool has an option"),
        ("solver.max_itr", "there is no configuration key solver.max_itr"),
        ("tests/parity/test_heads.py::test_x", None),
        ("--dataset NAME", None),
        ("--golden DIR", None),
        ("--drop-...", None),
        ("solver.max_iter", None),
        ("proposals.options.num_cells", None),
    ],
)
def test_what_is_wrong_with_a_name_is_found(text, message):
    assert (message or "None") in str(checks.name_fault(text))


def test_variables_and_quotes_are_the_shells(rehearsal, monkeypatch):
    text = "data='--json \"a b.json\"'\npython tools/evaluate.py $data 'x y' # a comment\n"
    calls, fault = rehearsal.run(text)
    assert not fault
    assert calls[0].arguments == ("tools/evaluate.py", "--json", '"a', 'b.json"', "x y")
    calls, _ = rehearsal.run("iter_time=5 bash scripts/train_CIM.sh")
    assert calls[0].exported == {"iter_time": "5"}
    assert calls[-1].arguments == ("tools/steps.py", "train_CIM")
    assert calls[-1].exported == {"iter_time": "5", "TQDM_MININTERVAL": "30"}


def test_pages_are_taken_apart(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `x`: two\n\nSay `bash a.sh\n--b` or `c.py`.\n\n    python a.py\n\n    more\n\n"
        "- list\n    continued\n\n```bash\nls\n```\n\n```\noutput\n```\n[l](o.md#p) ![i](q.png)\n"
    )
    found = {(block.language, block.text) for block in blocks(page)}
    assert found == {
        ("inline", "x"),
        ("inline", "bash a.sh --b"),
        ("inline", "c.py"),
        ("indented", "python a.py\n\nmore\n\n"),
        ("bash", "ls\n"),
        ("plain", "output\n"),
    }
    assert [text for block in blocks(page) if (text := shell_text(block))] == [
        "python a.py\n\nmore\n\n",
        "ls\n",
        "bash a.sh --b",
    ]
    assert [block.line for block in blocks(page) if block.language == "bash"] == [14]
    assert links(page) == ["o.md#p", "q.png"]
    assert anchors(page) == {"one-x-two"}
    assert shell_text(Block(page, 1, "console", "$ ls\nout\n")) == "ls\n"
