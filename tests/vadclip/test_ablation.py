"""Designs other than the whole model: what each leaves out, and the tables that are made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden import Golden
from tests.vadclip.test_train import WIDTH, toy_model, toy_set
from vadclip import VadCLIP, load_checkpoint, save_checkpoint
from vadclip.ablation import TABLES, chosen_rows
from vadclip.cli import main
from vadclip.config import Design, ModelConfig
from vadclip.initial import new_model
from vadclip.losses import vadclip_losses
from vadclip.presets import PRESETS
from vadclip.prompt import tokenize, tokenizer
from vadexport.build import BuildOptions, build
from vadrun.errors import UserError


def designed(golden: Golden, **parts: Any) -> VadCLIP:
    return new_model(PRESETS["ucf"], golden.load().clipmodel, seed=3, design=Design(**parts)).eval()


def scored(model: VadCLIP, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.score(features, model.encode_text(model.config.labels))


def reach(model: VadCLIP, golden: Golden, snippet: int = 100) -> set[int]:
    """The snippets whose logits change when one snippet's feature does."""
    features = golden["features_255"].clone()
    before = scored(model, features)[0]
    features[snippet] = 3 * torch.randn(64, generator=torch.Generator().manual_seed(1))  # not a shift: LayerNorm
    changed = (scored(model, features)[0] - before).abs() > 1e-6
    return {int(index) for index in changed.nonzero().flatten()}


def test_every_row_of_the_papers_tables() -> None:
    assert [len(rows) for rows in TABLES.values()] == [7, 6, 4]
    assert len(chosen_rows()) == 17 and all(Design() in rows.values() for rows in TABLES.values())
    assert [name for _, name, _ in chosen_rows([7])] == list(TABLES[7])
    assert chosen_rows([], ["c-branch", "only-gcn"]) == [
        (5, "only-gcn", Design(temporal="gcn")),
        (6, "c-branch", Design(prompt="plain", visual="none", branches="confidence")),
    ]
    with pytest.raises(UserError, match="no table 4 of ablations: use one of 5, 6, 7"):
        chosen_rows([4])
    with pytest.raises(UserError, match="no ablation 'magic': use one of baseline, "):
        chosen_rows([], ["magic"])


def test_what_models_time_reaches(ucf: Golden) -> None:
    assert reach(designed(ucf, temporal="none"), ucf) == {100}
    assert reach(designed(ucf, temporal="local"), ucf) == set(range(96, 104))
    for temporal in ("global", "local+global"):
        assert len(reach(designed(ucf, temporal=temporal), ucf)) > 200
    graph = reach(designed(ucf, temporal="gcn"), ucf)
    assert {98, 100, 102} <= graph
    for temporal in ("lgt", "global+gcn"):
        assert len(reach(designed(ucf, temporal=temporal), ucf)) >= len(graph)


def test_prompts(ucf: Golden) -> None:
    config = designed(ucf).config
    words = tokenizer().encode("a video of arson")
    for prompt, expected in (("plain", words[3:]), ("hand", words)):
        tokens = tokenize(["arson"], ModelConfig(**{**vars(config), "design": Design(prompt=prompt)}))
        start, end = tokenizer().sot_token_id, tokenizer().eot_token_id
        assert tokens.ids[0].tolist() == [start, *expected, end] + [0] * (77 - len(expected) - 2)
        assert tokens.is_word.all() and tokens.end.tolist() == [len(expected) + 1]
    model = designed(ucf, prompt="plain")
    with torch.no_grad():
        before = model.encode_text(["arson"])
        assert torch.allclose(before, model.clipmodel.encode_text(tokens_of("arson")), atol=1e-5)
        model.text_prompt_embeddings.weight.add_(1.0)
        assert torch.equal(before, model.encode_text(["arson"]))


def tokens_of(text: str) -> torch.Tensor:
    found: torch.Tensor = tokenizer()(text)
    return found


def test_visual_prompts(ucf: Golden) -> None:
    """None: classes do not depend on the video. Average: they do, but not on the C-branch."""
    features = ucf["features_37"]
    for visual, sees_features, sees_logits in (
        ("anomaly", True, True),
        ("average", True, False),
        ("none", False, False),
    ):
        model = designed(ucf, visual=visual)
        with torch.no_grad():
            x = model.video_features(torch.nn.functional.pad(features, (0, 0, 0, 219))[None], torch.tensor([37]))
            valid = torch.arange(256)[None] < 37
            logits = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
            one, other = model._visual_prompt(logits, x, valid), model._visual_prompt(logits * -2, x, valid)
        assert bool(one.any()) == sees_features
        assert (not torch.equal(one, other)) == sees_logits
        if visual == "average":
            assert torch.allclose(one, torch.nn.functional.normalize(x[:, :37].mean(1), dim=-1), atol=1e-6)


def test_one_branch_is_trained_and_scores(ucf: Golden) -> None:
    for branches, trained, untrained in (("confidence", "mlp2", "mlp1"), ("alignment", "mlp1", "mlp2")):
        model = designed(ucf, branches=branches, visual="none")
        assert model.config.anomaly == branches
        text = model.encode_text(model.config.labels)
        logits, alignment = model(torch.randn(2, 256, 64), torch.tensor([9, 256]), text)
        losses = vadclip_losses(logits, alignment, text, torch.eye(14)[:2], torch.tensor([9, 256]), contrast_weight=0.1)
        losses.of(branches).backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        assert gradients[f"{trained}.c_fc.weight"] is not None
        assert gradients[f"{untrained}.c_fc.weight"] is None


def test_a_design_is_saved_and_not_built(ucf: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = designed(ucf, temporal="local+global", prompt="hand")
    save_checkpoint(model, path)
    again = load_checkpoint(path)
    assert again.config == model.config
    assert torch.equal(scored(again, ucf["features_37"])[1], scored(model, ucf["features_37"])[1])
    with pytest.raises(UserError, match=r"is an ablation \(temporal local\+global, prompt hand\)"):
        build(BuildOptions(path, tmp_path / "bundle"))
    with pytest.raises(UserError, match="temporal is 'magic': use one of none, global"):
        Design(temporal="magic")  # type: ignore[arg-type]


def test_from_a_list_to_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {name: toy_set(tmp_path / name, 24, seed) for name, seed in (("train", 0), ("test", 1))}
    for name, (listed, _) in parts.items():
        rows = [f"{path},{label}" for path, label in zip(listed.paths, listed.labels, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    events = [
        f"{path.name},{label},{16 * marks.argmax()},{16 * (marks.argmax() + 6)}"
        for path, label, marks in zip(parts["test"][0].paths, parts["test"][0].labels, parts["test"][1], strict=True)
        if marks.any()
    ]
    (tmp_path / "truth.csv").write_text("\n".join(["video,label,start,end", *events]) + "\n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["normal", "fire", "fight"]}))
    save_checkpoint(toy_model(), tmp_path / "clip.safetensors")
    common = ["--list", tmp_path / "train.csv", "--clip", tmp_path / "clip.safetensors", "--quiet"]
    common += ["--classes", tmp_path / "classes.json", "--epochs", 2, "--batch", 8, "--lr", 1e-3]
    common += ["--test-list", tmp_path / "test.csv", "--annotations", tmp_path / "truth.csv"]
    out = tmp_path / "out"
    command = ["ablate", *common, "--select", "last", "--out", out, "--rows", "baseline", "c-branch", "lgt-adapter"]
    command = [str(part) for part in [*command, "--seeds", 1, 2]]
    assert main(command) == 1  # two steps teach nothing, which is said
    captured = capsys.readouterr()
    assert "the model learnt nothing" in captured.err and captured.err.count("hardly move the weights") == 1
    printed = captured.out
    assert "Table 5, in percent" in printed and "Table 6, in percent" in printed and " ± " in printed
    assert "AVG paper" in printed and "AVG abnormal-only" in printed and "AUC and AP are of the branch" in printed
    with (out / "ablation.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    names = [(row["table"], row["row"], row["seed"]) for row in table]
    assert names == [(t, n, s) for t, n in (("5", "baseline"), ("5", "lgt-adapter"), ("6", "c-branch")) for s in "12"]
    evaluation = json.loads((out / "runs" / "baseline" / "seed-1" / "evaluation" / "evaluation.json").read_text())
    assert float(table[0]["AUC"]) == pytest.approx(100 * evaluation["frame_metrics"]["confidence"]["auc"], abs=1e-3)
    assert table[0]["AUC"] != table[1]["AUC"]
    assert {row["branch"] for row in table} == {"confidence"} == {evaluation["branch"]}
    for mode in ("paper", "abnormal-only"):
        assert float(table[0][f"AVG {mode}"]) == pytest.approx(evaluation["detection_map"][mode]["avg"], abs=1e-3)
    assert "| baseline |" in (out / "ablation.md").read_text()
    state = out / "runs" / "baseline" / "seed-1" / "state.pt"
    before = state.stat().st_mtime_ns
    assert main(command) == 1
    assert state.stat().st_mtime_ns == before  # nothing was trained again
    capsys.readouterr()
    # The C-branch alone tells no classes.
    assert all((row["AVG paper"] == "") == (row["row"] == "c-branch") for row in table)

    # Another table in the same folder: the full model is there already, and so are the rows of the first call.
    place = command.index("--rows")
    more = [*command[:place], "--rows", "both-branches+both-prompts", "--seeds", "1"]
    whole = (out / "runs" / "lgt-adapter" / "seed-1" / "state.pt").stat().st_mtime_ns
    assert main(more) in (0, 1)
    assert {path.name for path in (out / "runs").iterdir()} == {"baseline", "lgt-adapter", "c-branch"}
    assert (out / "runs" / "lgt-adapter" / "seed-1" / "state.pt").stat().st_mtime_ns == whole
    lines = (out / "ablation.md").read_text().splitlines()
    assert [line.split(" ")[1] for line in lines if line.startswith("| ") and " row " not in line] == [
        "baseline",
        "lgt-adapter",
        "c-branch",
        "both-branches+both-prompts",
    ]
    assert [path.parent.name for path in out.rglob("features.bin")] == ["features"]  # one packed copy for all
    capsys.readouterr()
    truth = (tmp_path / "truth.csv").read_text()
    (tmp_path / "truth.csv").write_text(truth.rsplit("\n", 2)[0] + "\n" + events[-1][:-1] + "9\n")  # a later end
    assert main(more) in (0, 1)
    assert "were made with another recipe, lists or figures" in capsys.readouterr().out
    assert "baseline" not in (out / "ablation.md").read_text()
    (tmp_path / "truth.csv").write_text(truth)

    select = ["train", *common, "--select", "test", "--out", tmp_path / "chosen"]
    select.remove("--quiet")
    assert main([str(part) for part in select]) in (0, 1)
    printed = capsys.readouterr().out
    assert "selected on the TEST list, as the released code does" in printed
    assert "score: test AUC (frames)" in printed and "  test AUC (frames) 0." in printed
    best = printed.split("test AUC (frames) ")[-1].split(" ")[0]
    command = ["evaluate", tmp_path / "chosen" / "best.safetensors", "--list", tmp_path / "test.csv", "--json"]
    command += ["--annotations", tmp_path / "truth.csv", "--classes", tmp_path / "classes.json"]
    assert main([str(part) for part in command]) == 0
    figures = json.loads(capsys.readouterr().out)["frame_metrics"]["confidence"]
    assert float(best) == pytest.approx(figures["auc"], abs=1e-4)

    # Scores on another truth are another selection.
    (tmp_path / "truth.csv").write_text(truth.rsplit("\n", 2)[0] + "\n" + events[-1][:-1] + "9\n")
    assert main([str(part) for part in select]) == 2
    assert "with other settings (the test list is another one): give the same" in capsys.readouterr().err
    (tmp_path / "truth.csv").write_text(truth)

    # What is wrong with the test list is found before anything is trained.
    late = ["ablate", *common, "--select", "last", "--out", tmp_path / "late"]
    late[late.index(tmp_path / "test.csv")] = tmp_path / "train.csv"
    assert main([str(part) for part in late]) == 2
    assert "tests on 24 of 24 videos that" in capsys.readouterr().err
    features = np.load(last := parts["test"][0].paths[-1])
    np.save(last, np.where(np.arange(WIDTH) == 3, np.nan, features).astype(np.float16))
    late[late.index("--test-list") + 1] = tmp_path / "test.csv"
    assert main([str(part) for part in late]) == 2
    assert "has NaN or infinite numbers" in capsys.readouterr().err
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": {"normal": "normal", "fire": "fire " * 60, "fight": "f"}})
    )
    assert main([str(part) for part in late]) == 2
    assert "has 60 tokens, but only" in capsys.readouterr().err
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["normal", "fire", "fight"]}))
    np.save(last, features)
    (tmp_path / "truth.csv").write_text("video,label,start,end\nv001,fire,0,999999\n")
    late = ["ablate", *common, "--select", "last", "--out", tmp_path / "late"]
    assert main([str(part) for part in late]) == 2
    assert "features are cut short" in capsys.readouterr().err
    assert not (tmp_path / "late").exists()
    assert main([str(part) for part in ["train", *common[:-4], "--select", "test", "--out", tmp_path / "x"]]) == 2
    assert "--select test needs the test list" in capsys.readouterr().err
