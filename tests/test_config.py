from pathlib import Path

import pytest
import yaml

from lib.config import Config, ConfigError, load_config, save_config
from lib.modeling.heads import CIMMiner

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def write(path, text):
    path.write_text(text)
    return path


def test_defaults_are_the_published_numbers():
    config = load_config()
    assert config == Config()
    solver = config.solver
    assert (solver.base_lr, solver.max_iter, solver.steps) == (2.5e-4, 45000, (30000,))
    assert (solver.momentum, solver.weight_decay, solver.bias_lr_factor) == (0.9, 5e-4, 2.0)
    assert (solver.warmup_iters, solver.warmup_factor) == (500, pytest.approx(1 / 3))
    assert config.input.train_scales == (480, 576, 688, 864, 1200)
    assert (config.loss.refine_integrity, config.mining.containment_thresh) == (3.0, 0.85)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_in_the_repository_are_valid(path):
    load_config(path)


def test_base_file_and_overrides_in_order_of_strength(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "solver: {base_lr: 0.1, max_iter: 10}\nrun: {seed: 1}\n")
    top = write(
        tmp_path / "sub" / "top.yaml", "_BASE_: ../base.yaml\nsolver: {max_iter: 20, gamma: 0.5}\n"
    )
    config = load_config(top, ["solver.gamma", "0.25", "test.scales", "[128, 160]"])
    assert config.solver.base_lr == 0.1
    assert config.solver.max_iter == 20
    assert config.solver.gamma == 0.25
    assert config.run.seed == 1
    assert config.test.scales == (128, 160)
    assert config.solver.momentum == 0.9


def test_options_of_a_backbone_are_free():
    config = load_config(None, ["model.backbone_args.widths", "[16, 24]"])
    assert config.model.backbone_args == {"widths": [16, 24]}


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [("max_iter", "20", 20), ("max_iter", "2.0", 2), ("base_lr", "1e-4", 1e-4), ("gamma", "1", 1)],
)
def test_numbers_as_people_type_them(key, word, value):
    assert getattr(load_config(None, [f"solver.{key}", word]).solver, key) == value


def test_null_and_words():
    config = load_config(None, ["solver.clip_grad_norm", "5", "model.weights", "weights/x.pth"])
    assert config.solver.clip_grad_norm == 5.0
    assert config.model.weights == "weights/x.pth"
    assert load_config(None, ["solver.clip_grad_norm", "null"]).solver.clip_grad_norm is None


def test_saved_configuration_reads_back_equal(tmp_path):
    config = load_config(None, ["mining.labels", "mist", "model.backbone_args.widths", "[16]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert "_BASE_" not in yaml.safe_load((tmp_path / "config.yaml").read_text())


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().solver.base_lr = 1.0


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("solver.base_lrr", "solver.base_lr"),
        ("SOLVER.BASE_LR", "solver"),
        ("solver.max_iters", "solver.max_iter"),
        ("base_lr", "solver.base_lr"),
        ("mining.seed_fractoin", "mining.seed_fraction"),
        ("tset.scales", "test"),
    ],
)
def test_unknown_key_names_the_nearest(key, near):
    with pytest.raises(ConfigError) as error:
        load_config(None, [key, "1"])
    assert f"did you mean {near}?" in str(error.value)


def test_every_fault_at_once(tmp_path):
    path = write(
        tmp_path / "bad.yaml",
        "solver: {max_iter: 0, momentum: 2, colour: red}\nmining: {labels: wsddn}\n",
    )
    with pytest.raises(ConfigError) as error:
        load_config(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for key in ("solver.max_iter", "solver.momentum", "solver.colour", "mining.labels"):
        assert key in text


@pytest.mark.parametrize("value", ["many", "1.5", ".nan", "[]"])
def test_wrong_types(value):
    with pytest.raises(ConfigError, match="solver.max_iter"):
        load_config(None, ["solver.max_iter", value])


def test_the_section_mining_is_the_miner(tmp_path):
    config = load_config(None, ["mining.labels", "mist", "mining.seed_fraction", "1"])
    assert config.mining == CIMMiner(labels="mist", seed_fraction=1.0)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").mining == config.mining


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed_fraction", "2", "mining.seed_fraction: expected a number from 0 to 1, got 2.0"),
        ("cls_thresh", "many", "mining.cls_thresh: Input should be a valid number"),
        ("cls_thresh", ".nan", "mining.cls_thresh: Input should be a finite number"),
        ("seed_fractoin", "1", "unknown key mining.seed_fractoin; did you mean mining.seed_frac"),
    ],
)
def test_faults_of_the_miner_are_told_with_their_path(key, value, told):
    with pytest.raises(ConfigError) as error:
        load_config(None, [f"mining.{key}", value])
    assert told in str(error.value)


def test_not_finite():
    with pytest.raises(ConfigError, match="solver.base_lr"):
        load_config(None, ["solver.base_lr", ".inf"])


def test_overrides_come_in_pairs():
    with pytest.raises(ConfigError, match="KEY VALUE pairs, got 1 words: solver.base_lr"):
        load_config(None, ["solver.base_lr"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.yaml: no such configuration file"):
        load_config(tmp_path / "no.yaml")
    child = write(tmp_path / "child.yaml", "_BASE_: parent.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"parent.yaml.*named as _BASE_ by .*child.yaml"):
        load_config(child)
    write(tmp_path / "parent.yaml", "_BASE_: child.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(child)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path / "broken.yaml", "solver: [1,\n"))
    with pytest.raises(ConfigError, match="found a list"):
        load_config(write(tmp_path / "list.yaml", "- 1\n"))


def test_section_that_is_no_section(tmp_path):
    with pytest.raises(ConfigError, match="solver"):
        load_config(write(tmp_path / "x.yaml", "solver: 3\n"))


def test_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path / "x.yaml", "")) == Config()


def test_keys_of_earlier_versions_are_read(tmp_path, caplog):
    (tmp_path / "base.yaml").write_text("prm: {backbone: resnet50}\n")
    (tmp_path / "old.yaml").write_text("_BASE_: base.yaml\nprm: {trunk: resnet18}\n")
    with caplog.at_level("WARNING"):
        config = load_config(tmp_path / "old.yaml", ["prm.trunk_lr_factor", "0.5"])
    assert (config.prm.backbone, config.prm.backbone_lr_factor) == ("resnet18", 0.5)
    assert "old.yaml: prm.trunk is called prm.backbone now" in caplog.text
    (tmp_path / "old.yaml").write_text("refine: {score_thresh: 0.5, model: {head_dim: 8}}\n")
    config = load_config(tmp_path / "old.yaml")
    assert (config.pseudo_labels.score_thresh, config.refine.model.head_dim) == (0.5, 8)
