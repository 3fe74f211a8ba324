"""Operations that Metal (a Mac's GPU) lacks fail here: the core avoids them, with equal results."""

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diversevar_core.analysis.judge import self_alignment
from diversevar_core.analysis.spectra import Spectra
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.diversity import pixel_features, vendi_score
from diversevar_core.methods.keep import Keep
from diversevar_core.methods.ssr_sar import DiverseVAR, reweight
from diversevar_core.resize import area
from diversevar_core.sampling.sampler import sample

METAL, CPU = torch.device("mps"), torch.device("cpu")
POOLS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)


class OnCPU(torch.Tensor):
    """A tensor that was moved off Metal."""


class Metal(TorchFunctionMode):
    """Every tensor says it is on Metal until it is moved to the CPU.

    There is no float64, adaptive pooling takes only sizes that divide (pytorch issues 96056 and
    143864), and a copy to it that does not block can read memory that is already in use for
    something else (139550 and 189690). device: Metal, or another one that has these limits.
    """

    def __init__(self, device: torch.device = METAL):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        moved = any(isinstance(a, OnCPU) for a in flat(arguments))
        if function == torch.Tensor.device.__get__:
            return CPU if moved else self.device
        if function in POOLS or (function is F.interpolate and options.get("mode") == "area"):
            size = options.get("size") or arguments[1]
            if any(side % out for side, out in zip(arguments[0].shape[-2:], size, strict=True)):
                raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output's")
        if function is torch.Tensor.cpu:
            moved = True
        if function is torch.Tensor.to:
            for target in arguments[1:]:
                if isinstance(target, torch.Tensor):
                    moved = isinstance(target, OnCPU)
                elif isinstance(target, str | torch.device):
                    moved = torch.device(target) == CPU
            if options.get("non_blocking") and not moved:
                return torch.full_like(arguments[0], torch.nan)
        options = {name: unplaced(value) for name, value in options.items()}
        return placed(function(*unplaced(arguments), **options), moved)


def flat(values) -> list:
    """The values of nested lists and tuples."""
    nested = isinstance(values, list | tuple)
    return [leaf for value in values for leaf in flat(value)] if nested else [values]


def unplaced(value):
    """Replace tensors on the simulated Metal by ones that torch can compute with."""
    if type(value) in (list, tuple):
        return type(value)(unplaced(part) for part in value)
    if isinstance(value, torch.device):
        return CPU
    return value.as_subclass(torch.Tensor) if isinstance(value, OnCPU) else value


def placed(result, moved: bool):
    """The result where it belongs; TypeError where Metal has no such type."""
    if isinstance(result, list | tuple) and not isinstance(result, torch.Size):
        return type(result)([placed(part, moved) for part in result])
    if not isinstance(result, torch.Tensor):
        return result
    if result.dtype == torch.float64 and not moved:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    return result.as_subclass(OnCPU) if moved else result


def test_the_restrictions_are_felt():
    x = torch.randn(1, 2, 6, 6)
    with Metal():
        assert x.device == METAL and x.cpu().device == CPU
        with pytest.raises(RuntimeError, match="divisible"):
            F.interpolate(x, size=(4, 4), mode="area")
        with pytest.raises(TypeError, match="float64"):
            x.double()
        assert x.cpu().double().dtype == torch.float64
        assert x.to(METAL, non_blocking=True).isnan().all()


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 3), (7, 7), (1, 2)])
def test_area_is_the_same_on_metal(size):
    x = torch.randn(2, 3, 7, 13)
    with Metal():
        on_metal = area(x, *size)
    torch.testing.assert_close(on_metal, F.interpolate(x, size=size, mode="area"))


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_singular_values_change_alike_where_there_is_no_float64(device):
    x = torch.randn(2, 16, 40)
    with Metal(torch.device(device)):
        changed = reweight(x, 0.5)
    torch.testing.assert_close(changed, reweight(x, 0.5))


@pytest.mark.parametrize("name", ["var_plain", "infinity_plain"])
def test_images_are_the_same_on_metal(cases, name):
    case = cases[name]
    model, vae = load_model(case.model), load_vae(case.vae)
    schedule, settings = model.schedule(), model.defaults()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16 * schedule[-1].h, 16 * schedule[-1].w, generator=generator)
    mask = torch.zeros(1, 5, 7)
    mask[..., 2:] = 1
    condition = Labels(torch.tensor([3]))
    if model.reads is Text:
        condition = Text([0.2 * torch.randn(5, 256, generator=generator)])

    @torch.no_grad()
    def run():
        maps = vae.quantize_maps(vae.features(2 * image - 1), schedule)
        spectral = Spectra(DiverseVAR(ssr=1.0, sar=0.5, sides=(2, 4)), (4,), [0])
        methods = [spectral, Keep(maps, side=2, mask=mask)]
        how = (model, vae, condition, schedule, settings)
        steps = list(sample(*how, [5], methods=methods))
        made = vae.decode(steps[-1].f_hat)
        drawn = [step.tokens for step in steps]
        judged = self_alignment(model, vae, drawn, condition, schedule)
        return made, vendi_score(pixel_features(made)), judged.alignment.item()

    plain, *figures = run()
    with Metal():
        made, *on_metal = run()
    torch.testing.assert_close(made, plain, atol=1e-3, rtol=0)
    assert on_metal == pytest.approx(figures)
