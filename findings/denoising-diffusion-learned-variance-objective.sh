#!/usr/bin/env bash
# LearnedGaussianDiffusion of denoising-diffusion-pytorch trains and samples noise, whatever its objective says.
# The objective is pred_v by default, and the loss weights in a saved file are those of pred_v; yet the training loss is
# the squared error of the noise, and ancestral sampling takes the output as noise. DDIM sampling, which looks at the
# objective, always fails (NameError). Whoever converts such a file by its loss weights takes noise for v.
# Seen with denoising-diffusion-pytorch 2.3.4 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 einops==0.8.2 \
    scipy==1.17.1 tqdm==4.70.1 pillow==13.0.0 accelerate==1.15.0 ema-pytorch==0.8.3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps denoising-diffusion-pytorch==2.3.4
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys, types
from importlib.metadata import version
import torch

def named(attribute):
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return type(attribute, (), {})

for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "pytorch_fid", "pytorch_fid.fid_score",
             "pytorch_fid.inception"):  # imported for its trainer, which is not used here
    part = types.ModuleType(name)
    part.__getattr__ = named
    sys.modules[name] = part
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet
from denoising_diffusion_pytorch.learned_gaussian_diffusion import LearnedGaussianDiffusion
print("denoising-diffusion-pytorch", version("denoising-diffusion-pytorch"))

class Perfect(Unet):
    """Returns the noise, and the upper bound of the variance."""
    def forward(self, x, t, *rest, **more):
        return torch.cat([self.noise, torch.ones_like(self.noise)], dim=1)

net = Perfect(16, dim_mults=(1, 2), learned_variance=True)
diffusion = LearnedGaussianDiffusion(net, image_size=16, timesteps=100, vb_loss_weight=0.0)
x0 = torch.rand(4, 3, 16, 16) * 2 - 1
net.noise = torch.randn_like(x0)
t = torch.full((4,), 50)
loss = diffusion.p_losses(x0, t, noise=net.noise).item()
abar = diffusion.alphas_cumprod
weights = diffusion.loss_weight.allclose(abar)  # SNR / (SNR + 1), the weights of pred_v
print(f"objective {diffusion.objective}, loss weights of pred_v: {weights}, loss of a network that gives the noise: {loss}")
try:
    diffusion.model_predictions(x0, t)
    failed = ""
except NameError as error:
    failed = str(error)
print("DDIM's prediction fails:", failed)
assert diffusion.objective == "pred_v" and weights and loss == 0.0 and failed, "the behaviour has changed"
PYTHON
