from concurrent.futures.process import BrokenProcessPool

import pytest

from lib.command_line import errors_in_a_line


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a.json: no images"), 2, "error: a.json: no images\n"),
        (FileNotFoundError("b.png: no such file"), 2, "error: b.png: no such file\n"),
        (BrokenProcessPool("..."), 2, "error: a worker process died"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
    ],
)
def test_user_errors_end_in_one_line(error, code, text, capsys):
    @errors_in_a_line
    def main(argv=None):
        raise error

    assert main([]) == code
    said = capsys.readouterr().err
    assert said.startswith(text) and said.count("\n") == 1


def test_other_errors_and_results_pass_through():
    @errors_in_a_line
    def main(argv=None):
        if argv:
            raise ZeroDivisionError
        return 7

    assert main() == 7
    with pytest.raises(ZeroDivisionError):
        main(["x"])
