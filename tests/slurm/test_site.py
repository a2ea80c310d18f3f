"""The site file: what it may contain, what is refused and with which message."""

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
    "python: ~someone/python": "python: has ~someone, which is not expanded; write the path out",
    "options: [--arr=0-1]": "which `stacking submit` sets itself; leave it out: each job must run once",
    "options: [--no-requeue]": "leave it out: give `requeue: false` if the site never requeues jobs",
    "options: [-J x]": "leave it out: jobs are found by their names",
    "options: [--wait]": "leave it out: sbatch would wait for the job's end",
    "options: [-t 5]": "leave it out: give `hours`",
    "options: [-N2]": "leave it out: give `nodes` in the recipe's resources",
    "options: [--clusters=c2]": "leave it out: run `export SLURM_CLUSTERS=NAME` instead",
    "transition: {options: [--output=x]}": 'transition.options[0]: is "--output=x", which',
    "srun: [--export=NONE]": 'srun[0]: is "--export=NONE", which the launcher sets itself',
    "gpu_option: --gpus={gpus}": "which counts the GPUs of all nodes; write --gpus-per-node={gpus}",
    "gpu_option: gpu:{gpus}": "not an option with {gpus} once; write --gres=gpu:{gpus}, --gpus-per-task=1, or none",
    "gpu_option: --gres=gpu:4": "not an option with {gpus} once",
    "gpu_option: --gres=gpu:{n}": "not an option with {gpus} once",
    "options: [mail]": 'options[0]: is "mail", not an option; write it like --nice=100',
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
    "scratch: scratch": "write an absolute path",
    "interface: ib 0": "interface: is",
    "ipv6: maybe": "ipv6: is",
    "- account": 'is ["account"] where keys and values are expected',
    "": "is empty where keys and values are expected",
    "account: [": "is not YAML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_gives_one_line_that_names_the_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_site(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ") and MISTAKES[text] in said and "\n" not in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: does not exist"):
        load_site(tmp_path / "no.yaml")


def test_settings_read_back_as_they_were_written(tmp_path: Path) -> None:
    site = load_site(Path(__file__).parent / "golden" / "site.yaml")
    (tmp_path / "site.yaml").write_text(site.to_yaml())
    assert load_site(tmp_path / "site.yaml") == site
    assert load_site(None) == Site()


def test_numbers_are_accepted_where_text_is_expected(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "account: 20231\nqos: 5\nmemory: 0\nenvironment: {OMP_NUM_THREADS: 8}\ntransition: {account: 0123}\n"
    )
    site = load_site(file)
    assert (site.account, site.qos, site.memory, site.transition.account) == ("20231", "5", "0", "0123")
    assert site.environment == {"OMP_NUM_THREADS": "8"}


@pytest.mark.parametrize("key", ["memory", "transition.memory"])
@pytest.mark.parametrize("memory", ["16X", "16 G", "-1", "1.5G", "G", "16_000", ".nan", "16GiB"])
def test_memory_that_slurm_cannot_read_is_refused_without_slurm(tmp_path: Path, key: str, memory: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(f"memory: {memory!r}" if key == "memory" else f"transition: {{memory: {memory!r}}}")
    with pytest.raises(UserError, match=rf"site\.yaml: {key}: is .*{memory}.*write"):
        load_site(file)


@pytest.mark.parametrize("memory", ["0", "180", "16G", "16gb", "500M", "1T"])
def test_memory_in_slurms_format_is_accepted(tmp_path: Path, memory: str) -> None:
    (tmp_path / "site.yaml").write_text(f"memory: {memory}\n")
    assert load_site(tmp_path / "site.yaml").memory == memory


def test_a_tilde_becomes_the_home_variable_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    text = "python: ~/p\ncontainer: [x, ~/i.sif]\nsrun: [--container-mounts=~/d]\nscratch: ~/s\n"
    file.write_text(f"{text}environment: {{A: '~:~/b'}}\n")
    site = load_site(file)
    assert (site.python, site.container[1], site.scratch) == ("$HOME/p", "$HOME/i.sif", "$HOME/s")
    assert (site.srun[0], site.environment["A"]) == ("--container-mounts=$HOME/d", "$HOME:$HOME/b")


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site(python="$HOME/no/python"), "python: is .*/no/python, which is not a program"),
        (Site(container=("apptainer-that-is-not-here",)), r"container\[0\]: is apptainer-.*, which is not a program"),
        (Site(container=("env", "/no/x.sif")), r"container\[1\]: is /no/x.sif, which does not exist"),
        (Site(srun=("--container-image=/no/x.sqsh",)), r"srun\[0\]: is /no/x.sqsh, which does not exist"),
        (Site(container=("env", "$NO_SUCH_NAME/x.sif")), r"container\[1\]: has \$NO_SUCH_NAME, which is not set here"),
    ],
)
def test_programs_started_by_a_job_are_checked_when_it_is_submitted(site: Site, words: str) -> None:
    with pytest.raises(UserError, match=rf"^site.yaml: {words}"):
        check_programs(site, "site.yaml")


def test_a_path_with_a_variable_that_the_job_may_set_is_not_checked() -> None:
    check_programs(Site(python="$VENV/bin/python", prelude=("source activate",)), "site.yaml")
    check_programs(Site(container=("env", "$IMAGES/x.sif"), environment={"IMAGES": "/i"}), "site.yaml")
    check_programs(Site(scratch="/scratch/$SLURM_JOB_ID"), "site.yaml")


def test_an_option_may_contain_spaces(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "options: ['--comment=my run', '-A nlp#2']\nsrun: ['--container-image=nvcr.io#nvidia/pytorch:24.05-py3']\n"
    )
    site = load_site(file)
    assert site.srun == ("--container-image=nvcr.io#nvidia/pytorch:24.05-py3",)
    assert "#SBATCH --comment='my run'\n#SBATCH -A 'nlp#2'\n" in scripts(site, "per-stage")["0-L3"]


def test_every_setting_is_described() -> None:
    undescribed = {name for name, field in Site.model_fields.items() if field.description is None}
    plain = {"account", "partition", "qos", "reservation", "cores_per_rank", "transition"}
    assert undescribed == plain
