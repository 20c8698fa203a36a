"""What the compiler's estimates are worth: published training speeds beside what the compiler says of the same step.

An estimate is the compiler's own: the cycles that it expects each operation to take, before any chip has run it. It
knows no waiting for the host, no contention on the links and no throttling, so it is optimistic. `PALIGEMMA` is a step
for which both figures are known. Its factor is the only correction that is made; `PUBLISHED` shows how far full
training runs get on real slices, so that an estimate far above them is read with doubt.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One training step, compiled and measured.

    Attributes:
        name: of the model.
        topology: of the slice.
        compiled_seconds: what the compiler estimates for a step of the same sizes.
        measured_seconds: what the published speed means for that step.
        source: of the measurement.
    """

    name: str
    topology: str
    compiled_seconds: float
    measured_seconds: float
    source: str

    @property
    def factor(self) -> float:
        """Estimated over measured time, below 1 if the compiler is optimistic."""
        return self.compiled_seconds / self.measured_seconds

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"On {self.name} ({self.topology}) the compiler estimates {self.compiled_seconds:.2f} s a step where "
            f"{self.measured_seconds:.2f} s were measured, a factor of {self.factor:.2f} ({self.source}). Calibrated "
            f"figures divide the compiler's time by it. One measured step is little to go by: trust ratios between "
            "settings more than any single figure."
        )


# 5,189 tokens/s/chip on 256 chips (arXiv 2407.07726, section on training speed), all parts trained. The compiled step
# has the same sizes, 32 examples a chip, data 2 x fsdp 128, full remat and the compiler's own limit of VMEM:
#
# vadapter plan --gin_file=experiments/open_stage1.gin --topology=v5e:16x16 --gin.ADAPTER=@MlpConfig() \
#   --gin.encoder.variant='"so400m_14_224"' --gin.tiny/decoder.variant='"gemma_2b"' --gin.TRAINABLE='[".*"]' \
#   --gin.BATCH_SIZE=8192 --gin.TASK_FEATURE_LENGTHS='{"inputs": 64, "targets": 64}' --gin.MeshConfig.data=2 \
#   --gin.MeshConfig.fsdp=128 --gin.NUM_FRAMES=1 --gin.decoder.remat='"full"' --gin.encoder.remat='"full"' \
#   --gin.TrainConfig.tpu_options='{"xla_tpu_scoped_vmem_limit_kib": 16384}'
PALIGEMMA = Calibration(
    name="PaliGemma 3B",
    topology="v5e:16x16",
    compiled_seconds=1.75,
    measured_seconds=2.37,
    source="arXiv 2407.07726: 5,189 tokens/s/chip",
)


# Of the peak, that the kernels of fused attention reach by the compiler's own schedule of them, by type of TPU: rows of
# 336 slots, 24 heads of 256 channels. `python benchmarks/kernel_cycles.py`, libtpu 0.0.42.1.
FUSED_SHARES = {"v4": 0.48, "v5e": 0.67, "v5p": 0.65, "v6e": 0.25, "tpu7x": 0.26}


@dataclasses.dataclass(frozen=True)
class Published:
    """A measured speed of whole training runs.

    Attributes:
        name: of the model and its sequence length.
        tpu: type of TPU.
        chips: in the slice.
        mfu: model FLOPs over the chips' peak, 0..1.
        tokens_per_s_per_chip: as published.
        source: of both.
    """

    name: str
    tpu: str
    chips: int
    mfu: float
    tokens_per_s_per_chip: float
    source: str


_MAXTEXT = "MaxText, Optimized models tiering"
PUBLISHED = (
    Published("PaliGemma 3B, 256 image and 128 text tokens", "v5e", 256, 0.55, 5189, "arXiv 2407.07726"),
    Published("Llama 2 70B, 4,096 tokens", "v5p", 512, 0.654, 692, _MAXTEXT),
    Published("Llama 2 70B, 4,096 tokens", "v6e", 256, 0.438, 900, _MAXTEXT),
    Published("Llama 3.1 8B, 8,192 tokens", "v6e", 256, 0.4546, 7207, _MAXTEXT),
    Published("Llama 3.1 70B, 8,192 tokens", "v6e", 256, 0.5033, 960, _MAXTEXT),
)


def published_for(tpu: str) -> list[Published]:
    """Returns the measured speeds on one type of TPU (`v5p`); on others none may be published."""
    return [p for p in PUBLISHED if p.tpu == tpu]
