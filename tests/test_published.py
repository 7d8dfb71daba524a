import re
from collections import Counter

import pytest

from taae.config import BottleneckSpec
from taae.metrics import METRICS
from workbench import published

# Cells that hold a number, counted by hand: rows times columns, less the cells with a dash or a word.
NUM_NUMBERS = {
    "table01": 3 + 5 + 9,
    "table02": 13 * 9 - 2 - 3,  # no SI-SDR for SemantiCodec, no rate without a quantiser
    "table03": 2 * 5,
    "table04": 3 * 6,
    "table05": 6 * 11,  # L and d count apart
    "table06": 3 * 7,
    "table07": 7 * 6 * 6 - 7,
    "table08": 3 * 7,
    "table09": 24 + 8 + 7 + 7,  # entropies, codebook sizes, rates, Huffman-coded rates
    "table10": 6 * 4,
    "table11": 4 + 4 + 5,  # receptive fields of a layer and of all, latencies
    "table12": 5 + 1,  # sizes, and the hours of Mimi's data
    "fig04": 6,
    "talk.objective": 13 * 9 - 2 - 3,
    "talk.perceptual": 2 * 5,
    "talk.scaling": 3 * 6,
    "talk.mls": 7 * 6 * 6 - 7,
    "talk.levels": 3 + 5 + 9,
}

# Where each table starts in the text of the paper, and what its lines must match; the text has some garbled twice.
PAPER = {
    "table01": ("\tQuantized Positions", ""),
    "table02": ("Model\tBPS\tTPF\tTPS\tSISDR", ""),
    "table03": ("Model\tSI-SDR", ""),
    "table04": ("Param. count\tSI-SDR", ""),
    "table05": ("Latent (Hz)\tFSQ", ""),
    "table06": ("Model\tBPS\tSI-SDR ↑\tMel ↓\t$\\textbf{STFT}\\downarrow$\tPESQ ↑\tSTOI ↑\tMOSNet ↑", ""),
    "table07": ("Model\tBPS\tSI-SDR \\uparrow", ""),
    "table08": ("BPS\tSI-SDR \\uparrow\tMel", r"^\S"),
    "table10": ("Model\tParameters (M)\tRTF (5s)", r"^(?!Model)"),
    "table11": ("Model\tMax Per-Layer RF", ""),
    "table12": ("Model\tCausal\tTraining Datasets", ""),
}
TALK = {
    "talk.levels": ("Quantized Positions", "\nTable 1"),
    "talk.objective": ("<b>Model</b>\t<b>BPS</b>\t<b>TPF</b>", "\n# SUBJECTIVE"),
    "talk.perceptual": ("Model\tSI-SDR", "\n- "),
    "talk.scaling": ("Param. count\tSI-SDR", "\n- "),
    "talk.mls": ("Model\tBPS\tSI-SDR", "\n# "),
}


def numbers_in(text):
    """Numbers of a piece of LaTeX, Markdown or HTML; those inside a name, such as MUSDB18, do not count."""
    text = re.sub(r"\\begin\{array\}\{c*\}|\\overline|\\ell_\d|\\times|\\frac|\\ell\b|</?b>", " ", text)
    text = re.sub(r"[{}$\\~]", " ", text).replace("−", "-")
    text = re.sub(r"(?<=\d) *\. *(?=\d)", ".", text)
    return Counter(float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\d)", text))


def printed(name):
    """How often each number stands in print: a cell that spans rows once, and lost ones not at all."""
    cells = published.table(name).cells
    return Counter(float(cell.value) for cell in cells if cell.value is not None and cell.cell == "printed")


@pytest.fixture(scope="module")
def paper(shared):
    return (shared / "paper" / "paper.md").read_text()


@pytest.fixture(scope="module")
def talk(shared):
    return (shared / "paper" / "talk.md").read_text()


@pytest.mark.parametrize("name", NUM_NUMBERS)
def test_every_number_is_there(name):
    assert sum(cell.value is not None for cell in published.table(name).cells) == NUM_NUMBERS[name]


@pytest.mark.parametrize("name", PAPER)
def test_the_numbers_are_those_of_the_paper(name, paper):
    start, line_pattern = PAPER[name]
    end = paper.index(f"Table {int(name[5:])}: ")
    block = paper[paper.rindex(start, 0, end) : end]
    # the caption of Table 8 stands after lines that repeat the table
    lines = [line for line in block.splitlines() if "\t" in line and re.search(line_pattern, line)]
    assert printed(name) == numbers_in("\n".join(lines))


def test_the_numbers_of_table_9_are_those_of_the_paper(paper):
    block = paper[paper.index("Model\tCodebook\tCodebook Size") : paper.index("Table 9: ")]
    cells = published.table("table09").cells
    entropies = Counter(cell.value for cell in cells if cell.column == "Normalized Entropy")
    assert entropies == Counter(float(text) for text in re.findall(r"\b0\.\d\d\b", block))
    for cell in cells:  # rows of which the text repeats some
        assert cell.value in numbers_in(block), cell.id


def test_the_shares_of_figure_4_are_those_of_the_paper_and_make_whole_people(paper):
    block = paper[paper.index("E APPENDIX: DEMOGRAPHIC") : paper.index("Figure 4: ")]
    shares = [cell.value for cell in published.table("fig04").cells]
    assert [f"{share}" for share in shares] == re.findall(r"([\d.]+)%", block)

    def fits(num_people):
        return all(round(100 * round(s * num_people / 100) / num_people, 1) == s for s in shares)

    assert fits(22) and not fits(24)  # section 4.3 says 24


@pytest.mark.parametrize("name", TALK)
def test_the_numbers_are_those_of_the_talk(name, talk):
    start, end = TALK[name]
    block = talk[talk.index(start) :]
    assert printed(name) == numbers_in(block[: block.index(end, 1)].replace("Table 1", ""))


def test_sentences_that_hold_a_number_stand_in_the_sources(paper, talk):
    for name, text in (("text", paper), ("talk.text", talk)):
        text = " ".join(text.split())
        for cell in published.table(name).cells:
            assert cell.printed in text, cell.id


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("talk.objective", "table02"),
        ("talk.perceptual", "table03"),
        ("talk.scaling", "table04"),
        ("talk.mls", "table07"),
        ("talk.levels", "table01"),
    ],
)
def test_the_talk_repeats_the_paper(name, twin):
    ours = {(cell.row, cell.column): cell.value for cell in published.table(name).cells}
    assert ours == {(cell.row, cell.column): cell.value for cell in published.table(twin).cells}


def test_numbers_that_recur_agree_between_the_tables():
    main = published.table("table02").values("TAAE 700")
    for name, row in (("table03", "TAAE"), ("table06", "TAAE (non-causal)"), ("table08", "TAAE 700")):
        assert published.table(name).values(row).items() <= main.items()
    assert published.number("table05/25-hz-6x6/pesq").value == published.number("table02/taae-400/pesq").value
    assert published.table("table04").values("950M")["mel_distance"] == 1.18
    for model in ("DAC", "Encodec", "SpeechTokenizer", "SemantiCodec", "Mimi"):
        sizes = {published.table("table10").cell(model, "Parameters (M)").value}
        assert sizes == {published.table("table12").cell(model, "#Params (M)").value}


def test_the_rates_of_the_paper_follow_from_equation_5():
    assert BottleneckSpec.parse("2x5^6").bits_per_second(25.0) == published.number("table02/taae-700/bps").value
    stages = {"4x8": "1x4^8", "5x8": "2x3^8", "9x8": "3x3^8", "17x8": "4x3^8"}
    for row, spec in stages.items():
        values = published.table("table05").values(f"12.5 Hz {row}")
        parsed = BottleneckSpec.parse(spec)
        assert round(parsed.bits_per_second(12.5) + 1e-9) == values["bits_per_second"]  # 487.5 is printed as 488
        assert parsed.num_stages == values["tokens_per_frame"]
        assert 12.5 * parsed.num_stages == values["tokens_per_second"]


def test_cells_carry_what_a_reader_needs():
    tables = published.load()
    ids = [cell.id for table in tables.values() for cell in table.cells]
    assert len(ids) == len(set(ids))
    for table in tables.values():
        for cell in table.cells:
            assert cell.row and cell.column and cell.printed
            assert (cell.value is None) <= (cell.unit in ("", "dB", "s", "ms", "bit/s", "tokens/frame", "tokens/s"))
            assert cell.cell == "printed" or cell.footnote, cell.id
            if cell.cell == "printed" and cell.value is not None and "text" not in cell.table:
                assert float(cell.value) in numbers_in(cell.printed), cell.id
    pesq = published.number("table02/taae-700/pesq")
    assert (pesq.value, pesq.unit, pesq.metric, pesq.better) == (3.09, "raw P.862", "pesq_raw_nb", "higher")
    assert {cell.metric for cell in tables["table02"].cells} & set(METRICS) == {
        "si_sdr",
        "mel_distance",
        "stft_distance",
        "pesq_raw_nb",
        "stoi",
        "mosnet",
    }


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="no published table 'table13'; there are table01"):
        published.table("table13")
    with pytest.raises(ValueError, match="Table 2 has no row 'TAAE'; it has DAC 1000"):
        published.table("table02").cell("TAAE", "PESQ")
    with pytest.raises(ValueError, match="Table 2 has no 'WER' in row 'TAAE 700'; its columns are BPS"):
        published.table("table02").cell("TAAE 700", "WER")
    with pytest.raises(ValueError, match="no published number 'table02/x/y'"):
        published.number("table02/x/y")
