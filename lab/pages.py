"""Notebooks as HTML pages that are complete in themselves, and the start page that links them."""

import html
import re

import nbformat
from nbconvert import HTMLExporter

from surfaces.files import atomic_path

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_NOTE = "(An interactive widget in a running notebook.)"
MATH = re.compile(r"\$\S|\\\(|\\\[|\\begin\{")
# The stock page asks a content network for require.js and MathJax whether it needs them or not. Static pages never
# need the first, and only pages with formulas the second: all others are complete without a network.
PAGE = """\
{%- extends 'lab/index.html.j2' -%}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% if resources.math %}{{ super() }}{% endif %}{% endblock %}
{% block html_head_css %}{{ super() }}<style>
nav.series { display: flex; justify-content: space-between; gap: 1rem; max-width: 60rem; margin: 1rem auto;
  padding: 0 1rem; font: 0.95rem/1.4 sans-serif } nav.series a { color: #0060a8 }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; max-width: 100% }
.jp-RenderedImage img { max-width: 100%; height: auto }
.jp-InputArea-editor .highlight pre { white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 700px) { .jp-InputPrompt, .jp-OutputPrompt, .jp-InputCollapser, .jp-OutputCollapser { display: none }
  body.jp-Notebook { padding: 0.3rem } .jp-Cell { padding-left: 0; padding-right: 0 } }
</style>{% endblock %}
{% block data_jpg scoped %}<div class="jp-RenderedImage jp-OutputArea-output"><img
 src="data:image/jpeg;base64,{{ output.data['image/jpeg'] }}" alt="{{ output | get_metadata('alt', 'image/jpeg')
 | escape_html }}"></div>{% endblock %}
{% block body_header %}{{ super() }}{{ resources.series }}{% endblock %}
{% block body_footer %}{{ resources.series }}{{ super() }}{% endblock %}
"""
INDEX = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Notebooks</title>
<style>body {{ max-width: 44rem; margin: 3rem auto; padding: 0 1rem; font: 1.05rem/1.5 sans-serif }}
li {{ margin: 1rem 0; list-style: none }} ul {{ padding: 0 }} p {{ margin: 0.2rem 0 }}</style></head>
<body><h1>What does a denoiser look at?</h1><ul>
{items}
</ul></body></html>
"""


def without_widgets(nb):
    """Replace live widgets by a note and drop their state: GitHub calls notebooks that hold it invalid."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            if WIDGET_VIEW in output.get("data", {}):
                output["data"] = {"text/plain": WIDGET_NOTE}
    return nb


def links(before, after):
    """Return a bar with links to the notebooks (title, file name) before and after a page, and to the start page."""
    def link(words, target):
        return f'<a href="{html.escape(target)}">{html.escape(words)}</a>' if target else "<span></span>"
    (title_before, file_before), (title_after, file_after) = before or ("", ""), after or ("", "")
    return ('<nav class="series" aria-label="Series">' + link(f"\u2190 {title_before}", file_before)
            + link("All notebooks", "index.html") + link(f"{title_after} \u2192", file_after) + "</nav>")


def write_page(nb, source, path, series=""):
    """Write `nb`, read from notebook file `source`, as one HTML page with its pictures inside.

    `series` is the HTML of `links`, shown at the top and at the bottom.
    """
    without_widgets(nb)
    markdown = [cell for cell in nb.cells if cell.cell_type == "markdown"]
    for cell in markdown:  # links from notebook to notebook lead from page to page
        cell.source = re.sub(r"\]\(([\w./-]+)\.ipynb(#[^)]*)?\)", r"](\1.html\2)", cell.source)
    nb.metadata["title"] = heading(nb, source)[0]
    resources = {"series": series, "metadata": {"name": source.stem, "path": str(source.parent)},
                 "math": any(MATH.search(re.sub(r"`[^`]*`", "", cell.source)) for cell in markdown)}
    page, _ = HTMLExporter(raw_template=PAGE, embed_images=True).from_notebook_node(nb, resources)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def heading(nb, path):
    """Return the title of a notebook and the first paragraph below it, as plain text."""
    first = next((cell.source for cell in nb.cells if cell.cell_type == "markdown"), "")
    title, _, rest = first.strip().partition("\n")
    if not title.startswith("# "):
        return path.stem, ""
    paragraph = " ".join(rest.strip().split("\n\n")[0].split())
    return title[2:].strip(), re.sub(r"\[([^]]*)\]\([^)]*\)|[*`_]", r"\1", paragraph)


def write_pages(notebooks, build):
    """Write a page in `build`/html for each of `notebooks` [(notebook, its path)], and a start page with links."""
    items, titles = [], [(heading(nb, path)[0], f"{path.stem}.html") for nb, path in notebooks]
    for place, (nb, path) in enumerate(notebooks):
        bar = links(titles[place - 1] if place else None, titles[place + 1] if place + 1 < len(titles) else None)
        write_page(nb, path, build / "html" / f"{path.stem}.html", bar)
        title, paragraph = map(html.escape, heading(nb, path))
        items.append(f'<li><a href="{html.escape(path.stem)}.html">{title}</a><p>{paragraph}</p></li>')
    index = build / "html" / "index.html"
    with atomic_path(index) as temporary:
        temporary.write_text(INDEX.format(items="\n".join(items)), encoding="utf-8")
    print(f"Pages: {index}")


def latest(path, build):
    """Return the notebook at `path`, or what its last run left in `build` if that has the same cells."""
    nb, executed = nbformat.read(path, as_version=4), build / "notebooks" / path.name
    if executed.is_file():
        last = nbformat.read(executed, as_version=4)
        if [cell.source for cell in last.cells] == [cell.source for cell in nb.cells]:
            return last
    return nb
