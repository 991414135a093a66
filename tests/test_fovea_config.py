"""Configurations: every packaged one composes and builds; wrong names and values are refused with the nearest right one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from sightline.errors import ConfigError
from sightline.fovea import config
from sightline.fovea.config.field import with_field_of_view, with_geometry
from sightline.fovea.config.schema import FOVI_ONLY, settings
from sightline.fovea.networks.registry import ARCHITECTURES
from sightline.fovea.policies import POLICIES


@pytest.mark.parametrize("name", config.names())
def test_every_packaged_configuration_composes_and_names_what_there_is(name: str) -> None:
    cfg = config.compose(name)
    assert isinstance(cfg, DictConfig)
    assert ARCHITECTURES.has(cfg.model.arch)
    assert POLICIES.has(cfg.saccades.sup_policy) and POLICIES.has(cfg.saccades.ssl_policy)
    assert cfg.saccades.field_geometry == "planar"


def test_composing_is_what_hydra_does() -> None:
    with hydra.initialize_config_module("sightline.fovea.config", version_base=None):
        theirs = hydra.compose("fovi_alexnet.yaml", ["saccades.fov=20", "data=IN100"])
    assert theirs == config.compose("fovi_alexnet.yaml", ["saccades.fov=20", "data=IN100"])
    assert theirs.data.num_classes == 100


def test_composing_inside_an_application_leaves_its_hydra_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("x: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        assert config.compose("fovi-vit").model.arch == "fovi_vit_tiny"
        assert hydra.compose("own").x == 1
        with pytest.raises(ConfigError):
            config.compose("fovi_alexnet", ["saccades.fov=-1"])
        assert hydra.compose("own").x == 1
    assert not GlobalHydra.instance().is_initialized()


def test_copied_files_compose_from_their_folder(tmp_path: Path) -> None:
    assert config.copy_to(tmp_path / "config") == tmp_path / "config"
    assert config.compose("lp-fovi-alexnet", folder=tmp_path / "config") == config.compose("lp-fovi-alexnet")


def test_a_users_own_file_may_build_on_the_packaged_ones(tmp_path: Path) -> None:
    folder = config.copy_to(tmp_path)
    (folder / "mine.yaml").write_text("defaults:\n  - fovi_alexnet\n  - _self_\nsaccades:\n  n_fixations: 7\n")
    assert config.compose("mine", folder=folder).saccades.n_fixations == 7
    (folder / "mine.yaml").write_text("defaults:\n  - fovi_alexnet\n  - _self_\nsaccades:\n  n_fixation: 7\n")
    with pytest.raises(ConfigError, match=r"saccades\.n_fixation\b.*did you mean saccades\.n_fixations"):
        config.compose("mine", folder=folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["saccades.fove=3"], "unknown key saccades.fove in the configuration: did you mean saccades.fov?"),
        (["sacades.fov=3"], "did you mean saccades.fov?"),
        (["model.cmf_a=3"], "did you mean saccades.cmf_a?"),
        (["+model.vit.depth=3"], "did you mean model.vit."),
        (["saccades.fov=0"], "saccades.fov must be greater than 0, not 0"),
        (["saccades.cmf_a=-2"], "saccades.cmf_a must be greater than 0"),
        (["saccades.cmf_a=null", "saccades.fov=nan"], "saccades.fov must be greater than 0, not nan"),
        (["model.norm=bacth"], "model.norm must be one of batch"),
        (["saccades.mode=hexagonal"], "saccades.mode must be one of isotropic"),
        (["saccades.resize_size=0"], "saccades.resize_size must be greater than 0"),
        (["+saccades.camera_model=pinhole"], "cannot make a calibrated camera"),
        (["data=IN10"], "Could not find 'data/IN10'"),
        (["saccades.fov"], "cannot be composed"),
    ],
)
def test_wrong_names_and_values_are_refused_in_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.compose("fovi_alexnet", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean fovi_alexnet"):
        config.compose("fovi_alexnt")
    with pytest.raises(ConfigError, match="holds no"):
        config.compose("fovi_alexnet", folder=tmp_path)


def test_settings_fill_in_defaults_from_any_mapping_and_change_nothing() -> None:
    given: dict[str, Any] = {"saccades": {"fov": 20.0, "mode": "isotropic"}}
    see = settings(given)
    assert given == {"saccades": {"fov": 20.0, "mode": "isotropic"}}
    assert (see.saccades.fov, see.saccades.resize_size, see.model.vit.patch_size) == (20.0, 64, 8)
    assert settings(OmegaConf.create(given)) == see
    with pytest.raises(AttributeError, match="no key 'fovv'"):
        _ = see.saccades.fovv
    with pytest.raises(ConfigError, match="must be a mapping, not list"):
        settings([1])


def test_keys_that_only_fovi_has_are_accepted() -> None:
    checkpoint = {"saccades": {"fixation_noise": 0, "circular": 1}, "dist": {"world_size": 4}, "pretrained_model": {"lora": {"r": None}}}
    assert settings(checkpoint).saccades.fov == 16.0
    assert "dist" in FOVI_ONLY


def test_the_defaults_are_valid_and_documented() -> None:
    assert settings({}) == settings(OmegaConf.load(config.FOLDER / "default.yaml"))
    assert {"saccades.cmf_a", "model.vit.embedding", "training.loss"} <= set(config.known_names())


@pytest.mark.parametrize(
    ("keys", "fov"),
    [
        ({}, 16.0),
        ({"fixation_size_min_frac": 0.25, "fixation_size_max_frac": 0.25}, 8.0),
        ({"rescale_fov": 0, "fixation_size": 128}, 8.0),
        ({"fixation_size": 128}, 16.0),
    ],
)
def test_the_field_of_view_is_that_of_one_fixation(keys: dict[str, Any], fov: float) -> None:
    see = with_field_of_view(settings({"saccades": keys}))
    assert see.saccades.fov == fov
    assert see.saccades.cmf_a == 0.5


def test_automatic_foveation_reads_no_pixel_twice() -> None:
    see = with_field_of_view(settings({"saccades": {"cmf_a": "auto"}}))
    assert math.isclose(see.saccades.cmf_a, 0.7628, rel_tol=1e-4)  # fovi 2.4.0: 0.76280
    with pytest.raises(ConfigError, match="crops of one size"):
        with_field_of_view(settings({"saccades": {"cmf_a": "auto", "fixation_size_min_frac": 0.5}}))


def test_a_configuration_without_geometry_is_one_of_fovis_checkpoints() -> None:
    given = {"saccades": {"mode": "isotropic"}}
    with pytest.warns(UserWarning, match="taking legacy"):
        assert with_geometry(given)["saccades"]["field_geometry"] == "legacy"
    assert given == {"saccades": {"mode": "isotropic"}}
