"""The site file: what may stand in it, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.slurm.site import Site, check_programs, load_site
from tests.slurm.test_script import scripts

MISTAKES = {
    "acount: x": "acount: is not a known key; did you mean 'account'?",
    "account: a b": 'account: is "a b", not a plain word',
    "account: ''": 'account: is "", not a plain word',
    'account: "a#b"': "not a plain word",
    'account: "a\\n#SBATCH --uid=0"': "not a plain word",
    "account: true": "account: is true, which is not text; give text",
    "options: [--time=5]": 'options[0]: is "--time=5", which `stacking submit` sets itself; leave it out',
    "options: [--array=0-1]": "which `stacking submit` sets itself",
    "container: [apptainer, $NO_SUCH_NAME/x.sif]": "container[1]: has $NO_SUCH_NAME, which is not set here",
    "gpu_option: gpu:{gpus}": "not an option with {gpus} once; write --gres=gpu:{gpus}",
    "gpu_option: --gres=gpu:4": "not an option with {gpus} once",
    "gpu_option: --gres=gpu:{n}": "not an option with {gpus} once",
    "options: [mail]": 'options[0]: is "mail", not an option; write it like --mail-type=FAIL',
    "options: --x": "options: is",
    "srun: ['x y']": "srun[0]: is",
    "ranks_per_node: 0": "ranks_per_node: is 0; give a number greater than 0",
    "hours: 24:00:00": "hours: is",
    "hours: -1": "hours: is -1",
    "transition: {core: 2}": "transition.core: is not a known key; did you mean 'cores'?",
    'prelude: ["a\\nb"]': "prelude[0]: is not one line of text",
    "environment: {A-B: x}": 'environment: has "A-B", which is not a valid variable name',
    "environment: {A: [1]}": "environment.A: is",
    "scratch: /scratch/$(date)": "scratch: is",
    "scratch: scratch": "write an absolute path of letters, digits and $VARIABLES",
    "interface: ib 0": "interface: is",
    "ipv6: maybe": "ipv6: is",
    "- account": 'is ["account"] where keys and values are expected',
    "": "is empty where keys and values are expected",
    "account: [": "is not YAML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_site(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ") and MISTAKES[text] in said and "\n" not in said


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: does not exist"):
        load_site(tmp_path / "no.yaml")


def test_settings_read_back_as_they_were_written(tmp_path: Path) -> None:
    site = load_site(Path(__file__).parent / "golden" / "site.yaml")
    (tmp_path / "site.yaml").write_text(site.to_yaml())
    assert load_site(tmp_path / "site.yaml") == site
    assert load_site(None) == Site()


def test_numbers_stand_for_the_words_that_they_are(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("account: 20231\nmemory: 0\nenvironment: {OMP_NUM_THREADS: 8}\n")
    site = load_site(file)
    assert (site.account, site.memory, site.environment) == ("20231", "0", {"OMP_NUM_THREADS": "8"})


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "site.yaml"
    file.write_text("python: ~/venv/bin/python\ncontainer: [apptainer, exec, $HOME/bert.sif]\n")
    site = load_site(file)
    assert (site.python, site.container[2]) == (f"{tmp_path}/venv/bin/python", f"{tmp_path}/bert.sif")
    with pytest.raises(UserError, match=r"site.yaml: python: is .*/venv/bin/python, which is not a program"):
        check_programs(site, str(file))


def test_an_option_may_have_blanks(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("options: ['--comment=my run']\nsrun: ['--container-image=nvcr.io#nvidia/pytorch:24.05-py3']\n")
    site = load_site(file)
    assert site.srun == ("--container-image=nvcr.io#nvidia/pytorch:24.05-py3",)
    assert "#SBATCH --comment='my run'\n" in scripts(site, "per-stage")["finish"]


def test_every_setting_is_described() -> None:
    undescribed = {name for name, field in Site.model_fields.items() if field.description is None}
    plain = {"account", "qos", "constraint", "reservation", "cores_per_rank", "transition"}
    assert undescribed == plain
