import pytest

from tests.listening.small_study import make_study, write_sounds
from workbench.listening import study_file, webmushra
from workbench.listening.study import Item, Study, System

QUESTION = (
    "Please evaluate the quality proximity between an audio sample and its reference. Please listen carefully to the "
    "reference audio and then rate the quality of each test audio clip compared to the reference. Use the scale where "
    "0 indicates no resemblance to the reference, and 100 means perfectly the same as the reference."
)


def test_the_papers_preset_is_the_protocol_of_section_4_3(tmp_path):
    write_sounds(tmp_path, 25, seconds=0.5)
    (tmp_path / "paper.toml").write_text('preset = "taae-paper"\nitems = "clips"\n')
    study = study_file.load(tmp_path / "paper.toml")
    assert study.question == QUESTION
    assert study.method_label == "MUSHRA-style, no anchor"  # a test without anchors is not MUSHRA
    assert study.has_labelled_reference and study.has_hidden_reference and not study.anchors_hz
    assert study.num_items == 25 and study.conditions[:3] == ["reference", "taae 1x6^6", "taae 2x5^6"]
    assert [(q.name, q.options, q.is_required) for q in study.questionnaire] == [
        ("affiliation", ("academia", "industry"), False),
        ("audio_work", ("yes", "no"), False),
        ("equipment", ("headphones", "laptop speakers", "professional speakers"), False),
    ]


def test_the_papers_question_is_verbatim(shared):
    text = " ".join((shared / "paper" / "paper.md").read_text(encoding="utf-8").split())
    assert QUESTION in text


def test_the_strict_preset_refuses_what_bs1534_does_not_allow(tmp_path):
    write_sounds(tmp_path, 6)
    strict = {"preset": "bs1534-3-strict", "name": "s", "items": "clips", "systems": ["codec2 700C"]}
    with pytest.raises(ValueError, match="training is mandatory"):
        study_file.resolve(strict, tmp_path)
    strict["training_items"] = [{"name": "training", "reference": "clips/item0.wav"}]
    study = study_file.resolve(strict, tmp_path)
    assert study.method_label == "MUSHRA (BS.1534-3)" and study.conditions[:3] == ["reference", "anchor35", "anchor70"]
    with pytest.raises(ValueError, match="anchors are mandatory"):
        study_file.resolve(strict | {"anchors_hz": [3500]}, tmp_path)
    with pytest.raises(ValueError, match="6 systems want at least 9 items, there are 6"):
        many = [f"codec2 {mode}" for mode in (450, 1200, 1300, 1600, 2400, 3200)]
        study_file.resolve(strict | {"systems": many}, tmp_path)


def test_more_than_twelve_signals_are_refused():
    systems = tuple(System(name=f"s{i}", codec="codec2 450") for i in range(10))
    with pytest.raises(ValueError, match="13 signals in a trial, at most 12"):
        Study(name="a", title="A", systems=systems, anchors_hz=(3500, 7000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('titel = "x"', "study.toml: unknown key titel; known are preset, name, title"),
        ('preset = "mushra"', "no preset 'mushra'; there are bs1534-3-strict, taae-paper"),
        ('title = "x"\nitems = "nowhere"', "study.toml: items: there is no 'nowhere' in"),
        ('title = "x"\nseed = "7"', "study.toml: seed must be a whole number, got '7'"),
        ('title = "x"\nmethod = "mos"', "method must be one of mushra, abx, ab, acr; got 'mos'"),
        ('title = "x"\nanchors_hz = [4000]', "anchors_hz may hold 3500 and 7000, got 4000"),
        ('title = "x"\nsystems = ["a b", "a b"]', "systems: 'a b' is there twice"),
        ('title = "x"\nsystems = [{ name = "reference", codec = "c" }]', "cannot be called 'reference'"),
        ('title = "x"\nname = "My Study"', "lower-case letters, digits and '-'"),
        ('title = "x"\nnum_items = 3', "num_items is 3, but there are 0 items"),
        ("title = ", "study.toml: not valid TOML"),
    ],
)
def test_mistakes_are_named_with_file_key_and_remedy(tmp_path, text, message):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        study_file.load(path)
    assert message in str(caught.value)


def test_a_path_cannot_leave_the_root(tmp_path):
    (tmp_path / "root").mkdir()
    write_sounds(tmp_path, 1)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "clips")
    for items in ("../clips", str(tmp_path / "clips"), "link", ["../clips/item0.wav"]):
        values = {"name": "s", "title": "S", "items": items}
        with pytest.raises(ValueError, match="leads outside of the folder of stimuli"):
            study_file.resolve(values, tmp_path / "root", root=tmp_path / "root")


def test_yaml_and_toml_make_the_same_study_and_yaml_runs_no_code(tmp_path):
    write_sounds(tmp_path, 2)
    (tmp_path / "one.toml").write_text('name = "x"\ntitle = "T"\nitems = "clips"\nsystems = ["codec2 450"]\n')
    (tmp_path / "one.yaml").write_text("name: x\ntitle: T\nitems: clips\nsystems: [codec2 450]\n")
    assert study_file.load(tmp_path / "one.toml") == study_file.load(tmp_path / "one.yaml")
    (tmp_path / "bad.yaml").write_text("title: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ValueError, match="bad.yaml: not valid YAML"):
        study_file.load(tmp_path / "bad.yaml")
    assert not (tmp_path / "pwned").exists()


def test_a_study_survives_json_and_its_hash_notices_a_change(tmp_path):
    study = make_study(tmp_path, order=["fixed", "item0", ["random", "item1", "item2"], "item3"])
    again = Study.from_dict(study.as_dict())
    assert again == study and again.sha256 == study.sha256
    assert make_study(tmp_path, title="Other").sha256 != study.sha256


def test_what_the_page_may_know_names_no_system_and_no_item(tmp_path):
    text = str(make_study(tmp_path).public())
    assert not any(name in text for name in ("fine", "rough", "coarse", "item0", "anchor35", "seed"))


def test_answers_are_checked_by_their_question():
    study = Study.from_dict(
        {
            "name": "a",
            "title": "A",
            "questionnaire": [
                {"name": "equipment", "text": "?", "options": ["headphones"], "is_required": True},
                {"name": "age", "text": "?", "kind": "number", "maximum": 120},
            ],
        }
    )
    equipment, age = study.questionnaire
    assert equipment.check("headphones") == "" and "required" in equipment.check("")
    assert "options" in equipment.check("<script>")
    assert age.check(30) == "" and age.check(None) == ""
    assert "limits" in age.check(121) and "number" in age.check("30") and "number" in age.check(True)


def test_an_item_needs_sound():
    with pytest.raises(ValueError, match="start_s 3.0 and stop_s 2.0 hold no sound"):
        Item(name="a", reference="a.wav", start_s=3.0, stop_s=2.0)


# webMUSHRA


def page(name, folder="", kind="mushra", **values):
    lines = [f"type: {kind}", f"id: {name}", f"reference: {folder}clips/item0.wav"]
    lines += [f"{key}: {value}" for key, value in values.items()]
    lines += ["stimuli:", f"  C1: {folder}fine/item0.wav", f"  C2: {folder}rough/item0.wav"]
    return lines


def as_yaml(pages, depth=1):
    text = ""
    for entry in pages:
        pad = "  " * depth
        if entry == "random":
            text += f"{pad}- random\n"
        elif isinstance(entry[0], list) or entry[0] == "random":
            text += f"{pad}-\n{as_yaml(entry, depth + 1)}"
        else:
            text += f"{pad}- {entry[0]}\n" + "".join(f"{pad}  {line}\n" for line in entry[1:])
    return text


def test_a_webmushra_configuration_with_nested_random_blocks_is_read(tmp_path):
    write_sounds(tmp_path, 1)
    pages = [
        ["type: generic", "id: hello", "name: Hello", "content: Welcome"],
        ["type: volume", "id: vol", "stimulus: clips/item0.wav", "defaultVolume: 0.5"],
        page("first", createAnchor35="true", createAnchor70="true"),
        [
            "random",
            page("a", createAnchor35="true", createAnchor70="true"),
            [
                page("b", createAnchor35="true", createAnchor70="true"),
                page("c", createAnchor35="true", createAnchor70="true"),
            ],
        ],
        [
            "type: finish",
            "name: End",
            "content: Bye",
            "questionnaire:",
            "  - {type: text, label: eMail, name: email}",
            "  - {type: number, label: Age, name: age, min: 0, max: 100, optional: true}",
            "  - {type: likert, name: gender, label: Gender, response: [{value: female}, {value: male}]}",
        ],
    ]
    path = tmp_path / "config.yaml"
    path.write_text("testname: My test\ntestId: my_test\nbufferSize: 2048\npages:\n" + as_yaml(pages))
    study = webmushra.load(path)
    assert (study.name, study.title, study.method) == ("my-test", "My test", "mushra")
    assert study.order == ("fixed", "first", ("random", "a", ("fixed", "b", "c")))
    assert study.conditions == ["reference", "anchor35", "anchor70", "C1", "C2"]
    assert [item.name for item in study.items] == ["first", "a", "b", "c"]
    assert study.items[0].files["C2"] == str(tmp_path / "rough" / "item0.wav")
    assert [(q.name, q.kind, q.is_required) for q in study.questionnaire] == [
        ("email", "text", True),
        ("age", "number", False),
        ("gender", "likert", True),
    ]
    assert study.prescreen == ("level",) and study.instructions == "Welcome" and study.thanks == "Bye"


def test_paired_comparisons_become_a_preference_test(tmp_path):
    write_sounds(tmp_path, 1)
    path = tmp_path / "config.yaml"
    path.write_text("testId: p\npages:\n" + as_yaml([page("x", kind="paired_comparison", unforced="none of them")]))
    study = webmushra.load(path)
    assert study.method == "ab" and study.allows_no_preference
    assert study.all_pairs == [("reference", "C1"), ("reference", "C2")]


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([page("a", kind="bs1116")], "pages of type bs1116"),
        ([page("a", kind="spatial_center")], "pages of type spatial_center"),
        ([page("a"), page("b", createAnchor35="true")], "all must have the same"),
        ([page("a", folder="../../../etc/")], "leads outside of the folder of stimuli"),
        ([["type: generic", "id: a"]], "no page of a listening test"),
    ],
)
def test_what_cannot_be_had_here_is_refused_by_name(tmp_path, pages, message):
    root = tmp_path / "root"
    write_sounds(root, 1)
    path = root / "config.yaml"
    path.write_text("testId: p\npages:\n" + as_yaml(pages))
    with pytest.raises(ValueError, match=message):
        webmushra.load(path, root=root)
