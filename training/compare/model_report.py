"""The comparison as a page: compare.json -> a section of docs/model-report.md, with its pictures.

In: the folder that `compare` has filled. Out: `docs/results/compare.json`, `docs/pictures/compare-*.png` and, between
two markers in `docs/model-report.md`, the section that these numbers make. What stands outside the markers stays. Every
number of the section, and which of two sentences stands there, follows from compare.json.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

from training.compare import COMPARE_FILE
from training.config import ConfigError
from training.fit import require_place
from training.runs import read_json
from training.runs.writing import AGAIN, written_whole

START, END = "<!-- compare: written by `python -m training compare`, do not edit -->", "<!-- /compare -->"
PAGE, SUB_FOLDERS = "model-report.md", ("results", "pictures")
TITLE = "# Model report\n\nMSE is the mean over pixels on [0,1].\n\n"
CLEAR = 0.02  # two shares closer than this are called equal

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("parameters", "parameters", ",d"),
    ("prior", "prior_parameters", ",d"),
    ("steps", "steps", ",d"),
    ("prior steps", "prior_steps", ",d"),
    ("MSE", "mse", ".5f"),
    ("PSNR, dB", "psnr_db", ".2f"),
    ("ELBO, nats", "elbo_nats", ".1f"),
    ("perplexity", "perplexity", ".1f"),
    ("bits/code", "bits_per_code", ".3f"),
    ("bits/picture", "bits_per_picture", ".1f"),
)
BOUND_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("KL, nats", "kl_nats", ".1f"),
    ("sigma", "decoder_sigma", ".4f"),
    ("best sigma", "best_sigma", ".4f"),
    ("ELBO, nats", "elbo_nats", ".1f"),
    ("ELBO at the best sigma", "best_elbo_nats", ".1f"),
)
SAMPLE_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Fréchet distance", "frechet", ".2f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("spread within a class", "spread", ".3f"),
    ("class agreement", "class_agreement", ".1%"),
)


def require_docs(docs: Path) -> None:
    """Raises ConfigError where the page cannot be written into `docs`: asked before the trainings, which take hours."""
    for folder in (docs, *(docs / name for name in SUB_FOLDERS)):
        require_place(folder, "--docs")
    _around_section(docs / PAGE)


def write_model_report(folder: Path, docs: Path) -> None:
    """Copy the numbers and the pictures into `docs` and rewrite the section of the page."""
    result = read_json(folder / COMPARE_FILE)
    for sub_folder in SUB_FOLDERS:
        (docs / sub_folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / COMPARE_FILE, docs / "results" / COMPARE_FILE)
    for name in result["systems"]:
        shutil.copyfile(folder / f"samples-{name}.png", docs / "pictures" / f"compare-{name}.png")
    write_page(result, docs)


def write_page(result: dict[str, Any], docs: Path) -> None:
    """Rewrite the section of `docs/model-report.md` from the content of a compare.json."""
    page = docs / PAGE
    before, after = _around_section(page)
    with written_whole(page, AGAIN) as partial:
        text = _without_dead_links(section(result), docs)
        partial.write_text(f"{before}{START}\n{text}{END}{after}", encoding="utf-8")


def _without_dead_links(text: str, docs: Path) -> str:
    """Only the words of a link to a page that does not lie beside this one, as in a folder of one's own."""
    return re.sub(r"\[([^]]+)\]\(([a-z-]+\.md)\)", lambda link: link[0 if (docs / link[2]).exists() else 1], text)


def _around_section(page: Path) -> tuple[str, str]:
    """What stands before and after the section; one without markers gets it at its end.

    Raises:
        ConfigError: the page is not UTF-8, or has other markers than one pair, so that nothing says what is to stay.
    """
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else f"{TITLE}{START}\n{END}\n"
    except UnicodeDecodeError as error:
        raise ConfigError(f"{page} is not UTF-8: convert it, or choose another --docs") from error
    before, *others = re.split(f"({re.escape(START)}|{re.escape(END)})", text)
    if not others:
        return f"{text.rstrip()}\n\n", "\n"
    if others[::2] != [START, END]:
        raise ConfigError(f"{page} needs {START} and {END} once each, in this order, or neither: correct it")
    return before, others[-1]


def section(result: dict[str, Any]) -> str:
    """The section as Markdown."""
    systems, real = result["systems"], result["real"]
    parts = [
        "## AE, VAE, CVAE and VQ-VAE side by side\n",
        f"`{result['command']}` trained and measured what follows: [compare.json](results/compare.json).",
        f"{_budget(result)}\n",
        _table(COLUMNS, systems),
        _bounds(systems),
        _yardstick(result),
        _table(SAMPLE_COLUMNS, {"real": real} | _with_guided(result)),
        "The VQ-VAEs draw codes from their class-conditional priors, the VAEs a latent from N(0, I), and the AE, which "
        "has no distribution to draw from, each latent from a normal distribution fitted to it. Guidance pushes the "
        "prior's samples towards their label ([how it works](how-it-works.md)).\n",
        "### A claim, tested\n",
        "The lecture notes that this project implements (their formulas stand in [how it works](how-it-works.md)) say, "
        "as many texts on VQ-VAE do, that the VAE's fixed normal prior and continuous latents give weak diversity and "
        "weak control.\n",
        *(f"- {verdict}" for verdict in verdicts(systems, real["spread"])),
        f"- The claim says nothing of how real samples look (precision): {_listed('precision', '.3f', systems)}.",
        f"- {_guidance(result)}",
        "\n### Samples\n",
        *(f"**{name}**\n\n![samples of {name}](pictures/compare-{name}.png)\n" for name in systems),
    ]
    return "\n".join(parts)


def _budget(result: dict[str, Any]) -> str:
    """What the systems have in common, and where their parameters, steps and codes differ."""
    systems, quantizer = result["systems"], result["config"]["autoencoder"]["quantizer"]
    vqvae, fsq = systems["vqvae-ema"], systems["vqvae-fsq"]
    codes, fsq_codes = quantizer["codebook_size"], math.prod(quantizer["levels"])
    others = "" if codes == fsq_codes else f", where the others have {codes:,}"
    return (
        "One encoder and decoder serves all systems. A VQ-VAE (EMA) and its prior have "
        f"{vqvae['parameters'] + vqvae['prior_parameters']:,} parameters together; `vae-large` has "
        f"{systems['vae-large']['parameters']:,} and `cvae-large` {systems['cvae-large']['parameters']:,}, and both "
        f"are trained for as many steps as the two stages. `vqvae-fsq` has no codebook and {fsq['parameters']:,} "
        f"parameters, `vqvae-ema` with its codebook {vqvae['parameters']:,}; the levels of `vqvae-fsq` make "
        f"{fsq_codes:,} codes{others}. The trainings took "
        f"{_duration(sum(system['seconds'] for system in systems.values()))} in all, with torch "
        f"{result['libraries']['torch']}."
    )


def _duration(seconds: float) -> str:
    """In the largest of three units of which there is one at least."""
    unit, length = next(one for one in (("hours", 3600), ("minutes", 60), ("seconds", 0)) if seconds >= one[1])
    return f"{seconds / max(1, length):.1f} {unit}"


def _bounds(systems: dict[str, Any]) -> str:
    """How far the learned sigmas are from their best: one that has not settled costs nats that no network misses."""
    measured = {name: values for name, values in systems.items() if values.get("decoder_sigma") is not None}
    learned = "The ELBO is that of the decoder's sigma as training left it. Sigma is one learned number"
    if not measured:
        return f"{learned}, and need not have settled; these numbers do not hold it.\n"
    meaning = "the best one for the same encoder and means is the root of the MSE of sampled z (arXiv:2006.13202)"
    return f"{learned}; {meaning}.\n\n{_table(BOUND_COLUMNS, measured)}"


def _yardstick(result: dict[str, Any]) -> str:
    return (
        f"Samples, {result['samples']:,} from each system, in the features of a classifier with "
        f"{result['classifier']['test_accuracy']:.2%} accuracy on the test set, against as many test pictures drawn at "
        "random. `real` is as many training pictures, drawn and measured in the same way: what a system would score "
        "that returned pictures it has learned from. Spread is the mean distance of two samples of a class, real test "
        "pictures being 1. Precision is the part of the samples that lie near real pictures and says nothing alone: "
        "samples that are all alike may have much of it and no recall, which is the part of the real pictures that "
        "samples lie near.\n"
    )


def _guidance(result: dict[str, Any]) -> str:
    before, after = (result[which]["vqvae-ema"]["class_agreement"] for which in ("systems", "guided"))
    change = "hardly changes" if abs(after - before) <= CLEAR else "raises" if after > before else "lowers"
    return (
        f"Guidance {result['guidance']:g} {change} the class agreement of the VQ-VAE (EMA): {before:.1%} without, "
        f"{after:.1%} with it."
    )


def _with_guided(result: dict[str, Any]) -> dict[str, Any]:
    """Each system, and below it the same with guidance, where it has it."""
    rows: dict[str, Any] = {}
    for name, values in result["systems"].items():
        rows[name] = values
        if name in result["guided"]:
            rows[f"{name}, guidance {result['guidance']:g}"] = result["guided"][name]
    return rows


def verdicts(systems: dict[str, Any], real_spread: float) -> list[str]:
    """Where the claim holds, for the EMA VQ-VAE against the systems with a normal prior.

    Diversity beyond `real_spread` counts no more: samples that look like nothing are far apart too.
    """
    normal = ("vae", "vae-large", "cvae", "cvae-large")
    conditional = ("cvae", "cvae-large")
    return [
        _verdict("Coverage of the real pictures (recall)", "recall", ".3f", systems, normal),
        _verdict("Diversity within a class (spread)", "spread", ".3f", systems, normal, enough=real_spread),
        _verdict("Control (class agreement)", "class_agreement", ".1%", systems, conditional),
    ]


def _listed(key: str, form: str, systems: dict[str, Any]) -> str:
    return ", ".join(f"{format(values[key], form)} for {name}" for name, values in systems.items() if name != "ae")


def _verdict(
    what: str, key: str, form: str, systems: dict[str, Any], others: tuple[str, ...], enough: float = math.inf
) -> str:
    ours = systems["vqvae-ema"][key]
    theirs = {name: systems[name][key] for name in others}
    listed = ", ".join(f"{format(value, form)} for {name}" for name, value in theirs.items())
    gap = min(ours, enough) - min(max(theirs.values()), enough)
    verdict = "the claim holds" if gap > CLEAR else "the claim does not hold"
    if abs(gap) <= CLEAR:
        verdict += f": the best differs by less than {CLEAR:g}"
    if enough < max(ours, *theirs.values()):
        verdict += f", where more than the {format(enough, form)} of real pictures counts no more"
    return f"{what}: {format(ours, form)} for the VQ-VAE (EMA), {listed}; here {verdict}."


def _table(columns: tuple[tuple[str, str, str], ...], systems: dict[str, Any]) -> str:
    head = ["system", *(title for title, _, _ in columns)]
    rows = [[name, *(_cell(values.get(key), form) for _, key, form in columns)] for name, values in systems.items()]
    lines = [head, ["---", *("---:" for _ in columns)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
