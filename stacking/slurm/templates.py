"""Renders the ``*.sbatch`` templates; an undefined placeholder is an error, not an empty string."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import find_referenced_templates, find_undeclared_variables

from stacking.config.reading import nearest, read_text
from stacking.config.shipped import SLURM_TEMPLATES
from stacking.errors import UserError


def find_template(name: str, own: Path | None = None) -> Path:
    """Returns the path of ``NAME.sbatch``: the site's own template if there is one, otherwise the packaged one.

    Raises:
        UserError: no folder has the template; the message lists the folders.
    """
    if own is not None and not own.is_dir():
        raise UserError(own, "is not a folder of templates", "correct `templates` in the site file")
    folders: tuple[Path, ...] = (*((own,) if own else ()), SLURM_TEMPLATES)
    found = next((folder / f"{name}.sbatch" for folder in folders if (folder / f"{name}.sbatch").is_file()), None)
    if found is None:
        looked = " nor in ".join(map(str, folders))
        raise UserError(f"{name}.sbatch", f"is not in {looked}", "reinstall stacking, or set `templates` in site.yaml")
    return found


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Renders ``template`` with ``values``.

    Raises:
        UserError: the template has a syntax error or a placeholder that is not among ``values``.
    """
    environment = _environment(template.parent)
    try:
        _check(environment, template, values)
        return environment.get_template(template.name).render(values)
    except (jinja2.TemplateError, TypeError) as error:
        raise UserError(template, f"cannot be rendered ({error})", "compare it with the packaged template") from None


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """Returns the environment of a folder's templates, which keeps those that it has compiled."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SLURM_TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _check(environment: jinja2.Environment, template: Path, values: Mapping[str, Any]) -> None:
    try:
        tree = environment.parse(read_text(template))
    except jinja2.TemplateSyntaxError as error:
        where = f"{template}: line {error.lineno}"
        raise UserError(where, f"is not a template ({error.message})", "write placeholders as {{ name }}") from None
    _check_placeholders(template, tree, values)
    for name in find_referenced_templates(tree):
        if name is not None:
            _check(environment, Path(str(environment.get_template(name).filename)), values)


def _check_placeholders(template: Path, tree: nodes.Template, values: Mapping[str, Any]) -> None:
    """Rejects unknown placeholders, including those in branches that are not rendered."""
    unknown = find_undeclared_variables(tree) - set(values)
    if unknown:
        first = min((n for n in tree.find_all(nodes.Name) if n.name in unknown), key=lambda n: n.lineno)
        remedy = nearest(first.name, values)
        raise UserError(f"{template}: line {first.lineno}", f"{{{{ {first.name} }}}} is not a placeholder", remedy)
